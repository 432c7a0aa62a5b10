"""What must not be passed on stays private: sets with a marker in every file name, id, text and image are sent through
notebook 01, check, decontamination, baselines, report and reference results, and the marker is then looked for in every
file that they wrote and in what they printed. A few images that cannot be decoded stop nothing, whatever the set."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import check, decontaminate, images, manifests
from amif_lib.reporting import layout, reference, report, tables
from tests import fabricated
from tests.conftest import ROOT, python

WORD = "zqxmarker"  # in every text, answer and id of the marked sets
COLOUR = (255, 0, 144)  # every image of theirs is a plane of it
SPEC = {"stage": "stage1", "scale": "demo", "teacher": {"source": "trained", "data": ["marked_studies"]},
        "data": {"pretrain": ["marked_studies"], "tokenizer_questions": ["marked_questions"],
                 "decontaminate_against": ["marked_questions"]}}  # fmt: skip


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
    content = yaml.safe_load((ROOT / "data_manifests" / f"{like}.yaml").read_text(encoding="utf-8"))
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
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    make_sets(tmp_path / "data", clone / "data_manifests")
    (tmp_path / "run.json").write_text(json.dumps(SPEC), encoding="utf-8")
    results = tmp_path / "results"
    notebook = "notebooks/01_data_and_manifests.ipynb"
    given = ("--out", str(results / "demo" / notebook), "-p", "spec", str(tmp_path / "run.json"))
    folders = {"AMIF_RESULTS": str(results), "DATA_ROOT": str(tmp_path / "data")}
    done = python("-m", "amif_lib.app.run_notebook", notebook, *given, cwd=clone, **folders)
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
        fabricated.plan("table4")
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


def test_nothing_but_counts_leaves_the_folder_of_a_credentialed_set(tmp_path, monkeypatch, capsys, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("AMIF_PREPARED")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(paths, "MANIFESTS", tmp_path / "manifests")
    monkeypatch.setattr(images, "MOST_BAD", 0.2)
    manifests.load.cache_clear()
    (tmp_path / "manifests").mkdir()
    make_sets(tmp_path / "data", tmp_path / "manifests")
    listed = tmp_path / "data" / "marked_studies" / "captions.jsonl"
    text = listed.read_text(encoding="utf-8")
    listed.write_text(text.replace('"split": "train"', '"split": ""', 1), encoding="utf-8")
    assert cli.main(["data-check", "--scale", "small", "--datasets", "marked_studies"]) == 1
    checked = check.check(["marked_studies"])
    (tmp_path / "results").mkdir()
    checked.to_csv(tmp_path / "results" / "check.csv", index=False)
    with pytest.raises(InputError, match="marked_studies: records is changed: cannot be read; see ") as caught:
        check.require(checked)
    kept_back = tmp_path / "data" / ".amif" / "check" / "marked_studies.txt"
    assert WORD not in str(caught.value) and str(kept_back) in str(caught.value)
    assert WORD in kept_back.read_text(encoding="utf-8")
    listed.write_text(text, encoding="utf-8")
    check.require(check.check(["marked_studies"]))
    (listed.parent / "images" / f"{WORD}_synpic1.png").write_bytes(b"no image")  # is left out, and stops nothing
    shown = decontaminate.counts("marked_studies", ("marked_questions",), stored_side=36)
    assert (shown["shared_ids"], shown["groups_dropped"], shown["images_left"]) == (1, 1, 4)
    hits = pd.read_csv(tmp_path / "data" / ".amif" / "decontamination" / "marked_studies.csv")
    assert hits["image"].tolist() == [f"{WORD}_synpic3.png"]
    assert marked_files(tmp_path / "results") == set()
    assert WORD not in "".join(capsys.readouterr()) + caplog.text
    manifests.load.cache_clear()
