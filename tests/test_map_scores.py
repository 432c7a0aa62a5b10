"""Scores of patch maps against hand-computed cases and brute force, and the file they are stored in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from amif_lib.core.errors import InputError
from amif_lib.data import regions
from amif_lib.experiments import stored_maps
from amif_lib.experiments.stored_maps import Maps
from amif_lib.reporting import map_scores

# A 3 x 3 grid. The region covers the first cell wholly, the second to .6 and the third to .3: two cells belong to it.
REGION = np.array([[[1.0, 0.6, 0.3], [0, 0, 0], [0, 0, 0]]])
HIT = np.array([[[0.4, 0.1, 0.1], [0.2, 0.1, 0], [0, 0.1, 0]]])  # highest: the first cell; second: below it, outside
MISS = np.array([[[0.0, 0.3, 0.1], [0.5, 0.1, 0], [0, 0, 0]]])  # highest outside, second inside
AWAY = np.array([[[0, 0, 0], [0, 0.25, 0.35], [0, 0.2, 0.2]]])


@pytest.mark.parametrize(
    ("values", "pointing", "mass"), [(HIT, 1, 0.4 + 0.06 + 0.03), (MISS, 0, 0.18 + 0.03), (AWAY, 0, 0)]
)
def test_scores_by_hand(values, pointing, mass):
    found = map_scores.score(values, REGION)
    assert found["pointing"] == pytest.approx([pointing]) and found["mass"] == pytest.approx([mass])
    scaled = map_scores.score(7 * values, REGION)  # only relative height counts
    assert all(scaled[name] == pytest.approx(found[name]) for name in found)


def test_a_small_region_is_its_most_covered_cell_and_an_empty_one_is_refused():
    small = np.array([[[0.1, 0.0], [0.3, 0.2]]])
    assert map_scores.region_cells(small).tolist() == [[False, False, True, False]]
    with pytest.raises(InputError, match="covers no cell"):
        map_scores.region_cells(np.zeros((1, 2, 2)))


def test_bad_maps_are_refused():
    for values in (-HIT, HIT * np.nan, HIT[:, :2, :2]):
        with pytest.raises(InputError, match="grids must agree, maps be finite and >= 0"):
            map_scores.score(values, REGION)


def test_chance_is_the_mean_over_all_orders_of_the_cells():
    """All 720 maps on a 2 x 3 grid with different cells, scored one by one (made square by a masked copy is not needed)."""
    region = np.array([[[1.0, 0.7, 0.0], [0.2, 0.0, 0.9]]])
    maps = np.array(list(itertools.permutations(range(6))), dtype=float).reshape(-1, 2, 3)
    every = map_scores.score_all(maps, region)
    expected = map_scores.chance(region)
    for name in map_scores.MEASURES:
        assert every[name].mean() == pytest.approx(float(expected[name][0])), name
    assert expected["pointing"][0] == pytest.approx(3 / 6)


def test_equal_cells_favour_no_corner():
    """A flat map must not score the top left corner as its choice."""
    flat, corner = np.ones((1, 4, 4)), np.zeros((1, 4, 4))
    corner[0, 0, 0] = 1
    other = np.roll(np.roll(corner, 2, 1), 1, 2)
    assert not all(map_scores.score(flat, region)["pointing"][0] for region in (corner, other))
    assert map_scores.score(flat, corner)["mass"] == pytest.approx([1 / 16])


def test_centre_prior_is_a_symmetric_bell():
    bell = map_scores.centre_prior(4)
    assert bell.sum() == pytest.approx(1) and np.allclose(bell, bell.T) and np.allclose(bell, bell[::-1])
    # cells lie at 1/8 and 3/8 from the middle; one dimension's ratio is exp(((3/8)^2 - (1/8)^2) / (2 * .25^2)) = e
    assert bell[1, 1] / bell[1, 0] == pytest.approx(np.e)


def stored(values, coverage, images, data_set="phantom_vqa_rad"):
    n = len(coverage)
    names = [str(i) for i in range(n)]
    return Maps(data_set, names, list(images), ["mass"] * n, ["mass"] * n, ["a mass"] * n, coverage, values)


def test_another_region_is_that_of_other_images_only():
    one, two = np.zeros((2, 2)), np.zeros((2, 2))
    one[0, 0] = two[1, 1] = 1
    maps = stored({"attention": np.stack([one, one, two])}, np.stack([one, one, two]), ["a", "a", "b"])
    found = map_scores.per_question([maps], None, "attention")
    assert found["model"]["pointing"].tolist() == [1, 1, 1]
    assert found["another region"]["pointing"].tolist() == [0, 0, 0]  # the equal region lies on the same image
    assert "untrained" not in found


def test_seeds_are_averaged_and_the_untrained_model_stands_beside():
    one, two = np.zeros((1, 2, 2)), np.zeros((1, 2, 2))
    one[0, 0, 0] = two[0, 1, 1] = 1
    seeds = [stored({"gate": each}, one, ["a"]) for each in (one, two)]
    found = map_scores.per_question(seeds, stored({"gate": two}, one, ["a"]), "gate")
    assert found["model"]["pointing"] == pytest.approx([0.5]) and found["untrained"]["pointing"] == pytest.approx([0])
    assert "another region" not in found  # there is no other image


def test_intervals_resample_images_not_questions():
    """Two images with 1 and 3 questions: a draw takes a twice, b twice or both once, so three means are possible."""
    drawn = map_scores.means(np.array([[1.0, 0, 0, 0.3]]), ["a", "b", "b", "b"])[:, 0]
    assert sorted(set(np.round(drawn, 6))) == [0.1, 0.325, 1.0]  # .3/3, 1.3/4, 1/1
    assert np.mean(np.isclose(drawn, 0.325)) == pytest.approx(0.5, abs=0.05)


def test_summary_has_the_lead_over_each_source():
    images = [str(i // 2) for i in range(40)]
    scores = {
        name: {m: np.full(40, value) for m in map_scores.MEASURES} for name, value in (("model", 0.8), ("chance", 0.3))
    }
    rows = map_scores.summary(scores, images).query("measure == 'mass'").set_index("source")
    assert rows.loc["model", ["value", "ci_low", "ci_high"]].tolist() == pytest.approx([0.8, 0.8, 0.8])
    assert np.isnan(rows.loc["model", "difference"]) and rows.loc["chance", "difference"] == pytest.approx(0.5)
    assert rows.loc["chance", ["difference_low", "n", "n_images"]].tolist() == pytest.approx([0.5, 40, 20])


def test_file_keeps_the_order_of_the_cells(tmp_path):
    """Cells that differ by a ten-thousandth of their value, as transport plans' do, stay apart; the range stays exact."""
    rng = np.random.default_rng(0)
    plan = (1 / 64 * (1 + 1e-4 * rng.standard_normal((3, 8, 8)))).astype(np.float32)
    coverage = np.zeros((3, 8, 8))
    coverage[:, 2, 3] = 0.75
    maps = stored({"transport_plan": plan}, coverage, ["a", "b", "c"])
    maps.examples, maps.pictures = [1], rng.integers(0, 255, (1, 96, 96)).astype(np.uint8)
    maps.outlines = maps.pictures > 100
    back = stored_maps.read(stored_maps.write(tmp_path / "maps.npz", maps))
    kept = back.values["transport_plan"]
    assert (kept.reshape(3, -1).argmax(1) == plan.reshape(3, -1).argmax(1)).all()
    np.testing.assert_allclose(kept, plan, atol=1e-8, rtol=0)  # a step is 1e-5 of a range of about 1e-5
    assert back.coverage[0, 2, 3] == 0.75 and back.ids == ["0", "1", "2"] and back.data_set == "phantom_vqa_rad"
    assert (back.pictures == maps.pictures).all() and (back.outlines == maps.outlines).all() and back.examples == [1]


