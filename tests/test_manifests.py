"""Manifests, and the check of what lies on disk: checksums against an own computation, absent or changed data."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import check, manifests
from amif_lib.experiments import rows as experiments

CLONE = Path(__file__).parents[1]
PAPER_SETS = ["pathvqa", "slake", "vqa_med_2019", "vqa_rad"]
QUESTION_SETS = [*PAPER_SETS, "medpix2_questions"]
GENERATED = ["phantom_medicat", "phantom_mimic_cxr", "phantom_roco", "phantom_shapes", "phantom_teacher"]
GENERATED += [f"phantom_{name}" for name in PAPER_SETS]
KNOWN = [*GENERATED, *QUESTION_SETS, "medicat", "medpix2", "mimic_cxr", "roco"]


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    manifests.load.cache_clear()
    yield
    manifests.load.cache_clear()


# --- what the manifests say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_every_manifest_loads_has_a_card_and_says_where_the_set_comes_from(name: str) -> None:
    manifest = manifests.load(name)
    card = (paths.MANIFESTS / f"{name}.md").read_text(encoding="utf-8")
    assert manifest.title in card and manifest.licence.text.split(":")[0].split(",")[0] in card
    assert bool(manifest.generator) == (manifest.access.level == "generated")
    if not manifest.generator:
        assert manifest.access.steps and manifest.homepage and manifest.licence.url.startswith("https://")
    free = re.match(r"(MIT|CC0|CC-BY|CC BY|questions: MIT)", manifest.licence.text)
    assert free or not any(manifest.redistribution.values())
    recorded = {entry.path: (entry.bytes, entry.sha256) for entry in manifest.files}
    for download in manifest.downloads:
        assert download.target not in recorded or recorded[download.target] == (download.bytes, download.sha256)


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_counts_of_splits_and_variants_agree(name: str) -> None:
    manifest = manifests.load(name)
    questions = {split.name: split.questions for split in manifest.splits}
    default = manifest.variants[0]
    assert {"train": default.train, "val": default.val, "test": default.test} == {
        split: questions.get(split) for split in ("train", "val", "test")
    }
    assert questions["all"] == sum(n for split, n in questions.items() if split != "all")


def test_generated_sets_share_no_case_and_specs_name_only_known_sets() -> None:
    """A case follows from seed and number, so that different seeds are enough."""
    assert set(KNOWN) == set(manifests.names())
    seeds = [manifests.load(name).generator.seed for name in GENERATED]
    assert len(seeds) == len(set(seeds))
    for scale in ("demo", "small", "paper"):
        rows = [row for table in experiments.tables_of(scale) for row in experiments.rows(table, scale)]
        runs = [run for row in rows for last in row.runs for run in last.trainings()]
        assert {name for run in runs for name in experiments.data_sets(run)} <= set(KNOWN)


def test_what_does_not_describe_the_data_itself_is_not_in_its_digest(own_set: Path) -> None:
    digest = manifests.data_digest("tiny")
    rewrite(quirks=["tabs"], citation="another", variants=[], mirrors=[])
    assert manifests.data_digest("tiny") == digest
    rewrite(splits=[])
    assert manifests.data_digest("tiny") != digest


def test_what_may_be_shown_decides_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    assert manifests.may_show("vqa_rad", "images") and not manifests.may_show("medpix2", "texts")
    assert manifests.withheld(["vqa_rad", "mimic_cxr", "medpix2"], "images") == ["medpix2", "mimic_cxr"]
    with pytest.raises(InputError, match="no manifest"):
        manifests.may_show("unknown_set", "images")
    wanted, private = tmp_path / "small" / "figures", tmp_path / "private" / "small" / "figures"
    assert manifests.folder_for(wanted, images=["vqa_rad"], texts=["phantom_vqa_rad"]) == wanted
    assert manifests.folder_for(wanted, images=["vqa_rad", "medpix2"]) == private
    assert manifests.folder_for(wanted, texts=["mimic_cxr"]) == private


# --- a set of two folders --------------------------------------------------------------------------------------------


@pytest.fixture
def own_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small question set with its manifest, in folders of its own."""
    folder = tmp_path / "data root" / "tiny"
    images = folder / "VQA_RAD Image Folder"
    images.mkdir(parents=True)
    for i, name in enumerate(("b.jpg", "a.jpg", "Z.jpg")):
        Image.new("L", (9, 9), 40 * i).save(images / name)
    record = {"question": "Is it?", "answer_type": "CLOSED"}
    asked = (("a.jpg", "Yes", "freeform"), ("b.jpg", "ct", "para"), ("Z.jpg", "no", "test_freeform"))
    content = [{**record, "qid": i, "image_name": name, "answer": answer, "phrase_type": kind}
               for i, (name, answer, kind) in enumerate(asked)]  # fmt: skip
    annotations = folder / "VQA_RAD Dataset Public.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    manifest = yaml.safe_load((CLONE / "data_manifests" / "vqa_rad.yaml").read_text(encoding="utf-8"))
    digest = hashlib.sha256(annotations.read_bytes()).hexdigest()
    names = sorted((path.name for path in images.iterdir()), key=str.encode)  # bytewise: capitals first
    lines = "".join(f"{hashlib.sha256((images / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    size = sum((images / name).stat().st_size for name in names)
    manifest.update(
        name="tiny", folder="tiny", variants=[{"name": "official1797", "rule": "all", "train": 2, "test": 1}],
        files=[{"path": annotations.name, "bytes": annotations.stat().st_size, "sha256": digest},
               {"path": "Readme.docx", "bytes": 3, "sha256": "0" * 64, "required": False, "role": "documentation"}],
        trees=[{"path": images.name, "count": 3, "bytes": size, "sha256": hashlib.sha256(lines.encode()).hexdigest()}],
        splits=[{"name": "train", "questions": 2, "images": 2, "closed_field": 2, "closed_yes_no": 1},
                {"name": "test", "questions": 1, "images": 1, "distinct_answers": 1}],
    )  # fmt: skip
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "tiny.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    monkeypatch.setattr(paths, "MANIFESTS", tmp_path / "manifests")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data root"))
    return folder


