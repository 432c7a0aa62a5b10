"""What must not be passed on stays private: sets with a marker in every file name, id, text and image are sent through
notebook 01, check, decontamination, baselines, report and reference results, and the marker is then looked for in every
file that they wrote and in what they printed. A few images that cannot be decoded stop nothing, whatever the set."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import check, decontaminate, manifests
from amif_lib.reporting import layout, reference, report, tables
from tests import fabricated

CLONE = Path(__file__).resolve().parents[1]
WORD = "zqxmarker"  # in every text, answer and id of the marked sets
COLOUR = (255, 0, 144)  # every image of theirs is a plane of it
SPEC = {"stage": "stage1", "scale": "demo", "teacher": {"source": "trained", "data": ["marked_studies"]},
        "data": {"pretrain": ["marked_studies"], "tokenizer_questions": ["marked_questions"],
                 "decontaminate_against": ["marked_questions"]}}  # fmt: skip


STUDIES = 120


def coloured(image: Image.Image) -> bool:
    """Whether a good part of the picture is the marker's colour (JPEG and drawing shift it a little)."""
    pixels = np.asarray(image.convert("RGB").resize((128, 128)), int)
    return bool((np.abs(pixels - COLOUR).max(axis=2) < 12).mean() > 0.002)


def marked_files(folder: Path) -> set[str]:
    """Files under `folder` that hold the marker: as text, in a Parquet file, or as a picture, embedded ones too."""
    found = set()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        pictures = [raw] if path.suffix in (".png", ".jpg") else []
        if path.suffix in (".ipynb", ".html", ".svg"):
            embedded = re.findall(rb"(?:iVBORw0KGgo|/9j/)[A-Za-z0-9+/=\\\n]+", raw)
            pictures += [base64.b64decode(re.sub(rb"\\n|\s|\\", b"", one)) for one in embedded]
        if path.suffix == ".parquet":
            raw = pd.read_parquet(path).to_json().encode()
        if WORD.encode() in raw.lower() or any(coloured(Image.open(io.BytesIO(one))) for one in pictures):
            found.add(path.relative_to(folder).as_posix())
    return found


def write_manifest(folder: Path, name: str, like: str, **changes: object) -> None:
    content = yaml.safe_load((CLONE / "data_manifests" / f"{like}.yaml").read_text(encoding="utf-8"))
    for key in ("files", "trees", "splits", "variants", "downloads", "evidence"):
        content.pop(key, None)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | {"name": name, "folder": name} | changes), "utf-8")


