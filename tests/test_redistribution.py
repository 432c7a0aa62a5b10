"""What must not be passed on stays private: a set that forbids it, with a marker in every text and image, is sent
through notebook 01, baselines, report and reference results, and then looked for in every file that they wrote."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import data_figures, manifests, redistribution
from amif_lib.data import load as datasets
from amif_lib.experiments import rows as experiments
from amif_lib.reporting import reference, report, tables
from amif_lib.scoring import baselines
from tests import fabricated

CLONE = Path(__file__).resolve().parents[1]
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


def make_sets(data: Path, cards: Path, allowed: bool) -> None:
    """A pre-training set and a question set with the marker everywhere; they share a picture, so one case is dropped."""
    picture = Image.new("RGB", (64, 64), COLOUR)
    studies, questions = data / "marked_studies", data / "marked_questions"
    (studies / "images").mkdir(parents=True)
    (questions / "VQA_RAD Image Folder").mkdir(parents=True)
    lines = []
    for number in range(6):
        name = f"{WORD}_synpic{number}.png"
        picture.save(studies / "images" / name)
        lines.append({"case_id": f"{WORD}{number}", "image_id": f"{WORD}-{number}", "synpic_id": f"synpic{number}",
                      "file": f"images/{name}", "split": "train", "caption": f"A {WORD} of the lung, {number}."})  # fmt: skip
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
    for name, like in (("marked_studies", "medpix2"), ("marked_questions", "vqa_rad")):
        content = yaml.safe_load((CLONE / "data_manifests" / f"{like}.yaml").read_text(encoding="utf-8"))
        for key in ("files", "trees", "splits", "variants", "downloads", "evidence"):
            content.pop(key, None)
        content |= {"name": name, "folder": name, "title": f"Marked set ({name})"}
        content["redistribution"] = {"fixtures": False, "images": allowed, "texts": allowed}
        (cards / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.parametrize("allowed", [False, True])
def test_notebook_of_the_data_shows_only_what_it_may(tmp_path: Path, allowed: bool) -> None:
    """In a copy of the clone with two more manifests. Where they allow it, the marker is found: the search works."""
    pytest.importorskip("papermill")
    clone = tmp_path / "clone"
    for name in ("amif_lib", "notebooks", "data_manifests"):
        shutil.copytree(CLONE / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    make_sets(tmp_path / "data", clone / "data_manifests", allowed)
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
    private = found - public
    assert "private/decontamination/marked_studies.csv" in private
    if allowed:
        pictures = {f"demo/data/samples_{name}.png" for name in ("marked_studies", "marked_questions")}
        assert public >= {f"demo/{notebook}", "demo/data/augmentation.png", *pictures}
    else:
        assert public == set()
        assert "private/demo/data/samples_marked_studies.png" in private  # drawn, for the user's own eyes
        text = (results / "demo" / notebook).read_text(encoding="utf-8")
        for name in ("marked_studies", "marked_questions"):
            for kind in redistribution.KINDS:
                assert f"Marked set ({name}): {kind} not shown" in text
        assert WORD not in done.stdout + done.stderr


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
            changed = found.redistribution.model_copy(update={"texts": allowed, "images": allowed})
            return found.model_copy(update={"redistribution": changed})

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
    (tables.write("table4", "demo") if allowed else report.write("demo"))  # the control can do without drawing
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


def test_baselines_of_a_withheld_set_are_private_and_read_again(marked_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    results = marked_runs(False)
    first = baselines.stored("demo", "phantom_vqa_rad", "default")["nearest_question"]
    assert (
        list((results / "private" / "demo" / "baselines").glob("*.parquet"))
        and not (results / "demo" / "baselines").exists()
    )
    monkeypatch.setattr(datasets, "load_questions", None)  # not called any more
    again = baselines.stored("demo", "phantom_vqa_rad", "default")["nearest_question"]
    assert first["prediction"].tolist() == again["prediction"].tolist()


def test_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    assert redistribution.may_show("vqa_rad", "images") and not redistribution.may_show("medpix2", "texts")
    assert redistribution.withheld(["vqa_rad", "mimic_cxr", "medpix2"], "images") == ["medpix2", "mimic_cxr"]
    with pytest.raises(InputError, match="'pictures' is not one of images, texts"):
        redistribution.may_show("vqa_rad", "pictures")
    with pytest.raises(InputError, match="no manifest"):
        redistribution.may_show("unknown_set", "images")
    wanted = tmp_path / "small" / "figures"
    assert redistribution.folder(wanted, images=["vqa_rad"], texts=["phantom_vqa_rad"]) == wanted
    private = tmp_path / "private" / "small" / "figures"
    assert redistribution.folder(wanted, images=["vqa_rad", "medpix2"]) == private
    assert redistribution.folder(wanted, texts=["mimic_cxr"]) == private
    with pytest.raises(InputError, match="not under the results folder"):
        redistribution.folder(tmp_path.parent, texts=["mimic_cxr"])


def test_texts_may_be_withheld_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images allowed, texts not: the picture is public and has no captions."""
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    manifest = manifests.load("vqa_rad")
    drawn: list[object] = []
    plain = data_figures.samples
    monkeypatch.setattr(data_figures, "pick", lambda name, number: ([file], [WORD]))
    monkeypatch.setattr(
        data_figures, "samples", lambda files, captions: drawn.append(captions) or plain(files, captions)
    )
    for images, texts, captions in ((True, True, [WORD]), (True, False, ()), (False, False, [WORD])):
        allowed = manifest.redistribution.model_copy(update={"images": images, "texts": texts})
        monkeypatch.setattr(
            manifests, "load", lambda name, allowed=allowed: manifest.model_copy(update={"redistribution": allowed})
        )
        path, withheld = data_figures.store_samples("vqa_rad", tmp_path / "small" / "data")
        assert path.is_file() and drawn[-1] == captions and len(withheld) == (not images) + (not texts)
        assert path.is_relative_to(tmp_path / "private") == (not images)


def test_run_folders_carry_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    free = experiments.load_spec("demo/table4/6")[0]
    bound = experiments.load_spec("small/table1/random")[0]  # its stage 1 reads MedPix-2.0
    for run in (free, bound):
        (run.directory / "model").mkdir(parents=True)
        redistribution.mark(run)
    assert redistribution.notice(free) == "" and not list(free.directory.rglob("*.txt"))
    for place in (bound.directory, bound.directory / "model"):
        text = (place / redistribution.NOTICE).read_text(encoding="utf-8")
        assert "MedPix-2.0" in text and "VQA-RAD:" not in text
