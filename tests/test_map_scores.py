"""Scores of patch maps against hand-computed cases and brute force, and the file they are stored in."""

from __future__ import annotations

import numpy as np
import pytest

from amif_lib.core.errors import InputError
from amif_lib.data import regions
from amif_lib.experiments import stored_maps
from amif_lib.experiments.stored_maps import Maps
from amif_lib.reporting import map_scores


def test_only_relative_height_counts_and_maps_without_a_share_are_refused():
    maps, region = np.array([[[0.4, 0.1], [0.3, 0.2]]]), np.array([[[1.0, 0.6], [0, 0]]])  # wholly, to .6
    for scaled in (maps, 7 * maps):
        assert map_scores.mass_inside(scaled, region).item() == pytest.approx(0.4 + 0.06)
    for bad in (-maps, maps * np.nan, 0 * maps):
        with pytest.raises(InputError, match="maps must be finite, >= 0"):
            map_scores.mass_inside(bad, region)
    with pytest.raises(InputError, match="maps are all of one image"):
        map_scores.score(np.vstack([maps] * 2), np.vstack([region] * 2), ["a", "a"])


def test_score_by_brute_force_and_the_region_of_the_same_image_is_not_elsewhere():
    rng = np.random.default_rng(0)
    maps, coverage = rng.random((22, 3, 3)), rng.random((22, 3, 3))
    images = [*"abacc", *"defghijklmnopqrst"[:17]]
    found = map_scores.score(maps, coverage, images)
    share = [[(m / m.sum() * c).sum() for c in coverage] for m in maps]
    assert found["inside"] == pytest.approx(np.mean([share[i][i] for i in range(22)]))
    other = [share[i][j] for i in range(22) for j in range(22) if images[i] != images[j]]
    assert found["elsewhere"] == pytest.approx(np.mean(other)) and found["area"] == pytest.approx(coverage.mean())
    assert found["lead"] == pytest.approx(found["inside"] - found["elsewhere"])
    assert (found["n"], found["n_images"]) == (22, 20)


def test_a_flat_map_or_one_fixed_place_has_no_lead_and_chance_leads_are_rarely_beyond_their_error():
    """Regions of many sizes near the middle, maps that look there too: 5% of the z values lie beyond 1.96."""
    rng, z = np.random.default_rng(0), []
    images = [str(i // 2) for i in range(60)]
    for _ in range(1500):
        coverage = (rng.random((60, 8, 8)) < 0.2 * rng.random((60, 1, 1))).astype(float)
        coverage[:, 3, 3] = 1
        found = map_scores.score(rng.random((60, 8, 8)) ** 3 * np.exp(-((np.arange(8) - 3) ** 2)), coverage, images)
        z.append(found["lead"] / found["error"])
    assert 0.03 < np.mean(np.abs(z) > 1.96) < 0.08 and 0.9 < np.std(z) < 1.1
    for one in (np.ones((8, 8)), np.eye(8)):
        found = map_scores.score(np.stack([one] * 60), coverage, images)
        assert found["lead"] == pytest.approx(0, abs=1e-9) and found["error"] < 0.01
    assert map_scores.score(coverage, coverage, images)["lead"] > 10 * found["error"]


def test_file_keeps_maps_as_they_are_and_what_cannot_be_used_is_named(tmp_path):
    rng, names = np.random.default_rng(0), np.array(["a", "b", "c"])
    plan = (1 / 64 * (1 + 1e-4 * rng.standard_normal((3, 8, 8)))).astype(np.float32)
    pictures = rng.integers(0, 255, (1, 96, 96)).astype(np.uint8)
    maps = Maps("set", *[names] * 5, np.full((3, 8, 8), 0.75), {"gate": plan}, np.array([1]), pictures, pictures > 100)
    path = tmp_path / "maps.npz"
    with pytest.raises(InputError, match=r"maps\.npz: .*No such file"):
        stored_maps.read(path)
    back = stored_maps.read(stored_maps.write(path, maps))
    assert (back.values["gate"] == plan).all() and (back.coverage == 0.75).all() and back.data_set == "set"
    assert (back.ids == names).all() and (back.pictures == pictures).all() and (back.outlines == (pictures > 100)).all()
    np.savez(path, ids=np.array([{"an": "object"}], dtype=object))  # pickled
    with pytest.raises(InputError, match="delete it and run notebooks"):
        stored_maps.read(path)
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match="delete it and run notebooks"):
        stored_maps.read(path)


def test_coverage_is_the_share_of_each_cell_and_a_finding_is_named_by_its_whole_word():
    mask = np.zeros((4, 6), bool)
    mask[0:2, 0:3] = True  # the first of 2 x 2 cells, wholly
    mask[2, 3] = True  # one of six pixels of the last
    assert regions.coverage(mask, 2) == pytest.approx(np.array([[1, 0], [0, 1 / 6]]))
    named = {"How many Nodules are there?": "Nodules", "A massive heart": "", "What abnormality is seen?": ""}
    assert {text: regions.naming_word(text, "nodule") for text in named} == named
    assert regions.naming_word("Is there a  pleural effusion?", "pleural effusion") == "pleural effusion"
    assert [regions.naming_word(text, "mass") for text in ("A massive heart", "a mass effect")] == ["", "mass"]
