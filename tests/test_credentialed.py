"""Sets that need a credential: a set in MIMIC-CXR's layout with a marker in every file name, id and text is checked,
decontaminated and embedded, and the marker is then looked for under `results/` and in what was printed and logged.
A few images that cannot be decoded stop nothing, whatever the set."""

from __future__ import annotations

import gzip
import json
import logging
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
from amif_lib.data import check, data_figures, decontaminate, images, manifests
from amif_lib.data import load as datasets
from amif_lib.experiments import rows as experiments
from amif_lib.methods.amif import teacher as teachers
from amif_lib.methods.amif.settings import teacher_id

CLONE = Path(__file__).resolve().parents[1]
WORD = "zqxmarker"
STUDIES = 120


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9)).astype(np.uint8)).resize((40, 40))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def write_manifest(folder: Path, name: str, like: str, **changes: object) -> None:
    content = yaml.safe_load((CLONE / "data_manifests" / f"{like}.yaml").read_text(encoding="utf-8"))
    for key in ("files", "trees", "splits", "variants", "downloads", "evidence"):
        content.pop(key, None)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | {"name": name, "folder": name} | changes), "utf-8")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
        rows.append(
            {"dicom_id": dicom, "subject_id": subject, "study_id": study, "ViewPosition": "PA", "split": "train"}
        )
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
                          "image_name": name, "question": "is it?", "answer": "yes", "answer_type": "CLOSED"})  # fmt: skip
    (asked / "VQA_RAD Dataset Public.json").write_text(json.dumps(questions), encoding="utf-8")
    yield tmp_path
    manifests.load.cache_clear()


def image_of(root: Path, number: int) -> Path:
    return next((root / "data" / "bound").rglob(f"{WORD}-d{number}.jpg"))


def images_line(name: str) -> tuple[str, str]:
    table = check.check([name]).set_index("item")
    return table.loc["images decode", "status"], table.loc["images decode", "detail"]


def marked(folder: Path) -> list[Path]:
    """What is named or holds the marker under a folder."""
    return [
        path
        for path in folder.rglob("*")
        if WORD in path.name or (path.is_file() and WORD.encode() in path.read_bytes())
    ]


def test_nothing_but_counts_leaves_the_folder_of_a_credentialed_set(root: Path, capsys, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    cut(image_of(root, 7))
    kept_back = root / "data" / ".amif" / "check" / "bound.txt"
    report = next((root / "data" / "bound").rglob(f"s{WORD}s3.txt"))
    text = report.read_text(encoding="utf-8")
    for missing in (True, False):
        report.unlink() if missing else report.write_text(text, encoding="utf-8")
        assert cli.main(["data-check", "--scale", "small", "--datasets", "bound"]) == int(missing)
        checked = check.check(["bound"])
        (root / "results").mkdir(exist_ok=True)
        checked.to_csv(root / "results" / "check.csv", index=False)
        if missing:
            with pytest.raises(
                InputError, match=r"bound: records is changed: cannot be read \(1 error\); see "
            ) as caught:
                check.require(checked)
            assert WORD not in str(caught.value)
        else:
            check.require(checked)
        name = report.name if missing else f"{WORD}-d7.jpg"
        assert name in kept_back.read_text(encoding="utf-8") and str(kept_back) in checked["detail"].iloc[-1]
    picture, withheld = data_figures.store_samples("bound", root / "results" / "small" / "data")
    assert picture is None and "no sample is drawn" in withheld[0]
    shown = decontaminate.counts("bound", ("asked",), stored_side=36)
    assert (shown["alike_by_hash"], shown["groups_dropped"], shown["images_left"]) == (1, 1, STUDIES - 2)
    hits = pd.read_csv(root / "data" / ".amif" / "decontamination" / "bound.csv")
    assert hits["image"].tolist() == [f"{WORD}-d{STUDIES - 1}.jpg"]
    assert marked(root / "results") == [] and list((root / "results").rglob("*.png")) == []
    assert WORD not in "".join(capsys.readouterr()) + caplog.text
    image_of(root, 7).write_bytes(image_of(root, 8).read_bytes())
    assert images_line("bound")[0] == "ok" and not kept_back.exists()  # mended: the old list goes


def test_one_undecodable_image_of_120_stops_nothing_and_three_do(root: Path) -> None:
    cut(image_of(root, 7))
    status, detail = images_line("bound")
    assert status == "partial" and detail.startswith("1 of 120 images cannot be decoded; see ")
    check.require(check.check(["bound"]))
    assert len(datasets.load_studies("bound", stored_side=36)) == STUDIES - 1
    assert decontaminate.counts("bound", ("asked",), stored_side=36)["images_left"] == STUDIES - 2
    assert (
        len(decontaminate.find("bound", datasets.load_studies("bound"), ("asked",))) == 1
    )  # nor without the prepared images
    cut(image_of(root, 8)), cut(image_of(root, 9))
    table = check.check(["bound"])
    assert images_line("bound")[1].startswith("3 of 120 ")
    with pytest.raises(InputError, match=r"images decode is changed: 3 of 120 images"):
        check.require(table)


def test_any_bad_image_of_a_test_question_is_too_many(root: Path) -> None:
    folder = root / "data" / "asked" / "VQA_RAD Image Folder"
    cut(folder / "synpic0.jpg")
    status, detail = images_line("asked")
    assert status == "partial" and detail.startswith("1 of 101 images cannot be decoded: synpic0.jpg (truncated")
    assert (
        len(decontaminate.find("bound", datasets.load_studies("bound"), ("asked",))) == 0
    )  # the shared one cannot be compared
    assert folder / "synpic0.jpg" not in data_figures.pick("asked")[0]
    picture = noise(STUDIES - 1)
    picture.save(folder / "synpic0.jpg", quality=95)
    cut(folder / "synpic100.jpg")
    status, detail = images_line("asked")
    assert status == "changed" and "1 of 101 images cannot be decoded, 1 of validation or test questions" in detail


def test_numbers_do_not_depend_on_the_number_of_cores(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(image_of(root, 5))
    files = datasets.image_paths("bound")
    found = []
    for cores in (1, 5):
        monkeypatch.setattr(images.os, "cpu_count", lambda cores=cores: cores)
        shutil.rmtree(root / "data" / ".amif", ignore_errors=True)
        made, bad = decontaminate.hashes(files, "bound")
        found.append((made.tolist(), bad, images.verify(files)))
    assert found[0] == found[1] and found[0][1] == {files.index(image_of(root, 5))}


def test_a_teachers_cache_lies_beside_the_data_and_goes_with_its_run_folder(root: Path) -> None:
    run = experiments.RunSpec(stage="stage1", scale="demo", teacher={}, data={"pretrain": ("bound",)})
    folder = teachers.cache(run)
    assert folder == root / "data" / ".amif" / "teachers" / teacher_id(run)
    other = folder.with_name("0123")
    for made in (folder, other, paths.run_dir(folder.name)):
        made.mkdir(parents=True)
        (made / "metrics.json").write_text("{}", encoding="utf-8")
