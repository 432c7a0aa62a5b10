"""Manifests, and the check of what lies on disk: checksums against an own computation, absent or changed data."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import check, manifests
from amif_lib.experiments import identity
from amif_lib.experiments import rows as experiments
from tests.tiny_set import ANNOTATIONS, IMAGES, TinySet

PAPER_SETS = ["pathvqa", "slake", "vqa_med_2019", "vqa_rad"]
QUESTION_SETS = [*PAPER_SETS, "medpix2_questions"]
GENERATED = ["phantom_medicat", "phantom_mimic_cxr", "phantom_roco", "phantom_shapes", "phantom_teacher"]
GENERATED += ["phantom_transfer", *(f"phantom_{name}" for name in PAPER_SETS)]
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
        assert {name for run in runs for name in identity.data_sets(run)} <= set(KNOWN)


def test_what_does_not_describe_the_data_itself_is_not_in_its_digest(tiny: TinySet) -> None:
    digest = manifests.data_digest("tiny")
    tiny.write(quirks=["tabs"], citation="another", variants=[], mirrors=[])
    assert manifests.data_digest("tiny") == digest
    tiny.write(splits=[])
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


# --- a small set on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    made = TinySet(tmp_path, monkeypatch)
    made.place()
    return made


def status(name: str = "tiny") -> dict[str, str]:
    table = check.check([name])
    assert set(table["data_set"]) == {name} and not table["detail"].str.contains("\n").any()
    return dict(zip(table["item"], table["status"], strict=True))


@pytest.mark.parametrize("name", ["vqa_rad", "pathvqa", "roco", "medicat", "mimic_cxr"])
def test_an_empty_folder_holds_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever the manifest records: files, folders of images, downloads, or nothing but counts."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert check.presence(name)[0] == "missing"
    (tmp_path / name).mkdir()
    assert check.presence(name)[0] == "missing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "colour: Extra inputs"),
        ({"files": [{"path": "a", "bytes": 1, "sha256": "xyz"}]}, "files.0.sha256"),
        ({"name": "other"}, "name: 'other' must be 'tiny'"),
    ],
)
def test_bad_manifest_names_the_field(tiny: TinySet, changes: dict, message: str) -> None:
    tiny.write(**changes)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        manifests.load("tiny")
    assert "tiny.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_complete_set_is_ok(tiny: TinySet, capsys) -> None:
    found = status()  # its optional Readme.docx is absent
    assert set(found.values()) == {"ok"} and len(found) == 3 + 4 + 3 + 1
    assert manifests.location("tiny") == tiny.home
    check.require(check.check(["tiny"]))
    assert cli.main(["data-check", "--datasets", "tiny"]) == 0
    assert re.search(r"\| tiny +\| VQA_RAD Image Folder +\| ok ", capsys.readouterr().out)


def test_changes_are_found(tiny: TinySet, capsys) -> None:
    images, annotations = tiny.home / IMAGES, tiny.home / ANNOTATIONS
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
    checked = check.check(["tiny"])
    check.require(checked[checked["status"] != "changed"])  # where records may lack images, part of a set is enough
    assert found["train: questions"] == "ok"  # annotations alone have every count
    detail = check.check(["tiny"]).set_index("item").loc["records", "detail"]
    assert "b.jpg: image of question" in detail and "2 of 3 images found under" in detail
    assert check.presence("tiny")[0] == "found"  # at a glance
    annotations.unlink()
    assert status()[annotations.name] == "missing"
    state, said = check.presence("tiny")
    assert state == "partly there" and "VQA_RAD Dataset Public.json is missing" in said
    shutil.rmtree(tiny.home)
    assert status() == {"folder": "missing"}


def test_real_sets_are_as_recorded(real_data: Path) -> None:
    table = check.check(["vqa_rad", "medpix2"])
    assert set(table["status"]) == {"ok"}, table[table["status"] != "ok"]


@pytest.mark.parametrize("name", [f"phantom_{name}" for name in PAPER_SETS])
def test_generated_set_is_ok_and_large_enough(name: str) -> None:
    """A demo question set as its manifest describes it (about 5 s), with at least 300 test questions."""
    table = check.check([name])
    assert set(table["status"]) == {"ok"} and "images of records" in set(table["item"])
    assert next(split.questions for split in manifests.load(name).splits if split.name == "test") >= 300