def rewrite(**changes) -> None:
    path = paths.MANIFESTS / "tiny.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    manifests.load.cache_clear()


def status(name: str = "tiny") -> dict[str, str]:
    table = check.check([name])
    assert set(table["data_set"]) == {name} and not table["detail"].str.contains("\n").any()
    return dict(zip(table["item"], table["status"], strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "colour: Extra inputs"),
        ({"files": [{"path": "a", "bytes": 1, "sha256": "xyz"}]}, "files.0.sha256"),
        ({"name": "other"}, "name: 'other' must equal"),
    ],
)
def test_bad_manifest_names_the_field(own_set: Path, changes: dict, message: str) -> None:
    rewrite(**changes)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        manifests.load("tiny")
    assert "tiny.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_complete_set_is_ok(own_set: Path, capsys) -> None:
    found = status()  # its optional Readme.docx is absent
    assert set(found.values()) == {"ok"} and len(found) == 3 + 4 + 3 + 1
    assert manifests.location("tiny") == own_set
    check.require(check.check(["tiny"]))
    assert cli.main(["data-check", "--datasets", "tiny"]) == 0
    assert re.search(r"\| tiny +\| VQA_RAD Image Folder +\| ok ", capsys.readouterr().out)


def test_changes_are_found(own_set: Path, capsys) -> None:
    images, annotations = own_set / "VQA_RAD Image Folder", own_set / "VQA_RAD Dataset Public.json"
    good = annotations.read_text(encoding="utf-8")
    annotations.write_text(good.replace("Is it?", "Is ot?"), encoding="utf-8")  # same length
    assert status()[annotations.name] == "changed"
    annotations.write_text(good.replace('"Yes"', '"ct"'), encoding="utf-8")
    wrong = [item for item, found in status().items() if found != "ok"]
    assert wrong == [annotations.name, "train: closed_yes_no"]
    assert cli.main(["data-check", "--datasets", "tiny"]) == 1 and "2 checks failed" in capsys.readouterr().err
    annotations.write_text(good, encoding="utf-8")
    Image.new("L", (9, 9), 200).save(images / "a.jpg")
    assert status()[images.name] == "changed"
    with pytest.raises(InputError, match=r"tiny: VQA_RAD Image Folder is changed.*tiny.yaml .1 lines"):
        check.require(check.check(["tiny"]))
    (images / "b.jpg").unlink()
    found = status()
    assert (found[images.name], found["records"]) == ("partial", "changed")
    assert found["train: questions"] == "ok"  # annotations alone have every count
    detail = check.check(["tiny"]).set_index("item").loc["records", "detail"]
    assert "b.jpg: image of question" in detail and "2 of 3 images found under" in detail
    assert check.presence("tiny")[0] == "found"  # at a glance
    annotations.unlink()
    assert status()[annotations.name] == "missing"
    state, said = check.presence("tiny")
    assert state == "partly there" and "VQA_RAD Dataset Public.json is missing" in said
    shutil.rmtree(own_set)
    assert status() == {"folder": "missing"}


def test_real_sets_are_as_recorded(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    table = check.check(["vqa_rad", "medpix2"])
    assert set(table["status"]) == {"ok"}, table[table["status"] != "ok"]


@pytest.mark.parametrize("name", [f"phantom_{name}" for name in PAPER_SETS])
def test_generated_set_is_ok_and_large_enough(name: str) -> None:
    """A demo question set as its manifest describes it (about 5 s), with at least 300 test questions."""
    table = check.check([name])
    assert set(table["status"]) == {"ok"} and "images of records" in set(table["item"])
    assert next(split.questions for split in manifests.load(name).splits if split.name == "test") >= 300
