"""Manifests: strict parsing, checksums against an own computation, and the status of data that is absent or changed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from amif_lib.app import cli, doctor
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import check as data_check
from amif_lib.data import check_page as data_page
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.scoring import leaks

CLONE = Path(__file__).parents[1]
QUESTION_SETS = ["pathvqa", "slake", "vqa_med_2019", "vqa_rad"]
PHANTOM_QUESTIONS = [f"phantom_{name}" for name in QUESTION_SETS]
PRETRAINING = [
    "medicat",
    "medpix2",
    "mimic_cxr",
    "phantom_medicat",
    "phantom_mimic_cxr",
    "phantom_roco",
    "phantom_teacher",
    "roco",
]
KNOWN = [*PRETRAINING, *PHANTOM_QUESTIONS, *QUESTION_SETS]


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    manifests.load.cache_clear()
    yield
    manifests.load.cache_clear()


def test_every_manifest_loads_and_has_a_card() -> None:
    assert set(KNOWN) <= set(manifests.names())
    for name in manifests.names():
        manifest = manifests.load(name)
        card = (paths.MANIFESTS / f"{name}.md").read_text(encoding="utf-8")
        assert manifest.title in card and manifest.licence.text.split(":")[0].split(",")[0] in card
        assert bool(manifest.generator) == (manifest.access.level == "generated")
        if manifest.access.level not in ("generated",):
            assert manifest.access.steps and manifest.homepage


def test_only_free_sets_may_be_shown() -> None:
    """Images and texts of sets without a free licence stay out of figures and executed notebooks."""
    for name in manifests.names():
        manifest = manifests.load(name)
        free = bool(re.match(r"(MIT|CC0|CC-BY|CC BY)", manifest.licence.text))
        assert free or not (
            manifest.redistribution.images or manifest.redistribution.texts or manifest.redistribution.fixtures
        )


def test_specs_name_only_known_sets() -> None:
    for scale in ("demo", "small", "paper"):
        for table in experiments.tables_of(scale):
            for row in experiments.rows(table, scale):
                for tip in row.runs:
                    for run in tip.lineage():
                        assert set(experiments.data_sets(run)) <= set(manifests.names())


@pytest.fixture
def own_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small question set with its manifest, in folders of its own."""
    folder = tmp_path / "data root" / "tiny"
    images = folder / "VQA_RAD Image Folder"
    images.mkdir(parents=True)
    for i, name in enumerate(("b.jpg", "a.jpg", "Z.jpg")):
        Image.new("L", (9, 9), 40 * i).save(images / name)
    record = {"phrase_type": "freeform", "question": "Is it?", "answer_type": "CLOSED"}
    content = [{**record, "qid": i, "image_name": name, "answer": answer, "phrase_type": kind}
               for i, (name, answer, kind) in enumerate((("a.jpg", "Yes", "freeform"), ("b.jpg", "ct", "para"),
                                                          ("Z.jpg", "no", "test_freeform")))]  # fmt: skip
    annotations = folder / "VQA_RAD Dataset Public.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    manifest = yaml.safe_load((CLONE / "data_manifests" / "vqa_rad.yaml").read_text(encoding="utf-8"))
    digest = hashlib.sha256(annotations.read_bytes()).hexdigest()
    names = sorted((path.name for path in images.iterdir()), key=str.encode)
    lines = "".join(f"{hashlib.sha256((images / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert names == ["Z.jpg", "a.jpg", "b.jpg"]  # bytewise: capitals first
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


def status(name: str = "tiny") -> dict[str, str]:
    table = manifests.check(name)
    assert set(table["data_set"]) == {name} and not table["detail"].str.contains("\n").any()
    return dict(zip(table["item"], table["status"], strict=True))


def test_complete_set_is_ok(own_set: Path) -> None:
    found = status()  # its optional Readme.docx is absent
    assert set(found.values()) == {"ok"} and len(found) == 3 + 4 + 3 + 2 + 1 + 1  # the last: leakage, none recorded
    assert manifests.location("tiny") == own_set
    manifests.require(manifests.check("tiny"))


def test_digest_is_what_sha256sum_and_sort_give(own_set: Path) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum on this machine")
    script = "LC_ALL=C; export LC_ALL; sha256sum * | sort -k 2 | sha256sum"
    shell = subprocess.run(
        script, shell=True, cwd=own_set / "VQA_RAD Image Folder", capture_output=True, text=True, check=True
    )
    assert manifests.tree_digest(own_set / "VQA_RAD Image Folder")[2] == shell.stdout.split()[0]


def test_changes_are_found(own_set: Path) -> None:
    images, annotations = own_set / "VQA_RAD Image Folder", own_set / "VQA_RAD Dataset Public.json"
    good = annotations.read_text(encoding="utf-8")
    annotations.write_text(good.replace("Is it?", "Is ot?"), encoding="utf-8")  # same length
    assert status()[annotations.name] == "changed"
    annotations.write_text(good.replace('"Yes"', '"ct"'), encoding="utf-8")
    found = status()
    assert (found[annotations.name], found["train: closed_yes_no"], found["train: questions"]) == (
        "changed",
        "changed",
        "ok",
    )
    annotations.write_text(good, encoding="utf-8")
    Image.new("L", (9, 9), 200).save(images / "a.jpg")
    assert status()[images.name] == "changed"
    cut = (images / "b.jpg").read_bytes()
    (images / "b.jpg").write_bytes(cut[: len(cut) // 2])
    table = manifests.check("tiny")
    assert table.loc[table["detail"].str.contains("b.jpg"), "status"].tolist() == ["changed"]
    with pytest.raises(InputError, match=r"tiny: VQA_RAD Image Folder is changed.*tiny.yaml .1 more line"):
        manifests.require(table)
    (images / "b.jpg").unlink()
    found = status()
    assert (found[images.name], found["records"]) == ("partial", "changed")
    annotations.unlink()
    assert status()[annotations.name] == "missing"
    shutil.rmtree(own_set)
    assert status() == {"folder": "missing"}
    with pytest.raises(InputError, match=r"tiny.*set DATA_ROOT to the folder that holds tiny/"):
        manifests.location("tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "colour: Extra inputs"),
        ({"reader": "dicom"}, "reader: Input should be"),
        ({"files": [{"path": "a", "bytes": 1, "sha256": "xyz"}]}, "files.0.sha256"),
        ({"name": "other"}, "name: 'other' must equal"),
        ({"redistribution": {"pictures": True}}, "redistribution.pictures"),
        ({"licence": None}, "licence: "),
    ],
)
def test_bad_manifest_names_the_field(own_set: Path, changes: dict, message: str) -> None:
    path = paths.MANIFESTS / "tiny.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        manifests.load("tiny")
    assert "tiny.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_set_and_broken_yaml(own_set: Path) -> None:
    with pytest.raises(InputError, match=r"'vqa_rat' has no manifest.*known: tiny"):
        manifests.load("vqa_rat")
    (paths.MANIFESTS / "tiny.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"tiny.yaml: not valid YAML"):
        manifests.load("tiny")


def test_credentialed_set_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert status("mimic_cxr") == {"folder": "needs credential"}


def rewrite(**changes) -> None:
    path = paths.MANIFESTS / "tiny.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    manifests.load.cache_clear()


def test_a_manifest_of_a_newer_kit_says_so(own_set: Path) -> None:
    rewrite(schema_version=2, a_new_field=1)
    with pytest.raises(InputError, match=r"tiny\.yaml: schema_version: 2: written for a newer kit; update the kit"):
        manifests.load("tiny")


def test_trees_with_folders_below(own_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SLAKE's imgs/xmlabN/source.jpg: other files beside them do not count where a pattern says so."""
    folder = own_set / "imgs"
    for i, name in enumerate(("xmlab1", "xmlab10", "xmlab2")):
        (folder / name).mkdir(parents=True)
        (folder / name / "source.jpg").write_bytes(b"x" * i)
        (folder / name / "mask.png").write_bytes(b"mask")
    (own_set / "elsewhere").mkdir()
    (folder / "xmlab2").rename(own_set / "elsewhere" / "xmlab2")
    (folder / "xmlab2").symlink_to(own_set / "elsewhere" / "xmlab2")  # data on several disks
    names = ["xmlab1/source.jpg", "xmlab10/source.jpg", "xmlab2/source.jpg"]  # bytewise: "/" before "0"
    lines = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert manifests.tree_digest(folder, "*.jpg", recursive=True) == (3, 3, digest)
    assert manifests.tree_digest(folder)[0] == 0
    tree = {"path": "imgs", "recursive": True, "pattern": "*.jpg", "count": 3}
    rewrite(files=[], trees=[{**tree, "bytes": 3, "sha256": digest}])
    assert status()["imgs"] == "ok"
    for wrong in ({"sha256": "0" * 64}, {"bytes": 4}, {"count": 2}):
        rewrite(trees=[{**tree, **wrong}])
        assert status()["imgs"] == "changed", wrong
    rewrite(trees=[{**tree, "count": 4}])
    assert status()["imgs"] == "partial" and data_check.presence("tiny")[0] == "partly there"
    rewrite(trees=[{**tree, "pattern": "*.dcm"}])
    assert status()["imgs"] == "missing" and data_check.presence("tiny")[0] == "missing"

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read though no digest is recorded")

    monkeypatch.setattr(manifests, "sha256", refuse)
    rewrite(trees=[{**tree, "bytes": 3}])
    assert status()["imgs"] == "ok" and data_check.presence("tiny")[0] == "found"
    monkeypatch.setattr(data_check, "MANY", 1)
    rewrite(trees=[{**tree, "count": 377_110}])
    assert data_check.presence("tiny")[0] == "found"  # at a glance: not counted
    assert status()["imgs"] == "partial"


def test_a_glance_says_found_partly_there_or_missing(own_set: Path) -> None:
    assert doctor.data("tiny") == (True, f"found in {own_set}")
    (own_set / "VQA_RAD Image Folder" / "a.jpg").unlink()
    present, said = doctor.data("tiny")
    assert not present and said.startswith("partly there: 3 of 4 files") and "VQA_RAD Image Folder is not" in said
    shutil.rmtree(own_set)
    assert doctor.data("tiny")[1].startswith("missing: set DATA_ROOT to the folder that holds tiny/")
    own_set.mkdir()
    assert not doctor.data("tiny")[0]  # an empty folder is nothing


def page(scale: str = "small") -> tuple[str, str]:
    folder = paths.results() / scale / "data"
    assert sorted(path.name for path in folder.iterdir()) == ["data_check.html", "data_check.md"]
    return tuple((folder / f"data_check.{ending}").read_text(encoding="utf-8") for ending in ("html", "md"))


def cells(markdown: str, first: str) -> list[list[str]]:
    """The rows of the Markdown tables whose first cell is `first`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == first]


def test_data_check_writes_a_page(own_set: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    evidence = {"verified": ["counts of <questions>"], "documented": ["the licence"]}
    source = {"kind": "http", "url": "https://example.org/a.zip", "target": "a.zip", "unpack": "."}
    rewrite(evidence=evidence, downloads=[source], quirks=["tabs"])
    measured: list[str] = []
    monkeypatch.setattr(leaks, "report", lambda name, once=leaks.report: measured.append(name) or once(name))
    assert cli.main(["data-check", "--scale", "small", "--datasets", "tiny"]) == 0
    assert "data_check.html" in capsys.readouterr().out
    html, markdown = page()
    assert cells(markdown, "tiny")[0][3:] == ["CC0-1.0", "open", str(own_set), "ok (14 checks)"]
    assert cells(markdown, "VQA_RAD Image Folder")[0][1] == "ok"
    assert cells(markdown, "split") == [
        ["split", "questions", "images", "closed field", "closed yes no", "distinct answers"]
    ]
    assert cells(markdown, "train") == [["train", "2", "2", "2", "1", ""]]
    assert cells(markdown, "test") == [["test", "1", "1", "", "", "1"]]
    assert cells(markdown, "a.zip") == [["a.zip", source["url"], "unknown", "none", "the publisher's", "never"]]
    unseen = cells(markdown, leaks.MEANINGS["unseen_answer"])
    assert unseen == [[leaks.MEANINGS["unseen_answer"], "1"]]  # "no", where training has "yes" and "ct"
    assert measured == ["tiny"] and "nothing recorded to compare with" in markdown
    assert (
        "- Record fields: qid, phrase_type," in markdown and "Licence stated at:</strong> https://osf.io/89kps/" in html
    )
    assert "- Environment variables: DATA_ROOT" in markdown and "a mirror, 1,793 and 451 questions" in markdown
    for words in (
        "counts of &lt;questions&gt;",
        "from documentation, not checked:",
        "https://osf.io/89kps/",
    ):
        assert words in html
    assert "14 of 14 checks ok" in html and "14 of 14 checks ok" in markdown and "--accent" in html
    assert not re.search(r"<script|<link|<img|src=|@import|url\(", html)  # one file, no script
    assert set(re.findall(r'href="(#|https?:)?', html)) == {"#", "https:"}

    annotations = own_set / "VQA_RAD Dataset Public.json"
    annotations.write_text(annotations.read_text(encoding="utf-8").replace('"Yes"', '"ct"'), encoding="utf-8")
    assert cli.main(["data-check", "--scale", "small", "--datasets", "tiny"]) == 1
    html, markdown = page()
    assert cells(markdown, "train") == [["train", "2", "2", "2", "0 (expected 1)", ""]]
    assert cells(markdown, "tiny")[0][-1] == "2 changed" and "12 of 14 checks ok" in html and 'class="warn"' in html


def test_the_page_says_why_there_is_no_leakage_table(own_set: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))

    def report(name: str) -> pd.DataFrame:
        raise InputError(f"{name}: no training questions")

    monkeypatch.setattr(leaks, "report", report)
    data_page.write("small", data_check.lines("tiny"))
    assert "tiny: no training questions" in page()[0]
    shutil.rmtree(own_set)
    data_page.write("small", data_check.lines("tiny"))
    html, markdown = page()
    assert "The questions could not be read" in html and cells(markdown, "tiny")[0][-1] == "missing"
    (tmp_path / "a file").touch()
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "a file"))
    with pytest.raises(InputError, match=r"data_check\.html: cannot be written .*set AMIF_RESULTS"):
        data_page.write("small", data_check.lines("tiny"))


def test_real_sets_are_as_recorded(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    for name in ("vqa_rad", "medpix2"):
        table = data_check.lines(name, decode=False)
        assert set(table["status"]) == {"ok"}, table[table["status"] != "ok"]
        assert {*table["kind"], "images"} - {"folder"} == set(manifests.load(name).checks)
        compared = table.loc[table["kind"] == "leak", "item"]
        assert len(compared) == (
            4 * 5 - 1 if name == "vqa_rad" else 0
        )  # five numbers of each variant; one is not recorded


def test_a_test_question_copied_into_training_is_a_changed_leak(shared_data: Path, tmp_path: Path, monkeypatch) -> None:
    """One row of VQA-RAD's training questions becomes the frame of a test question with its answer, on its image."""
    folder = tmp_path / "vqa_rad"
    folder.mkdir()
    name = "VQA_RAD Dataset Public.json"
    (folder / "VQA_RAD Image Folder").symlink_to(shared_data / "vqa_rad" / "VQA_RAD Image Folder")
    content = json.loads((shared_data / "vqa_rad" / name).read_text(encoding="utf-8"))
    train = [record for record in content if not record["phrase_type"].startswith("test")]
    known = {str(record["answer"]).strip().lower() for record in train}
    source = next(
        record for record in content
        if record["phrase_type"].startswith("test") and record.get("question_frame", "NULL") != "NULL"
        and str(record["answer"]).strip().lower() not in known
    )  # fmt: skip
    changed = next(record for record in train if record["image_name"] == source["image_name"])
    changed |= {"question": source["question_frame"], "answer": source["answer"]}
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    found = data_check.lines("vqa_rad", decode=False).set_index("item")
    assert found.loc["official1797: paraphrase_in_train", "status"] == "changed"
    touched = sum(  # the question itself and its paraphrases in the test set, which have the same frame
        record["phrase_type"].startswith("test") and record["image_name"] == source["image_name"]
        and record.get("question_frame") == source["question_frame"] and record["answer"] == source["answer"]
        for record in content
    )  # fmt: skip
    assert touched and found.loc["official1797: paraphrase_in_train", "detail"] == f"{1 + touched}, expected 1"
    unseen = int(found.loc["official1797: unseen_answer", "detail"].split(",")[0])
    assert unseen < 115 and found.loc["official1797: unseen_answer", "status"] == "changed"
    assert found.loc["official1797: on_train_image", ["kind", "status"]].tolist() == ["leak", "ok"]


def test_leaks_are_compared_as_recorded(own_set: Path) -> None:
    """Training: yes on a.jpg, ct on b.jpg; test: no on Z.jpg. One question, its answer unseen."""
    variant = {"name": "official1797", "rule": "all", "train": 2, "test": 1}
    right = {"on_train_image": 0, "unseen_answer": 1, "ceiling_overall": 0.0}
    rewrite(variants=[{**variant, "leaks_expected": [right]}])
    found = status()
    assert {found[f"official1797: {key}"] for key in right} == {"ok"} and "official1797: leakage" not in found
    for key in right:
        rewrite(variants=[{**variant, "leaks_expected": [{**right, key: right[key] + 1}]}])
        found = status()
        assert [item for item, said in found.items() if said != "ok"] == [f"official1797: {key}"]
    rewrite(variants=[{**variant, "leaks_expected": [{"training": "train+val", "unseen_answer": 1}]}])  # no such part
    assert status()["official1797: unseen_answer (train+val, test)"] == "changed"
    rewrite(variants=[{**variant, "leaks_expected": [{**right, "closed": 1}]}])
    with pytest.raises(InputError, match=r"variants\.0\.leaks_expected\.0\.closed: Extra inputs"):
        manifests.load("tiny")
    rewrite(variants=[{**variant, "leaks_expected": [right]}])
    shutil.rmtree(own_set / "VQA_RAD Image Folder")
    assert status()["official1797: unseen_answer"] == "ok"  # needs no image
    (own_set / "VQA_RAD Dataset Public.json").write_text("[", encoding="utf-8")
    assert status()["leakage"] == "changed"


def test_what_does_not_describe_the_data_itself_is_not_in_its_digest() -> None:
    """Terms, places, checks and leakage may be recorded better without making any result another one."""
    terms = {
        "mirrors",
        "fields",
        "encoding",
        "checks",
        "leakage",
        "verified",
        "licence",
        "access",
        "variants",
        "evidence",
    }
    assert terms <= set(manifests.Manifest.model_fields) and not terms & set(experiments.DATA_KEYS)


@pytest.mark.parametrize("name", KNOWN)
def test_further_fields_are_filled(name: str) -> None:
    manifest = manifests.load(name)
    assert {"count", "images"} <= set(manifest.checks) and ("leak" in manifest.checks) == (manifest.role == "questions")
    root = "AMIF_PHANTOM" if manifest.generator else "DATA_ROOT"
    assert manifest.access.env_vars == (root,) and f'"{root}"' in Path(paths.__file__).read_text(encoding="utf-8")
    assert set(manifest.leakage.protected_by) <= set(QUESTION_SETS)
    if not manifest.generator:
        assert manifest.fields and manifest.licence.url.startswith("https://")
        assert not manifest.verified.date or manifest.verified.by
    for variant in manifest.variants:
        for wanted in variant.leaks_expected:
            if wanted.unseen_answer is not None and wanted.ceiling_overall is not None and variant.test:
                reached = 100 * (variant.test - wanted.unseen_answer) / variant.test
                assert round(reached, 2) == wanted.ceiling_overall, variant.name


@pytest.mark.parametrize("name", PHANTOM_QUESTIONS)
def test_generated_set_is_ok_and_has_its_recorded_counts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo question set as its manifest describes it (about 5 s): its counts, and at least 300 test questions."""
    monkeypatch.setenv("AMIF_PHANTOM", str(tmp_path / "a phantom"))
    table = data_check.lines(name)
    assert set(table["status"]) == {"ok"} and {*table["kind"]} - {"folder"} == set(manifests.load(name).checks)
    assert table.loc[table["kind"] == "leak", "detail"].str.contains("unseen_answer .*nothing recorded").all()
    counts = datasets.counts(name)
    assert counts["test"]["questions"] >= 300
    assert sum(found["images"] for split, found in counts.items() if split != "all") == counts["all"]["images"]
    assert datasets.variant_counts(name) == {
        v.name: {"train": v.train, "val": v.val, "test": v.test} for v in manifests.load(name).variants
    }


def test_generated_sets_share_no_case() -> None:
    """A case follows from seed and number, so that different seeds are enough."""
    seeds = [manifests.load(name).generator.seed for name in manifests.names() if manifests.load(name).generator]
    assert len(seeds) == len(set(seeds))


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_question_sets_say_what_they_know_and_where_they_come_from(name: str) -> None:
    manifest = manifests.load(name)
    assert manifest.variants and manifest.quirks and manifest.normalisation
    assert manifest.evidence.verified and manifest.evidence.documented
    assert sum(split.name == "all" for split in manifest.splits) == 1
    by_name = {split.name: split.questions for split in manifest.splits}
    assert by_name["all"] == sum(n for split, n in by_name.items() if split != "all")
    default = manifest.variants[0]
    assert {split: n for split, n in by_name.items() if split != "all"} == {
        split: getattr(default, split) for split in ("train", "val", "test") if getattr(default, split) is not None
    }
    recorded = {entry.path: (entry.bytes, entry.sha256) for entry in manifest.files}
    for download in manifest.downloads:
        assert not download.exercised
        assert download.target not in recorded or recorded[download.target] == (download.bytes, download.sha256)