def make_sets(data: Path, cards: Path) -> None:
    """A pre-training set and a question set with the marker everywhere; they share a picture: one case is dropped."""
    picture = Image.new("RGB", (64, 64), COLOUR)
    studies, questions = data / "marked_studies", data / "marked_questions"
    (studies / "images").mkdir(parents=True)
    (questions / "VQA_RAD Image Folder").mkdir(parents=True)
    lines = []
    for number in range(6):
        name = f"{WORD}_synpic{number}.png"
        picture.save(studies / "images" / name)
        lines.append({"case_id": f"{WORD}{number}", "image_id": f"{WORD}-{number}", "synpic_id": f"synpic{number}",
                      "file": f"images/{name}", "split": "train",
                      "caption": f"A {WORD} of the lung, {number}."})  # fmt: skip
    (studies / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    asked = []
    for number, split in enumerate(("freeform", "freeform", "test_freeform", "test_freeform")):
        name = f"synpic{number + 90}.png"
        drawn = picture.copy()
        drawn.paste((0, 0, 0), (0, 0, 32, 8 + 12 * number))  # its hashes are not those of the studies' pictures
        if number == 0:
            name = "synpic3.png"
        drawn.save(questions / "VQA_RAD Image Folder" / name)
        asked.append({"qid": number, "phrase_type": split, "image_name": name, "question": f"Is it {WORD} {number}?",
                      "answer": f"{WORD} a", "answer_type": "OPEN"})  # fmt: skip
    (questions / "VQA_RAD Dataset Public.json").write_text(json.dumps(asked), encoding="utf-8")
    for name, like, level in (("marked_studies", "medpix2", "credentialed"), ("marked_questions", "vqa_rad", "open")):
        about = {"title": f"Marked set ({name})", "access": {"level": level}}
        write_manifest(cards, name, like, redistribution={"images": False, "texts": False}, **about)


def test_notebook_of_the_data_shows_only_what_it_may(tmp_path: Path) -> None:
    """In a copy of the clone with two more manifests."""
    pytest.importorskip("papermill")
    clone = tmp_path / "clone"
    for name in ("amif_lib", "notebooks", "data_manifests"):
        shutil.copytree(CLONE / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    make_sets(tmp_path / "data", clone / "data_manifests")
    (tmp_path / "run.json").write_text(json.dumps(SPEC), encoding="utf-8")
    results = tmp_path / "results"
    notebook = "notebooks/01_data_and_manifests.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "amif_lib.app.run_notebook", notebook, "--out", str(results / "demo" / notebook), "-p",
         "spec", str(tmp_path / "run.json")],
        cwd=clone, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(clone), "AMIF_RESULTS": str(results), "DATA_ROOT": str(tmp_path / "data")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = pd.read_csv(results / "demo" / "data" / "decontamination.csv").iloc[0]
    assert counts["groups_dropped"] >= 1 and counts["shared_ids"] == 1
    found = marked_files(results)
    public = {name for name in found if not name.startswith(("private/", "cache/"))}
    private, text = found - public, (results / "demo" / notebook).read_text(encoding="utf-8")
    assert public == set() and "No sample is drawn, not even a private one" in text  # the studies need a credential
    assert private == {"private/demo/data/samples_marked_questions.png"}  # drawn, for the user's own eyes
    assert "Marked set (marked_questions): texts not shown" in text
    assert WORD not in text + done.stdout + done.stderr


@pytest.fixture
def marked_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Fabricated runs of Table 4 whose questions and answers carry the marker, on a set that forbids its texts."""
    plain_load, plain_test, plain_train = manifests.load, fabricated.TEST, fabricated.TRAIN

    def marked(part):
        return [(image, f"{question} {WORD}", answer if answer in ("yes", "no") else f"{WORD} {answer}", closed)
                for image, question, answer, closed in part]  # fmt: skip

    def install(allowed: bool) -> Path:
        def load(name: str):
            found = plain_load(name)
            return found.model_copy(update={"redistribution": {"texts": allowed, "images": allowed}})

        monkeypatch.setattr(manifests, "load", load)
        monkeypatch.setattr(fabricated, "TEST", marked(plain_test))
        monkeypatch.setattr(fabricated, "TRAIN", marked(plain_train))
        monkeypatch.setattr(fabricated, "ANSWERS", sorted({e[2] for e in marked(plain_test) + marked(plain_train)}))
        monkeypatch.setattr(fabricated, "GOLD", [entry[2] for entry in marked(plain_test)])
        monkeypatch.setattr(fabricated, "wrong_at", lambda *positions: fabricated.GOLD)
        published = paths.published()
        monkeypatch.setattr(paths, "published", lambda: published)
        root = tmp_path / str(allowed)
        monkeypatch.setattr(paths, "ROOT", root)
        fabricated.install(monkeypatch, root / "results")
        (root / "results" / "demo").mkdir(parents=True)
        plan = {"selection": {}, "jobs": [{"rule": "table", "name": "table4"}]}
        (root / "results" / "demo" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        fabricated.write_table("table4", "demo", dict.fromkeys(("1", "3", "5", "6"), ()))
        return root / "results"

    return install


@pytest.mark.parametrize("allowed", [False, True])
def test_report_and_reference_hold_no_text_that_is_withheld(marked_runs, allowed: bool) -> None:
    results = marked_runs(allowed)
    assert any(name.endswith("predictions.parquet") for name in marked_files(results / "runs"))  # a working file
    if allowed:  # the control can do without drawing
        layout.write(tables.collect("table4", "demo"))
    else:
        report.write("demo")
    reference.store("demo")
    public = {n for n in marked_files(results) if not n.startswith(("private/", "runs/"))}
    copied = [path.name for path in (results / "reference" / "demo").rglob("*.parquet")]
    if allowed:
        assert any(n.startswith("reference/") for n in public) and any(n.startswith("demo/baselines/") for n in public)
        assert "predictions.parquet" in copied
    else:
        assert public == set() and copied == []
        assert any(n.startswith("private/demo/baselines/") for n in marked_files(results))
    assert (results / "reference" / "demo" / "tables" / "table4.csv").is_file()


def test_run_folders_carry_a_notice(tmp_path: Path) -> None:
    for name, sets in (("free", ["phantom_vqa_rad"]), ("bound", ["vqa_rad", "medpix2"])):
        (tmp_path / name / "model").mkdir(parents=True)
        manifests.mark(tmp_path / name, sets)
    assert not list((tmp_path / "free").rglob("*.txt"))
    for place in (tmp_path / "bound", tmp_path / "bound" / "model"):
        text = (place / manifests.NOTICE).read_text(encoding="utf-8")
        assert "MedPix-2.0" in text and "VQA-RAD:" not in text


# --- sets that need a credential -------------------------------------------------------------------------------------


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9)).astype(np.uint8)).resize((40, 40))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`bound`, in MIMIC-CXR's layout, and `asked`, in VQA-RAD's; one picture is in both."""
    monkeypatch.delenv("AMIF_PREPARED")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(paths, "MANIFESTS", tmp_path / "manifests")
    manifests.load.cache_clear()
    (tmp_path / "manifests").mkdir()
    write_manifest(tmp_path / "manifests", "bound", "mimic_cxr")
    write_manifest(tmp_path / "manifests", "asked", "vqa_rad")
    bound = tmp_path / "data" / "bound"
    rows = []
    for number in range(STUDIES):
        subject, study, dicom = f"{WORD}{number:03d}", f"{WORD}s{number}", f"{WORD}-d{number}"
        place = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        image = bound / "mimic-cxr-jpg" / place / f"s{study}" / f"{dicom}.jpg"
        report = bound / "mimic-cxr-reports" / place / f"s{study}.txt"
        for path in (image, report):
            path.parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(image, quality=95)
        report.write_text(f"FINDINGS: The lungs are {WORD}.\n", encoding="utf-8")
        ids = {"dicom_id": dicom, "subject_id": subject, "study_id": study}
        rows.append(ids | {"ViewPosition": "PA", "split": "train", "ViewCodeSequence_CodeMeaning": ""})
    for kind in ("metadata", "split"):
        with gzip.open(bound / "mimic-cxr-jpg" / f"mimic-cxr-2.0.0-{kind}.csv.gz", "wt") as file:
            pd.DataFrame(rows).drop(columns="split" if kind == "metadata" else "ViewPosition").to_csv(file, index=False)
    asked = tmp_path / "data" / "asked"
    (asked / "VQA_RAD Image Folder").mkdir(parents=True)
    questions = []
    for number in range(101):
        name = f"synpic{number}.jpg"
        noise(STUDIES - 1 + number).save(asked / "VQA_RAD Image Folder" / name, quality=95)  # the first is bound's last
        questions.append({"qid": number, "phrase_type": "test_freeform" if number == 100 else "freeform",
                          "image_name": name, "question": "is it?", "answer": "yes",
                          "answer_type": "CLOSED"})  # fmt: skip
    (asked / "VQA_RAD Dataset Public.json").write_text(json.dumps(questions), encoding="utf-8")
    yield tmp_path
    manifests.load.cache_clear()


def image_of(root: Path, number: int) -> Path:
    return next((root / "data" / "bound").rglob(f"{WORD}-d{number}.jpg"))


def test_nothing_but_counts_leaves_the_folder_of_a_credentialed_set(root: Path, capsys, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    image_of(root, 7).write_bytes(image_of(root, 8).read_bytes()[:200])
    kept_back = root / "data" / ".amif" / "check" / "bound.txt"
    report = next((root / "data" / "bound").rglob(f"s{WORD}s3.txt"))
    text = report.read_text(encoding="utf-8")
    report.unlink()
    assert cli.main(["data-check", "--scale", "small", "--datasets", "bound"]) == 1
    checked = check.check(["bound"])
    (root / "results").mkdir(exist_ok=True)
    checked.to_csv(root / "results" / "check.csv", index=False)
    with pytest.raises(InputError, match="bound: records is changed: cannot be read; see ") as caught:
        check.require(checked)
    assert WORD not in str(caught.value)
    assert report.name in kept_back.read_text(encoding="utf-8") and str(kept_back) in checked["detail"].iloc[-1]
    report.write_text(text, encoding="utf-8")
    check.require(check.check(["bound"]))
    shown = decontaminate.counts("bound", ("asked",), stored_side=36)
    assert (shown["alike_by_hash"], shown["groups_dropped"], shown["images_left"]) == (1, 1, STUDIES - 2)
    hits = pd.read_csv(root / "data" / ".amif" / "decontamination" / "bound.csv")
    assert hits["image"].tolist() == [f"{WORD}-d{STUDIES - 1}.jpg"]
    written = [path for path in (root / "results").rglob("*") if path.is_file()]
    assert not [path for path in written if WORD in path.name or WORD.encode() in path.read_bytes()]
    assert WORD not in "".join(capsys.readouterr()) + caplog.text
