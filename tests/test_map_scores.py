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
HIT = np.array([[[0.4, 0.1, 0.1], [0.2, 0.1, 0], [0, 0.1, 0]]])  # highest: the first cell
MISS = np.array([[[0.0, 0.3, 0.1], [0.5, 0.1, 0], [0, 0, 0]]])  # highest outside
AWAY = np.array([[[0, 0, 0], [0, 0.25, 0.35], [0, 0.2, 0.2]]])


@pytest.mark.parametrize(
    ("values", "pointing", "mass"), [(HIT, 1, 0.4 + 0.06 + 0.03), (MISS, 0, 0.18 + 0.03), (AWAY, 0, 0)]
)
def test_scores_by_hand(values, pointing, mass):
    for scaled in (values, 7 * values):  # only relative height counts
        found = map_scores.score(scaled, REGION)
        assert found["pointing"] == pytest.approx([pointing]) and found["mass"] == pytest.approx([mass])


def test_a_small_region_is_its_most_covered_cell_and_what_cannot_be_scored_is_refused():
    small = np.array([[[0.1, 0.0], [0.3, 0.2]]])
    assert map_scores.region_cells(small).tolist() == [[False, False, True, False]]
    with pytest.raises(InputError, match="covers no cell"):
        map_scores.region_cells(np.zeros((1, 2, 2)))
    for values in (-HIT, HIT * np.nan, HIT[:, :2, :2]):
        with pytest.raises(InputError, match="grids must agree, maps be finite and >= 0"):
            map_scores.score(values, REGION)


def test_chance_is_the_mean_over_all_orders_of_the_cells_and_equal_cells_favour_no_corner():
    region = np.array([[[1.0, 0.7, 0.0], [0.2, 0.0, 0.9]]])
    maps = np.array(list(itertools.permutations(range(6))), dtype=float).reshape(-1, 2, 3)  # all 720
    every, expected = map_scores.score_all(maps, region), map_scores.chance(region)
    for name in map_scores.MEASURES:
        assert every[name].mean() == pytest.approx(float(expected[name][0])), name
    assert expected["pointing"][0] == pytest.approx(3 / 6)
    corners = [np.roll(np.eye(1, 16).reshape(1, 4, 4), shift, (1, 2)) for shift in ((0, 0), (1, 2))]
    assert not all(map_scores.score(np.ones((1, 4, 4)), corner)["pointing"][0] for corner in corners)


def test_centre_prior_is_a_symmetric_bell():
    bell = map_scores.centre_prior(4)
    assert bell.sum() == pytest.approx(1) and np.allclose(bell, bell.T) and np.allclose(bell, bell[::-1])
    # cells lie at 1/8 and 3/8 from the middle; one dimension's ratio is exp(((3/8)^2 - (1/8)^2) / (2 * .25^2)) = e
    assert bell[1, 1] / bell[1, 0] == pytest.approx(np.e)


def maps_of(values, coverage, images):
    n = len(coverage)
    texts = ([str(i) for i in range(n)], list(images), ["mass"] * n, ["mass"] * n, ["a mass"] * n)
    return Maps("phantom_vqa_rad", *texts, coverage, values)


def test_another_region_is_that_of_other_images_only_and_seeds_are_averaged():
    one, two = np.zeros((2, 2)), np.zeros((2, 2))
    one[0, 0] = two[1, 1] = 1
    maps = maps_of({"attention": np.stack([one, one, two])}, np.stack([one, one, two]), ["a", "a", "b"])
    found = map_scores.per_question([maps], None, "attention")
    assert found["model"]["pointing"].tolist() == [1, 1, 1] and "untrained" not in found
    assert found["another region"]["pointing"].tolist() == [0, 0, 0]  # the equal region lies on the same image
    seeds = [maps_of({"gate": each[None]}, one[None], ["a"]) for each in (one, two)]
    found = map_scores.per_question(seeds, seeds[1], "gate")
    assert found["model"]["pointing"] == pytest.approx([0.5]) and found["untrained"]["pointing"] == pytest.approx([0])
    assert "another region" not in found  # there is no other image


def test_intervals_resample_images_and_the_summary_has_the_lead_over_each_source():
    """Two images with 1 and 3 questions: a draw takes a twice, b twice or both once, so three means are possible."""
    drawn = map_scores.means(np.array([[1.0, 0, 0, 0.3]]), ["a", "b", "b", "b"])[:, 0]
    assert sorted(set(np.round(drawn, 6))) == [0.1, 0.325, 1.0]  # .3/3, 1.3/4, 1/1
    assert np.mean(np.isclose(drawn, 0.325)) == pytest.approx(0.5, abs=0.05)
    values = {"model": 0.8, "chance": 0.3}
    scores = {name: {m: np.full(40, value) for m in map_scores.MEASURES} for name, value in values.items()}
    rows = map_scores.summary(scores, [str(i // 2) for i in range(40)]).query("measure == 'mass'").set_index("source")
    assert rows.loc["model", ["value", "ci_low", "ci_high"]].tolist() == pytest.approx([0.8, 0.8, 0.8])
    assert np.isnan(rows.loc["model", "difference"]) and rows.loc["chance", "difference"] == pytest.approx(0.5)
    assert rows.loc["chance", ["difference_low", "n", "n_images"]].tolist() == pytest.approx([0.5, 40, 20])


def test_file_keeps_the_order_of_the_cells(tmp_path):
    """Cells that differ by a ten-thousandth, as in transport plans, remain different; the range stays exact."""
    rng = np.random.default_rng(0)
    plan = (1 / 64 * (1 + 1e-4 * rng.standard_normal((3, 8, 8)))).astype(np.float32)
    maps = maps_of({"transport_plan": plan}, np.full((3, 8, 8), 0.75), ["a", "b", "c"])
    maps.examples, maps.pictures = [1], rng.integers(0, 255, (1, 96, 96)).astype(np.uint8)
    maps.outlines = maps.pictures > 100
    back = stored_maps.read(stored_maps.write(tmp_path / "maps.npz", maps))
    kept = back.values["transport_plan"]
    assert (kept.reshape(3, -1).argmax(1) == plan.reshape(3, -1).argmax(1)).all()
    np.testing.assert_allclose(kept, plan, atol=1e-8, rtol=0)  # a step is 1e-5 of a range of about 1e-5
    assert (back.coverage == 0.75).all() and (back.ids, back.examples) == (["0", "1", "2"], [1])
    assert (back.pictures == maps.pictures).all() and (back.outlines == maps.outlines).all()


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


def test_coverage_is_the_share_of_each_cell_and_a_finding_is_named_by_its_whole_word():
    mask = np.zeros((4, 6), bool)
    mask[0:2, 0:3] = True  # the first of 2 x 2 cells, wholly
    mask[2, 3] = True  # one of six pixels of the last
    assert regions.coverage(mask, 2) == pytest.approx(np.array([[1, 0], [0, 1 / 6]]))
    named = {"How many Nodules are there?": "Nodules", "A massive heart": "", "What abnormality is seen?": ""}
    assert {text: regions.naming_word(text, "nodule") for text in named} == named
    assert regions.naming_word("Is there a  pleural effusion?", "pleural effusion") == "pleural effusion"
    assert (regions.naming_word("A massive heart", "mass"), regions.naming_word("a mass effect", "mass")) == (
        "",
        "mass",
    )
