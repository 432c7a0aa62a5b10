"""Decontamination: the overlap of MedPix-2.0 with VQA-RAD that was counted by other means, and each rule by itself."""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amif_lib.core.errors import InputError
from amif_lib.data import decontaminate, manifests
from amif_lib.data import load as datasets
from amif_lib.data.records import Question, Study, StudyImage, article_id


@pytest.fixture(autouse=True)
def own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_PREPARED", str(tmp_path / "amif"))


def test_real_overlap_of_medpix_with_vqa_rad(real_data: Path, tmp_path: Path) -> None:
    """19 shared ids, 23 pairs alike by both hashes, 20 cases with 92 images dropped. Hashes 2364 images: about 14 s."""
    kept, pairs = decontaminate.apply("medpix2", datasets.load_studies("medpix2"), ("vqa_rad",))
    assert len({s.group_id for s in kept}) == 651 and sum(len(s.images) for s in kept) == 1958
    assert not {s.group_id for s in kept} & set(pairs["group_id"])
    # what either rule misses: two re-cropped copies under the same id, six copies under an other id
    only_id = pairs[pairs["same_id"] & ((pairs["dhash_bits"] > 4) | (pairs["phash_bits"] > 4))]
    assert sorted(only_id["protected_image"]) == ["synpic32981.jpg", "synpic48749.jpg"]
    assert (~pairs["same_id"]).sum() == 6
    # which images they are stands in one private file; what a notebook shows are counts
    logged = pd.read_csv(tmp_path / "results" / "private" / "decontamination" / "medpix2.csv", dtype={"group_id": str})
    assert len(logged) == len(pairs) == 25 and logged["image"].tolist() == pairs["image"].tolist()
    assert decontaminate.counts("medpix2", ("vqa_rad",)) == {
        "data_set": "medpix2", "kept_out": "vqa_rad", "shared_ids": 19, "alike_by_hash": 23,
        "shared_pictures": 25, "groups_dropped": 20, "images_dropped": 92, "groups_left": 651,
        "images_left": 1958}  # fmt: skip


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
    monkeypatch.setattr(decontaminate, "protected_images", lambda name: protected)
    monkeypatch.setattr(decontaminate, "presence", lambda name: ("found", ""))
    return studies, protected


def test_whole_cases_are_dropped_by_id_and_by_hash(sets: tuple[list[Study], list[Path]]) -> None:
    studies, protected = sets
    for path in (studies[0].images[0].path.with_name("MPX4_synpic13.jpg"), protected[2]):
        path.write_bytes(path.read_bytes()[:300])  # neither can be decoded: they are like nothing
    kept, pairs = decontaminate.apply("medpix2", studies, ("vqa_rad",))
    assert [study.group_id for study in kept] == ["id alike", "other"]
    assert set(zip(pairs["group_id"], pairs["protected_image"], pairs["same_id"], strict=True)) == {
        ("copied", "synpic900.png", False), ("same id", "synpic901.jpg", True)}  # fmt: skip


def test_cache_follows_the_content(sets: tuple[list[Study], list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, protected = sets
    first = decontaminate.hashes(protected, "vqa_rad")
    with Image.open(protected[2]) as image:
        expected = [int(str(function(image)), 16) for function in (imagehash.dhash, imagehash.phash)]
    assert first[2].tolist() == expected
    called: list[Image.Image] = []
    original = imagehash.dhash
    monkeypatch.setattr(imagehash, "dhash", lambda grey: called.append(grey) or original(grey))
    assert (decontaminate.hashes(protected, "vqa_rad") == first).all() and not called
    picture(9).save(protected[2])  # same name, other content
    assert (decontaminate.hashes(protected, "vqa_rad")[2] != first[2]).any() and len(called) == 1


def test_pairs_alike_are_those_of_brute_force() -> None:
    """Hashes with few differing bits, compared bit by bit in Python."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, (4, 2), dtype=np.uint64)

    def near(n: int) -> np.ndarray:
        flips = np.zeros((n, 2), np.uint64)
        for row in flips:
            for column in range(2):
                for bit in rng.choice(64, rng.integers(0, 6), replace=False):
                    row[column] ^= np.uint64(1) << np.uint64(bit)
        return base[rng.integers(0, len(base), n)] ^ flips

    own, other = near(60), near(23)
    expected = {
        (i, j)
        for i, a in enumerate(own.tolist())
        for j, b in enumerate(other.tolist())
        if all(bin(x ^ y).count("1") <= 4 for x, y in zip(a, b, strict=True))
    }
    found = list(decontaminate.alike_pairs(own, other))
    assert set(found) == expected and len(found) == len(expected) > 20


def test_a_protected_set_that_is_absent_or_incomplete_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    with pytest.raises(InputError, match=r"protected set vqa_rad is not on disk.*name fewer sets"):
        decontaminate.apply("medpix2", [], ("phantom_vqa_rad", "vqa_rad"))
    (tmp_path / "vqa_rad").mkdir()
    (tmp_path / "vqa_rad" / "VQA_RAD Dataset Public.json").touch()  # annotations without images
    with pytest.raises(InputError, match=r"vqa_rad is not on disk.*VQA_RAD Image Folder is missing.*name fewer sets"):
        decontaminate.apply("medpix2", [], ("vqa_rad",))


@pytest.mark.parametrize("reader", ["slake", "pathvqa", "vqa_med_2019", "medpix2_questions"])
def test_which_images_are_protected(monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    """Of SLAKE, PathVQA and VQA-Med-2019 the held-out images; of VQA-RAD, whose splits share images, all."""
    made = [
        Question(str(n), f"{split}{n}", Path(f"{split}{n}.jpg"), "q", ("a",), split, False, False)
        for n, split in enumerate(("train", "val", "test", "test"))
    ]
    plain = manifests.load("vqa_rad")
    monkeypatch.setattr(decontaminate.load, "load_questions", lambda name, **_: made)
    monkeypatch.setattr(decontaminate.manifests, "load", lambda name: plain.model_copy(update={"reader": name}))
    found = {path.stem for path in decontaminate.protected_images(reader)}
    validation = {"val1"} if reader in ("vqa_med_2019", "medpix2_questions") else set()
    assert found == {"test2", "test3"} | validation
    assert len(decontaminate.protected_images("vqa_rad")) == 4


def test_articles_have_one_id_and_an_earlier_set_keeps_them() -> None:
    """The second set loses the articles of the first; groups that are no articles are left alone."""
    same = ["PMC7654321", "7654321", "pmc7654321", " PMC7654321.1", 7654321]
    assert {article_id(given) for given in same} == {"pmc:7654321"}
    assert article_id(doi="https://doi.org/10.1007/S41019-025") == article_id("", "doi:10.1007/s41019-025.") != ""
    assert article_id("PMC12", "10.1000/x") == "pmc:12" and article_id(None, None) == article_id("PMCX", "none") == ""

    def studies(*groups: str) -> list[Study]:
        return [Study(str(number), (), "text", group_id=group) for number, group in enumerate(groups)]

    roco = studies(article_id("PMC1"), article_id("PMC1"), "case 9")
    medicat = studies(article_id("1"), article_id(doi="10.1000/a"), "case 9")
    kept = datasets.without_repeated_articles({"roco": roco, "medicat": medicat})
    assert kept == {"roco": roco, "medicat": medicat[1:]}
