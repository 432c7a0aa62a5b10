"""Prepared data sets: right pixels, made once, bad images set aside, interruption, full disks, memory, workers."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import encoding, prepared, shards, sources
from amif_lib.data import load as datasets
from amif_lib.training.batches import PretrainingData, QuestionData, loader
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]


def write_set(root: Path, count: int, size: tuple[int, int] = (60, 48), suffix: str = "png") -> Path:
    """A pre-training set in MedPix-2.0's layout: `count` cases of one picture each, every third in colour."""
    folder = root / "medpix2" / "images"
    folder.mkdir(parents=True)
    lines = []
    for i in range(count):
        rng = np.random.default_rng(i)
        shape = (6, 6, 3) if i % 3 == 0 else (6, 6)
        picture = Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"MPX{i:04d}.{suffix}")
        lines.append(line(i, f"images/MPX{i:04d}.{suffix}"))
    (root / "medpix2" / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def line(i: int, file: str) -> str:
    names = {"case_id": f"MPX{i:04d}", "image_id": f"MPX{i:04d}_synpic{i}", "synpic_id": f"synpic{i}"}
    return json.dumps(names | {"file": file, "split": "train", "caption": f"finding number {i}", "plane": "Axial"})


def rest(folder: Path) -> None:
    """Make the files look as if they had been at rest for a while, so that their hashes are remembered."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 60, time.time() - 60 + len(path.read_bytes()) % 50))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_HEADLESS", "1")
    monkeypatch.delenv("AMIF_PREPARED")
    return tmp_path / "data"


def never(*arguments: object) -> None:
    raise AssertionError("encoded again")


# --- what is stored --------------------------------------------------------------------------------------------------


def test_stored_images_are_the_originals_at_training_size(root: Path) -> None:
    """Against Pillow's own decoding and resizing; as Parquet, as a memory map and through `datasets`."""
    folder = write_set(root, 9, (60, 48))
    Image.open(folder / "MPX0001.png").resize((20, 16)).save(folder / "MPX0001.png")  # smaller than asked for
    studies = datasets.load_studies("medpix2")
    made = prepared.ensure("medpix2", 32, studies)
    assert (
        made.folder.is_relative_to(root / ".amif" / "prepared" / "medpix2") and not (root.parent / "results").exists()
    )
    assert (made.count, made.left_out) == (9, {})
    stored = prepared.pictures(["medpix2"], 32)
    table = pq.read_table(made.folder / "images-00000.parquet").to_pylist()
    opened = prepared.as_dataset(made)
    assert len(stored) == len(table) == len(opened) == 9
    for row, other in zip(table, opened, strict=True):
        source = next(p.path for s in studies for p in s.images if p.image_id == row["image_id"])
        original = Image.open(source)
        assert row["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest() and row["view"] == "axial"
        assert (row["original_width"], row["original_height"]) == original.size
        picture = stored[row["image_id"]]
        assert picture.size == (row["width"], row["height"]) == ((40, 32) if min(original.size) > 32 else original.size)
        assert stored.content(row["image_id"]) == row["image"]["bytes"]
        assert row["grey"] == (picture.mode == "L") == (original.mode == "L")
        expected = np.asarray(original.convert("RGB").resize(picture.size, Image.Resampling.BICUBIC), float)
        assert np.abs(np.asarray(picture.convert("RGB"), float) - expected).mean() < 1.5
        assert other["image"].size == picture.size and other["image_id"] == row["image_id"] and other["mask"] is None
        assert np.array_equal(np.asarray(other["image"].convert(picture.mode)), np.asarray(picture))
    assert (made.folder.parent / ".arrow").is_dir()  # the copy that `datasets` makes does not go to the home folder


def test_a_jpeg_of_the_right_size_is_kept_and_lossless_is_used_where_it_is_smaller(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8))
    noise.save(tmp_path / "photo.jpg", quality=70)
    content = (tmp_path / "photo.jpg").read_bytes()
    assert encoding.encode(content, 40).data == content
    assert encoding.encode(content, 39).data != content
    drawing = Image.new("1", (400, 300))
    drawing.paste(1, (0, 0, 200, 150))
    drawing.save(tmp_path / "drawing.png")
    made = encoding.encode((tmp_path / "drawing.png").read_bytes(), 300)
    with Image.open(io.BytesIO(made.data)) as stored:
        assert stored.format == "PNG" and np.array_equal(np.asarray(stored), np.asarray(drawing.convert("L")))
    noise.save(tmp_path / "noise.png")
    with Image.open(io.BytesIO(encoding.encode((tmp_path / "noise.png").read_bytes(), 40).data)) as stored:
        assert stored.format == "JPEG"


def test_records_and_masks_are_stored_beside_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = datasets.load_questions("phantom_vqa_rad")  # at a side of their own: other tests prepare some at 36
    made = prepared.ensure("phantom_vqa_rad", 40, questions)
    (file,) = made.folder.glob("records-*.parquet")
    table = pq.read_table(file).to_pylist()
    assert [(r["question_id"], r["question"], r["answers"], r["split"]) for r in table] == [
        (q.question_id, q.question, list(q.answers), q.split) for q in questions
    ]
    row = pq.read_table(made.folder / "images-00000.parquet").to_pylist()[3]
    source = paths.phantom_root() / "phantom_vqa_rad" / "masks" / f"{row['image_id']}.png"
    with Image.open(source) as mask, Image.open(io.BytesIO(row["mask"]["bytes"])) as stored:
        assert stored.size == (row["width"], row["height"])
        assert np.array_equal(np.asarray(stored), np.asarray(mask.resize(stored.size, Image.Resampling.NEAREST)))
    monkeypatch.setattr(encoding, "encode", never)
    twice = next(i for i, q in enumerate(questions) if sum(q.image_id == other.image_id for other in questions) > 1)
    fewer = questions[:twice] + questions[twice + 1 :]  # other records of the same images
    again = prepared.ensure("phantom_vqa_rad", 40, fewer)
    assert again.folder == made.folder and len(list(made.folder.glob("records-*.parquet"))) == 2


# --- when it is made -------------------------------------------------------------------------------------------------


def test_it_is_made_again_only_when_something_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(root, 6)
    studies = datasets.load_studies("medpix2")
    first = prepared.ensure("medpix2", 32, studies)
    encode, digest = encoding.encode, sources.sha256
    monkeypatch.setattr(encoding, "encode", never)
    assert prepared.ensure("medpix2", 32, studies) == first
    rest(folder)  # other times, same content
    assert prepared.ensure("medpix2", 32, studies) == first
    monkeypatch.setattr(sources, "_digest", never)  # known by now, so no file is read
    assert prepared.ensure("medpix2", 32, studies) == first
    monkeypatch.undo()
    monkeypatch.setenv("DATA_ROOT", str(root))
    monkeypatch.delenv("AMIF_PREPARED")
    assert encoding.encode is encode and sources.sha256 is digest
    assert prepared.ensure("medpix2", 24, studies).folder != first.folder
    (folder / "MPX0002.png").write_bytes((folder / "MPX0003.png").read_bytes())
    other = prepared.ensure("medpix2", 32, studies)
    assert other.folder != first.folder
    stored = [prepared.Pictures([made.folder]) for made in (first, other)]
    assert stored[0].content("MPX0002_synpic2") != stored[1].content("MPX0002_synpic2")
    assert stored[1].content("MPX0002_synpic2") == stored[1].content("MPX0003_synpic3")
    assert stored[0].content("MPX0001_synpic1") == stored[1].content("MPX0001_synpic1")


def test_an_interrupted_preparation_goes_on_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 4)
    folder = write_set(root, 10)
    rest(folder)
    studies = datasets.load_studies("medpix2")
    encode, seen = encoding.encode, []

    def stopped(data: bytes, side: int) -> encoding.Encoded:
        seen.append(data)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return encode(data, side)

    monkeypatch.setattr(encoding, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepared.ensure("medpix2", 32, studies)
    home = root / ".amif" / "prepared" / "medpix2"
    assert not list(home.glob("*/prepared.json"))
    assert [path.name for path in home.rglob("images-*")] == ["images-00000.parquet"]
    seen.clear()
    monkeypatch.setattr(encoding, "encode", lambda data, side: seen.append(data) or encode(data, side))
    resumed = prepared.ensure("medpix2", 32, studies)
    assert len(seen) == 6  # of ten; four were there
    monkeypatch.setenv("AMIF_PREPARED", str(root / "elsewhere"))
    whole = prepared.ensure("medpix2", 32, studies)
    assert len(seen) == 16 and whole.folder.name == resumed.folder.name
    assert not list(home.glob(".building*"))
    for name in ("index.parquet", "images-00002.parquet"):
        assert pq.read_table(whole.folder / name).equals(pq.read_table(resumed.folder / name))


def test_two_processes_prepare_a_set_once(root: Path) -> None:
    write_set(root, 40)
    code = (
        "from amif_lib.data import load as datasets; from amif_lib.data import encoding, prepared\n"
        "count, encode = [], encoding.encode\n"
        "encoding.encode = lambda data, side: count.append(1) or encode(data, side)\n"
        "made = prepared.ensure('medpix2', 32, datasets.load_studies('medpix2'))\n"
        "print(len(count), made.count, made.folder.name)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    lines = [process.communicate(timeout=120)[0].splitlines()[-1].split() for process in both]
    assert sorted(int(found[0]) for found in lines) == [0, 40]
    assert all(found[1] == "40" for found in lines) and lines[0][2] == lines[1][2]


# --- bad images ------------------------------------------------------------------------------------------------------


def test_bad_images_are_left_out_listed_and_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_set(root, 12)
    (folder / "MPX0004.png").write_bytes((folder / "MPX0004.png").read_bytes()[:200])
    (folder / "MPX0007.png").write_bytes(b"")
    studies = datasets.load_studies("medpix2")
    joined = [*studies[:7], studies[7].__class__("both", (*studies[7].images, *studies[8].images), "t"), *studies[9:]]
    with caplog.at_level(logging.DEBUG):
        kept = prepared.usable("medpix2", 32, joined, most_bad=0.2)
    assert [s.study_id for s in kept] == [s.study_id for s in joined if s.study_id != studies[4].study_id]
    assert [p.image_id for s in kept if s.study_id == "both" for p in s.images] == ["MPX0008_synpic8"]
    made = prepared.ensure("medpix2", 32, joined)
    with (made.folder / "quarantine.csv").open(encoding="utf-8") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    assert (
        set(rows) == {"MPX0004_synpic4", "MPX0007_synpic7"} and rows["MPX0004_synpic4"]["file"] == "images/MPX0004.png"
    )
    assert "truncated" in rows["MPX0004_synpic4"]["reason"] and rows["MPX0007_synpic7"]["reason"] == "empty file"
    assert "2 of 12 images cannot be decoded" in caplog.text and "1 records left out" in caplog.text
    assert "MPX00" not in caplog.text  # counts only: a credentialed set's ids stay in its own folder
    with pytest.raises(InputError, match=r"2 of 12 images .*most_bad_images: 0.01; .*quarantine.csv") as caught:
        prepared.usable("medpix2", 32, joined)
    assert "MPX00" not in str(caught.value) and "\n" not in str(caught.value)
    write_set(root / "again", 12)  # mended: the two files come from a second download
    for name in ("MPX0004.png", "MPX0007.png"):
        (folder / name).write_bytes((root / "again" / "medpix2" / "images" / name).read_bytes())
    assert prepared.usable("medpix2", 32, joined) == joined


def test_the_image_of_a_test_question_may_not_be_missing(root: Path) -> None:
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
    questions = datasets.load_questions("vqa_rad")
    (folder / "synpic1.jpg").write_bytes(b"no image")
    assert [q.question_id for q in prepared.usable("vqa_rad", 36, questions, most_bad=0.5)] == ["2", "3"]
    (folder / "synpic3.jpg").write_bytes((folder / "synpic2.jpg").read_bytes()[:300])
    with pytest.raises(InputError, match=r"2 of 3 images cannot be decoded .*, one of a test question; fetch"):
        prepared.usable("vqa_rad", 36, questions, most_bad=0.9)


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(root, 3)
    studies = datasets.load_studies("medpix2")
    (root / ".amif").write_text("not a folder", encoding="utf-8")
    with pytest.raises(InputError, match=r"\.amif.*: cannot be written .*; set AMIF_PREPARED to a folder") as caught:
        prepared.ensure("medpix2", 32, studies)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("AMIF_PREPARED", str(root.parent / "elsewhere"))
    assert prepared.ensure("medpix2", 32, studies).folder.is_relative_to(root.parent / "elsewhere")


def test_data_that_may_not_be_written_to_are_left_as_they_are(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also by root, whom the system would let write there."""
    write_set(root, 3)
    studies = datasets.load_studies("medpix2")
    monkeypatch.setattr(paths, "ROOT", root.parent / "clone")
    root.chmod(0o555)
    try:
        with caplog.at_level(logging.INFO, logger="amif_lib"):
            found = prepared.ensure("medpix2", 32, studies).folder
    finally:
        root.chmod(0o755)
    assert found.is_relative_to(root.parent / "clone" / "data" / ".amif") and not (root / ".amif").exists()
    assert "prepared images go to data" in caplog.text


def test_a_full_disk_leaves_nothing_half_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 4)
    write_set(root, 10)
    studies = datasets.load_studies("medpix2")
    plain, written = pq.ParquetWriter.write_table, []

    def full(self: pq.ParquetWriter, *arguments: object, **named: object) -> None:
        written.append(1)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, *arguments, **named)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(InputError, match=r"medpix2: cannot be written \(No space left on device\); set AMIF_PREPARED"):
        prepared.ensure("medpix2", 32, studies)
    home = root / ".amif" / "prepared" / "medpix2"
    assert not list(home.rglob("*.part")) and not list(home.glob("*/prepared.json"))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", plain)
    assert prepared.ensure("medpix2", 32, studies).count == 10


# --- size ------------------------------------------------------------------------------------------------------------


def test_work_under_way_is_bounded_and_keeps_its_order() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(500):
            taken.append(i)
            yield i

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for expected, found in enumerate(sources.in_order(lambda i: i * i, items(), ahead=3)):
        assert found == expected**2 and len(taken) <= expected + 3 * cores
    assert len(taken) == 500
    with pytest.raises(ZeroDivisionError):
        list(sources.in_order(lambda i: 1 // (i - 40), items()))


def test_a_reader_of_the_output_that_has_gone_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), sources.writing(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


MEASURED = """
import os, sys, threading, psutil
from amif_lib.data import load as datasets
from amif_lib.data import prepared, shards
import pyarrow.parquet, datasets as _
me, peak, done = psutil.Process(), [0], threading.Event()
def tree():
    return sum(p.memory_info().rss for p in (me, *me.children(recursive=True)))
def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], tree())
before = tree()
watcher = threading.Thread(target=watch)
watcher.start()
studies = datasets.load_studies("medpix2", stored_side=64)
done.set()
watcher.join()
print(len(studies), (peak[0] - before) >> 20)
"""


def test_memory_does_not_grow_with_the_set(root: Path) -> None:
    """20,000 studies. Only records (and the interpreter's modules) may stay, about a tenth of what is allowed."""
    folder = root / "medpix2" / "images"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for i in range(20):
        pixels = noise.integers(0, 255, (48, 64)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05d}.jpg", quality=90)
    for i in range(20, 20_000):
        os.link(folder / f"{i % 20:05d}.jpg", folder / f"{i:05d}.jpg")
    lines = (line(i, f"images/{i:05d}.jpg") for i in range(20_000))
    (root / "medpix2" / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    count, grown = map(int, done.stdout.splitlines()[-1].split())
    assert count == 20_000
    assert grown < 1024, f"{grown} MiB"
    print(f"20,000 studies: {grown} MiB more")


# --- training reads it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setenv("AMIF_RESULTS", str(tmp_path_factory.mktemp("results")))
    yield tiny.run()
    patch.undo()


def test_workers_and_pickled_copies_give_the_samples_of_this_process(run, tmp_path: Path) -> None:
    from amif_lib.methods.amif import teacher as teachers
    from amif_lib.networks import tokenizers

    stage1 = run.lineage()[0]
    studies = teachers.student_studies(stage1)
    tokenizer = tokenizers.train([s.text for s in studies], 400, tmp_path)
    data = PretrainingData(studies, stage1, tokenizer, None)
    keys = [[(step, index) for index in range(8)] for step in range(3)]
    expected = [batch.views for batch in loader(data, keys, 0)]
    forked = [batch.views for batch in loader(data, keys, 2)]
    copied = [batch.views for batch in loader(pickle.loads(pickle.dumps(data)), keys, 0)]
    for a, b, c in zip(expected, forked, copied, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert not torch.equal(expected[0], expected[1])


def test_questions_see_the_stored_image_and_blank_ones_none(run, tmp_path: Path) -> None:
    from amif_lib.data import images
    from amif_lib.networks import tokenizers

    questions = datasets.load_questions("phantom_vqa_rad")[:4]
    tokenizer = tokenizers.train([q.question for q in questions], 400, tmp_path)
    keys = [[(0, i, 1.0, 4) for i in range(4)]]
    (batch,) = loader(QuestionData(questions, run, tokenizer), keys, 0)
    for question, image in zip(questions, batch.images, strict=True):
        picture = encoding.as_stored(question.image_path, run.model.stored_side)
        assert torch.equal(image, images.to_tensor(picture, run.model.image_size))
    (batch,) = loader(QuestionData(questions, run, tokenizer, blank=True), keys, 0)
    assert torch.equal(batch.images, images.blank(run.model.image_size)[None])


def test_short_side_follows_the_training_size() -> None:
    from amif_lib.networks.sizes import ModelSpec

    assert ModelSpec().stored_side == 320 and ModelSpec(image_size=128, patch_size=32).stored_side == 142
    assert ModelSpec(prepared_side=400).stored_side == 400


def test_an_image_of_other_records_and_an_id_of_two_sets_are_refused(root: Path) -> None:
    write_set(root, 3)
    made = prepared.ensure("medpix2", 32, datasets.load_studies("medpix2"))
    stored = prepared.Pictures([made.folder])
    assert "MPX0001_synpic1" in stored and "other" not in stored
    with pytest.raises(InputError, match="not among those prepared"):
        stored["other"]
    with pytest.raises(InputError, match="3 image ids are in two of"):
        prepared.Pictures([made.folder, made.folder])
