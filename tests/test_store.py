"""The store of images at training size: pixels, made once, bad images, interruption, full disks, workers."""

from __future__ import annotations

import errno
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from PIL import Image

from amif_lib.core.errors import InputError
from amif_lib.data import images, load, store
from amif_lib.networks import pixels, tokenizers
from amif_lib.training.batches import PretrainingData, QuestionData, loader
from tests import tiny


def write_set(root: Path, count: int, size: tuple[int, int] = (60, 48)) -> Path:
    """A pre-training set in MedPix-2.0's layout: `count` cases of one picture each, every third in colour."""
    folder = root / "medpix2" / "images"
    folder.mkdir(parents=True)
    lines = []
    for i in range(count):
        rng = np.random.default_rng(i)
        shape = (6, 6, 3) if i % 3 == 0 else (6, 6)
        picture = Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"MPX{i:04d}.png")
        names = {"case_id": f"MPX{i:04d}", "image_id": f"MPX{i:04d}_synpic{i}", "synpic_id": f"synpic{i}"}
        about = {"file": f"images/MPX{i:04d}.png", "split": "train", "caption": f"finding number {i}", "plane": "Axial"}
        lines.append(json.dumps(names | about))
    (root / "medpix2" / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_HEADLESS", "1")
    monkeypatch.delenv("AMIF_PREPARED")
    return tmp_path / "data"


def never(*arguments: object) -> None:
    raise AssertionError("encoded again")


def test_stored_images_are_the_originals_at_training_size(root: Path) -> None:
    """Against Pillow's own decoding and resizing; as training reads them and through `datasets`."""
    folder = write_set(root, 9, (60, 48))
    Image.open(folder / "MPX0001.png").resize((20, 16)).save(folder / "MPX0001.png")  # smaller than asked for
    studies = load.load_studies("medpix2")
    made = store.ensure("medpix2", 32, studies)
    assert made.is_relative_to(root / ".amif" / "store" / "medpix2") and set(store.listed(made).values()) == {""}
    assert not (root.parent / "results").exists()
    stored, rows = store.pictures(["medpix2"], 32), Dataset.from_file(str(made))
    assert len(stored.row) == len(rows) == 9
    for study, row in zip(sorted(studies, key=lambda s: s.images[0].image_id), rows, strict=True):
        (image,) = study.images
        assert (row["image_id"], row["view"], row["text"]) == (image.image_id, "axial", study.text)
        original, picture = Image.open(image.path), stored[image.image_id]
        assert picture.size == row["image"].size == ((40, 32) if min(original.size) > 32 else original.size)
        assert picture.mode == original.mode
        expected = np.asarray(original.resize(picture.size, Image.Resampling.BICUBIC), float)
        assert np.abs(np.asarray(picture, float) - expected).mean() < 1.5
        assert np.array_equal(np.asarray(picture), np.asarray(row["image"]))
    with pytest.raises(InputError, match=r"not among those in .*32-.*use the set's own records"):
        stored["other"]
    with pytest.raises(InputError, match="9 image ids are in two of medpix2, medpix2"):
        store.Pictures([made, made])


def test_it_is_made_again_only_when_something_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(root, 6)
    studies = load.load_studies("medpix2")
    first = store.ensure("medpix2", 32, studies)
    with monkeypatch.context() as patch:
        patch.setattr(images, "encode", never)
        assert store.ensure("medpix2", 32, studies) == first == store.ensure("medpix2", 32)
    assert store.ensure("medpix2", 24, studies) != first
    (folder / "MPX0002.png").write_bytes((folder / "MPX0003.png").read_bytes())
    other = store.ensure("medpix2", 32, studies)
    assert other != first
    old, new = (store.Pictures([made]) for made in (first, other))
    assert old.content("MPX0002_synpic2") != new.content("MPX0002_synpic2") == new.content("MPX0003_synpic3")
    assert old.content("MPX0001_synpic1") == new.content("MPX0001_synpic1")


def test_bad_images_are_left_out_listed_and_counted(root: Path, monkeypatch, caplog) -> None:
    folder = write_set(root, 12)
    (folder / "MPX0004.png").write_bytes((folder / "MPX0004.png").read_bytes()[:200])
    (folder / "MPX0007.png").write_bytes(b"")
    studies = load.load_studies("medpix2")
    joined = [*studies[:7], studies[7].__class__("both", (*studies[7].images, *studies[8].images), "t"), *studies[9:]]
    with pytest.raises(InputError, match=r"2 of 12 images cannot be decoded, more than 1%; .*\.bad\.csv") as caught:
        store.usable("medpix2", 32, joined)
    assert "MPX00" not in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setattr(images, "MOST_BAD", 0.2)
    with caplog.at_level(logging.DEBUG):
        kept = store.usable("medpix2", 32, joined)
    assert kept == [s for s in joined if s.study_id not in (studies[4].study_id, "both")]
    made = store.ensure("medpix2", 32, joined)
    rows = pd.read_csv(made.with_suffix(".bad.csv"))
    assert rows["image_id"].tolist() == ["MPX0004_synpic4", "MPX0007_synpic7"]
    assert rows["file"][0] == "images/MPX0004.png" and "truncated" in rows["reason"][0]
    assert "2 of 12 images cannot be decoded" in caplog.text and "2 records left out" in caplog.text
    assert "MPX00" not in caplog.text  # counts only: a credentialed set's ids stay in its own folder
    assert "MPX0004_synpic4" not in store.Pictures([made]).row


def test_the_image_of_a_test_question_may_not_be_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BAD", 0.9)
    folder = root / "vqa_rad" / "VQA_RAD Image Folder"
    folder.mkdir(parents=True)
    common = {"question": "is it?", "answer": "yes", "answer_type": "CLOSED"}
    kinds = ("freeform", "freeform", "para", "test_freeform")
    records = [
        common | {"qid": i, "phrase_type": kind, "image_name": f"synpic{max(1, i)}.jpg"} for i, kind in enumerate(kinds)
    ]
    for record in records:
        Image.new("L", (50, 50), 99).save(folder / record["image_name"])
    (root / "vqa_rad" / "VQA_RAD Dataset Public.json").write_text(json.dumps(records), encoding="utf-8")
    questions = load.load_questions("vqa_rad")
    (folder / "synpic1.jpg").write_bytes(b"no image")
    assert [q.question_id for q in store.usable("vqa_rad", 36, questions)] == ["2", "3"]
    (folder / "synpic3.jpg").write_bytes((folder / "synpic2.jpg").read_bytes()[:300])
    with pytest.raises(InputError, match=r"2 of 3 images cannot be decoded, one of a test question; fetch"):
        store.usable("vqa_rad", 36, questions)


def test_a_full_disk_leaves_nothing_half_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(root, 300, (12, 10))
    studies = load.load_studies("medpix2")
    plain, written = ArrowWriter.write, []

    def full(self: ArrowWriter, *arguments: object) -> None:
        written.append(1)
        if len(written) == 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ArrowWriter, "write", full)
        with pytest.raises(InputError, match=r"No space left on device\); set AMIF_PREPARED"):
            store.ensure("medpix2", 8, studies)
    assert [path.name for path in (root / ".amif" / "store" / "medpix2").iterdir()] == [".lock"]
    assert len(store.listed(store.ensure("medpix2", 8, studies))) == 300


