"""Decontamination: the overlap of MedPix-2.0 with VQA-RAD that was counted by other means, and each rule by itself."""

from __future__ import annotations

import logging
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from amif_lib import datasets, manifests
from amif_lib.datasets import decontaminate
from amif_lib.datasets.records import Study, StudyImage
from amif_lib.errors import InputError


@pytest.fixture(autouse=True)
def own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_PREPARED", str(tmp_path / "amif"))


def test_real_overlap_of_medpix_with_vqa_rad(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """19 shared ids, 23 pairs alike by both hashes, 20 cases with 92 images dropped. Hashes 2364 images: about 14 s."""
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    with caplog.at_level(logging.INFO, logger="amif_lib"):
        kept = datasets.load_studies("medpix2", decontaminate_against=("vqa_rad",))
    assert "20 groups with 92 images dropped" in caplog.text
    everything = datasets.load_studies("medpix2")
    hits = decontaminate.report("medpix2", ("vqa_rad",))
    summary = decontaminate.summarise(everything, hits)
    assert (summary["shared_ids"], summary["alike_by_hash"]) == (19, 23)
    assert (summary["groups_dropped"], summary["images_dropped"]) == (20, 92)
    assert (summary["groups_left"], summary["images_left"]) == (651, 1958)
    assert len({s.group_id for s in kept}) == 651 and sum(len(s.images) for s in kept) == 1958
    assert not {s.group_id for s in kept} & set(hits["group_id"])
    # what either rule misses: two re-cropped copies under the same id, six copies under an other id
    only_id = hits[hits["same_id"] & ((hits["dhash_bits"] > 4) | (hits["phash_bits"] > 4))]
    assert sorted(only_id["protected_image"]) == ["synpic32981.jpg", "synpic48749.jpg"]
    assert (~hits["same_id"]).sum() == 6
    cached = (tmp_path / "amif" / "hashes").glob("*.json")
    assert sorted(path.name for path in cached) == ["medpix2.json", "vqa_rad.json"]
    assert not (tmp_path / "results").exists()  # neither image names nor hashes go there


def picture(seed: int, size: int = 96) -> Image.Image:
    """A random, smooth picture: two seeds are far apart by hash."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9)).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Study], list[Path]]:
    """Four cases and three protected pictures: a copy under an other id, the same id re-cropped, and one unrelated."""
    folder = tmp_path / "pictures"
    folder.mkdir()

    def save(name: str, image: Image.Image) -> Path:
        image.save(folder / name, quality=90)
        return folder / name

    cases = {
        "copied": [("MPX1_synpic11.jpg", picture(1, 128)), ("MPX1_synpic12.jpg", picture(2))],
        "same id": [("MPX2_synpic901.jpg", picture(3).crop((30, 30, 96, 96)).rotate(90))],
        "id alike": [("MPX3_synpic9011.jpg", picture(4))],  # 901 is only a part of this id
        "other": [("MPX4_synpic13.jpg", picture(5))],
    }
    studies = [
        Study(f"{case}-{i}", (StudyImage(name, save(name, image)),), "text", group_id=case)
        for case, entries in cases.items()
        for i, (name, image) in enumerate(entries)
    ]
    protected = [save("synpic900.png", picture(1)), save("synpic901.jpg", picture(3)), save("plain.jpg", picture(6))]
    monkeypatch.setattr(datasets, "image_paths", lambda name: protected)
    return studies, protected


def test_whole_cases_are_dropped_by_id_and_by_hash(sets: tuple[list[Study], list[Path]]) -> None:
    studies, _ = sets
    kept, hits = decontaminate.apply("made", studies, ("protected",))
    assert [study.group_id for study in kept] == ["id alike", "other"]
    assert set(zip(hits["group_id"], hits["protected_image"], hits["same_id"], strict=True)) == {
        ("copied", "synpic900.png", False), ("same id", "synpic901.jpg", True)}  # fmt: skip
    summary = decontaminate.summarise(studies, hits)
    assert summary == {"shared_ids": 1, "alike_by_hash": 1, "shared_pictures": 2, "groups_dropped": 2,
                       "images_dropped": 3, "groups_left": 2, "images_left": 2}  # fmt: skip


def test_hash_distances_are_imagehashs(sets: tuple[list[Study], list[Path]]) -> None:
    _, protected = sets
    found = decontaminate.hashes(protected, "made")
    for i, first in enumerate(protected):
        for j, second in enumerate(protected):
            for column, function in enumerate((imagehash.dhash, imagehash.phash)):
                with Image.open(first) as a, Image.open(second) as b:
                    expected = function(a.convert("L")) - function(b.convert("L"))
                assert int(np.bitwise_count(found[i, column] ^ found[j, column])) == expected


def test_one_hash_alone_does_not_drop(sets: tuple[list[Study], list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    studies, protected = sets

    def fake(files: list[Path], name: str) -> np.ndarray:
        own = [[0b11111, 0], [0, 0b11111], [0b1111, 0b1111], [0, 0], [2**40, 0]]  # bits away from the protected ones
        other = np.full((len(protected), 2), 2**63 - 1, np.uint64)
        other[2] = 0
        return np.array(own, np.uint64) if name == "made" else other

    monkeypatch.setattr(decontaminate, "hashes", fake)
    hits = decontaminate.find("made", studies, ("protected",))
    found = set(hits.loc[hits["protected_image"] == "plain.jpg", "image"])
    assert found == {studies[2].images[0].path.name, studies[3].images[0].path.name, studies[4].images[0].path.name}


def test_cache_follows_the_content(sets: tuple[list[Study], list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, protected = sets
    first = decontaminate.hashes(protected, "made")
    called: list[Path] = []
    original = decontaminate._hash
    monkeypatch.setattr(decontaminate, "_hash", lambda path: called.append(path) or original(path))
    assert (decontaminate.hashes(protected, "made") == first).all() and not called
    picture(9).save(protected[2])  # same name, other content
    assert (decontaminate.hashes(protected, "made")[2] != first[2]).any() and called == [protected[2]]


def test_hashes_that_cannot_be_stored_are_an_error(
    sets: tuple[list[Study], list[Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, protected = sets
    (tmp_path / "a file").write_text("", encoding="utf-8")
    monkeypatch.setenv("AMIF_PREPARED", str(tmp_path / "a file"))
    with pytest.raises(InputError, match=r"a file.hashes: cannot be written .*set AMIF_PREPARED"):
        decontaminate.hashes(protected, "made")


def test_demo_sets_share_no_patient(tmp_path: Path) -> None:
    """The phantom's seeds differ, so its three sets are separate draws."""
    settings = [manifests.load(name).generator for name in ("phantom_mimic_cxr", "phantom_teacher", "phantom_vqa_rad")]
    assert len({generator.seed for generator in settings if generator}) == 3