def test_stored_arrays_that_cannot_be_used_are_named(tmp_path):
    path = tmp_path / "maps.npz"
    with pytest.raises(InputError, match=r"maps\.npz: missing"):
        stored_maps.read(path)
    np.savez(path, version=np.array(0))
    with pytest.raises(InputError, match="version 0 instead of 1"):
        stored_maps.read(path)
    np.savez(path, version=np.array(1), ids=np.array([{"an": "object"}], dtype=object))  # pickled
    with pytest.raises(InputError, match="not readable"):
        stored_maps.read(path)
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match="not readable"):
        stored_maps.read(path)


def test_coverage_is_the_share_of_each_cell():
    mask = np.zeros((4, 6), bool)
    mask[0:2, 0:3] = True  # the first of 2 x 2 cells, wholly
    mask[2, 3] = True  # one of six pixels of the last
    assert regions.coverage(mask, 2) == pytest.approx(np.array([[1, 0], [0, 1 / 6]]))


@pytest.mark.parametrize(
    ("text", "label", "word"),
    [
        ("How many Nodules are there?", "nodule", "Nodules"),
        ("Is there a mass effect?", "mass", "mass"),
        ("A massive heart", "mass", ""),
        ("Is there a  pleural effusion?", "pleural effusion", "pleural effusion"),
        ("What abnormality is seen?", "nodule", ""),
    ],
)
def test_word_that_names_a_finding(text, label, word):
    assert regions.naming_word(text, label) == word