# --- what training reads ---------------------------------------------------------------------------------------------


def test_workers_and_copies_see_the_same_views(tmp_path: Path) -> None:
    stage1 = tiny.run().trainings()[0]
    studies = load.load_studies("phantom_mimic_cxr")[:8]
    tokenizer = tokenizers.train([s.text for s in studies], 400, tmp_path)
    data = PretrainingData(studies, stage1, tokenizer, None)
    keys = [[(step, index, 1.0, 8) for index in range(8)] for step in range(3)]
    expected = [batch.views for batch in loader(data, keys, 0)]
    forked = [batch.views for batch in loader(data, keys, 2)]
    copied = [batch.views for batch in loader(pickle.loads(pickle.dumps(data)), keys, 0)]
    for a, b, c in zip(expected, forked, copied, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert not torch.equal(expected[0], expected[1])


def test_questions_see_the_stored_image_and_blank_ones_none(tmp_path: Path) -> None:
    run = tiny.run()
    questions = load.load_questions("phantom_vqa_rad")[:4]
    tokenizer = tokenizers.train([q.question for q in questions], 400, tmp_path)
    keys = [[(0, i, 1.0, 4) for i in range(4)]]
    (batch,) = loader(QuestionData(questions, run, tokenizer), keys, 0)
    for question, image in zip(questions, batch.images, strict=True):
        picture = images.as_stored(question.image_path, run.model.stored_side)
        assert torch.equal(image, pixels.to_tensor(picture, run.model.image_size))
    (batch,) = loader(QuestionData(questions, run, tokenizer, blank=True), keys, 0)
    assert torch.equal(batch.images, pixels.blank(run.model.image_size)[None])
