"""Readers: real VQA-RAD and MedPix-2.0 counts, MIMIC-CXR's layout and report sections, every kind of bad input."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from amif_lib.core.errors import InputError
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.data.readers import medpix2, mimic_cxr, vqa_rad
from amif_lib.scoring import prediction_files, question_files

VQA_LAYOUT = manifests.load("vqa_rad").layout
MIMIC_LAYOUT = manifests.load("phantom_mimic_cxr").layout
MEDPIX_LAYOUT = manifests.load("medpix2").layout


# --- VQA-RAD -------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    return shared_data


def test_real_vqa_rad_counts(real: Path) -> None:
    questions = datasets.load_questions("vqa_rad")
    train, test = ([q for q in questions if q.split == split] for split in ("train", "test"))
    assert (len(questions), len(train), len(test)) == (2248, 1797, 451)
    assert (sum(q.closed_field for q in test), sum(not q.closed_field for q in test)) == (272, 179)
    assert (sum(q.closed_yes_no for q in test), sum(not q.closed_yes_no for q in test)) == (251, 200)
    assert Counter(q.answer for q in test if q.closed_yes_no) == {"no": 133, "yes": 118}
    assert (sum(q.closed_field for q in train), sum(q.closed_yes_no for q in train)) == (1027, 942)
    assert len({q.image_id for q in questions}) == 314  # of 315 files: one is never asked about
    assert len(list((real / "vqa_rad" / VQA_LAYOUT["images"]).glob("*.jpg"))) == 315
    assert len({q.answer for q in train}) == 433 and len({q.answer for q in test}) == 121
    known = {q.answer for q in train}
    assert sum(q.answer not in known for q in test) == 115  # out of reach of a train-vocabulary method
    assert len({q.question_id for q in questions}) == 2248


def test_real_vqa_rad_quirks_are_evened_out(real: Path) -> None:
    raw = json.loads((real / "vqa_rad" / VQA_LAYOUT["annotations"]).read_text(encoding="utf-8"))
    by_id = {q.question_id: q for q in datasets.load_questions("vqa_rad")}
    integers = {str(r["qid"]): r["answer"] for r in raw if isinstance(r["answer"], int)}
    assert set(integers) == {"1511", "1568", "1683", "2234", "2235"}
    assert all(by_id[qid].answers == (str(value),) for qid, value in integers.items())
    assert [r["answer_type"] for r in raw if r["qid"] in (2156, 2157)] == ["CLOSED ", "CLOSED "]
    assert by_id["2156"].closed_field and by_id["2156"].answer == "maybe" and not by_id["2156"].closed_yes_no
    assert [sum("\t" in str(r[key]) for r in raw) for key in ("question", "answer")] == [6, 5]
    for question in by_id.values():
        for text in (question.question, question.answer):
            assert text == " ".join(text.split()) and text
    assert {kind for q in by_id.values() for kind in q.question_type.split(", ")} == {
        "PRES", "POS", "ABN", "OTHER", "MODALITY", "SIZE", "PLANE", "ATTRIB", "ORGAN", "COLOR", "COUNT"}  # fmt: skip
    assert not any(q.closed_yes_no and not q.closed_field for q in by_id.values())


def test_unknown_training_file_lists_the_known_ones(real: Path) -> None:
    with pytest.raises(InputError, match=r"official1798.*default, official1797"):
        datasets.load_questions("vqa_rad", "official1798")
    assert datasets.load_questions("vqa_rad", "official1797") == datasets.load_questions("vqa_rad")


def test_other_training_files_are_rebuilt_by_rule(real: Path) -> None:
    """3,064 questions of which 284 are variants of test questions with their answers; 2,772 without any such."""
    official, published, clean = (
        datasets.load_questions("vqa_rad", name) for name in ("official1797", "published3064", "clean2772")
    )
    train = [[q for q in part if q.split == "train"] for part in (official, published, clean)]
    assert [len(part) for part in train] == [1797, 3064, 2772]
    test = [q for q in official if q.split == "test"]
    assert [[q for q in part if q.split == "test"] for part in (published, clean)] == [test, test]
    assert len({q.question_id for q in train[1]}) == 3064
    tested = {q.question_id: q for q in test}
    leaks = [q for q in train[1] if q.question_id.removesuffix("-frame") in tested]
    assert len(leaks) == 284 and all(q.answer == tested[q.question_id.removesuffix("-frame")].answer for q in leaks)
    assert not [q for q in train[0] if q.question_id.endswith("-frame")]
    asked = {(q.image_id, q.question.lower()) for q in test}
    assert not asked & {(q.image_id, q.question.lower()) for q in train[2]}
    known = {q.answer for q in train[2]}
    assert round(100 * sum(q.answer in known for q in test) / 451, 2) == 74.06


def test_published3064_row_for_row(real: Path) -> None:
    """The circulating file's rule, from the JSON alone: official order, each record followed by its frame variant."""
    raw = json.loads((real / "vqa_rad" / VQA_LAYOUT["annotations"]).read_text(encoding="utf-8"))
    expected, official, tested = [], 0, 0
    for row in raw:
        is_test = row["phrase_type"].startswith("test_")
        wordings = [] if is_test else [(row["question"], "")]
        official += not is_test
        if re.search(r"[^\W_]", row["question_frame"]) and row["question_frame"].strip() != "NULL":
            wordings.append((row["question_frame"], "-frame"))
            tested += is_test
        for wording, ending in wordings:
            asked, answered = (re.sub(r"\s+", " ", str(value)).strip() for value in (wording, row["answer"]))
            name = re.sub(r"\.jpg$", "", row["image_name"])
            expected.append((name, asked, answered.lower(), f"{row['qid']}{ending}"))
    questions = datasets.load_questions("vqa_rad", "published3064")
    found = [(q.image_id, q.question, q.answer, q.question_id) for q in questions if q.split == "train"]
    assert found == expected
    assert (len(expected), official, tested) == (3064, 1797, 284)


def record(**changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "qid": 7, "phrase_type": "freeform", "image_name": "a.jpg", "question": "Is it?", "answer": "Yes",
        "answer_type": "CLOSED", "question_type": "PRES"}  # fmt: skip
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def write_vqa(root: Path, content: object) -> Path:
    folder = root / VQA_LAYOUT["images"]
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(folder / "a.jpg")
    text = content if isinstance(content, str) else json.dumps(content)
    (root / VQA_LAYOUT["annotations"]).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([record(answer="  ")], "qid 7: answer is empty"),
        ([record(answer=None)], "qid 7: answer is empty"),
        ([record(question="")], "qid 7: question is empty"),
        ([record(question=...)], "qid 7: key question is missing"),
        ([record(image_name=...)], "qid 7: key image_name is missing"),
        ([record(image_name="b.jpg")], "b.jpg: image of qid 7 is missing"),
        ([record(phrase_type="dev")], "qid 7: phrase_type 'dev' is not one of"),
        ([record(answer_type="MAYBE")], "qid 7: answer_type 'MAYBE'"),
        ([record(answer_type=1)], "qid 7: answer_type is empty or not text"),
        ([record(image_name=5)], "qid 7: image_name is empty or not text"),
        ([record(question=5)], "qid 7: question is empty or not text"),
        ([record(phrase_type=["para"])], "qid 7: phrase_type is empty or not text"),
        ([record(answer=True)], "qid 7: answer is empty or not text"),
        ([record(), record(qid="7")], "qid 7: this qid occurs twice"),
        ([record(), "text"], "record number 1 is not a JSON object"),
        ({"data": []}, "must hold a list"),
        ('[{"qid": 1,\n "question": }]', "line 2: not valid JSON"),
        ("", "line 1: not valid JSON"),
    ],
)
def test_malformed_questions_are_named(tmp_path: Path, content: object, message: str) -> None:
    root = write_vqa(tmp_path / "vqa rad", content)
    with pytest.raises(InputError, match=message) as caught:
        vqa_rad.read(root, VQA_LAYOUT)
    text = str(caught.value)
    assert "\n" not in text and ("VQA_RAD Dataset Public.json" in text or "b.jpg" in text)


def test_missing_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"VQA_RAD Dataset Public.json: no such file"):
        vqa_rad.read(tmp_path, VQA_LAYOUT)


@pytest.mark.parametrize("depth", [True, False], ids=["deep", "long number"])
def test_json_that_python_cannot_hold_is_named(tmp_path: Path, depth: bool) -> None:
    content = "[" * 200_000 if depth else '[{"qid": ' + "1" * 5000 + "}]"
    with pytest.raises(InputError, match=r"VQA_RAD Dataset Public.json: nested too deeply or a number too long"):
        vqa_rad.read(write_vqa(tmp_path, content), VQA_LAYOUT)
    (tmp_path / "own.json").write_text(content, encoding="utf-8")
    for read in (question_files.read, lambda path: list(prediction_files._records(Path(path), "own.json"))):
        with pytest.raises(InputError, match=r"own.json: nested too deeply or a number too long"):
            read(str(tmp_path / "own.json"))


def test_annotation_path_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / VQA_LAYOUT["annotations"]).mkdir()
    with pytest.raises(InputError, match=r"VQA_RAD Dataset Public.json: cannot be read \(Is a directory\)"):
        vqa_rad.read(tmp_path, VQA_LAYOUT)


def test_good_record_reads(tmp_path: Path) -> None:
    made = record(qid="0", answer=2, answer_type="CLOSED ", question="How\tmany  ? ", question_type="PRSE, pos")
    (question,) = vqa_rad.read(write_vqa(tmp_path, [made]), VQA_LAYOUT)
    assert (question.question_id, question.question, question.answers) == ("0", "How many ?", ("2",))
    assert (question.split, question.closed_field, question.closed_yes_no) == ("train", True, False)
    assert question.question_type == "PRES, POS" and question.image_path.is_file()


# --- MIMIC-CXR -----------------------------------------------------------------------------------------------------

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old with cough  // pneumonia?

 FINDINGS:

 The lungs are
 clear.  Ratio 1:2 is noted.

 IMPRESSION:

 No acute process.  Seen with Dr. ___ at 3:45: by phone.

 RECOMMENDATION(S):  None.
"""


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (REPORT, {"findings": "The lungs are clear. Ratio 1:2 is noted.",
                  "impression": "No acute process. Seen with Dr. at 3:45: by phone."}),
        ("FINAL REPORT\nHISTORY: pain.\nIMPRESSION: Normal.\n", {"impression": "Normal."}),
        ("FINAL ADDENDUM\nFINDINGS: Added.\n FINAL REPORT\nFINDINGS: First.\nIMPRESSION: Old.\nIMPRESSION:  New.\n",
         {"findings": "First.", "impression": "New."}),
        ("Findings: mixed case.\nConclusion: done.", {"findings": "mixed case.", "impression": "done."}),
        ("FINDINGS AND IMPRESSION: both at once.", {"findings": "both at once."}),
        ("FINDINGS/IMPRESSION: slash.", {"findings": "slash."}),
        ("FINDINGS:\n\nIMPRESSION: Clear.", {"impression": "Clear."}),
        ("IMPRESSION: kept.\nIMPRESSION:  ", {"impression": "kept."}),
        ("     FINAL REPORT\n Portable view shows\n clear lungs.\n", {"text": "Portable view shows clear lungs."}),
        ("INDICATION: only this.", {}),
        ("   \n", {}),
    ],
)  # fmt: skip
def test_report_sections(report: str, expected: dict[str, str]) -> None:
    assert mimic_cxr.sections(report) == expected
    assert mimic_cxr.sections(report.replace("\n", "\r\n")) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("findings+impression", "A. B."), ("findings", "A."), ("impression", "B.")],
)
def test_wanted_sections_and_their_replacements(wanted: str, expected: str) -> None:
    assert mimic_cxr.report_text("FINDINGS: A.\nIMPRESSION: B.", wanted) == expected
    assert mimic_cxr.report_text("IMPRESSION: B.", wanted) == "B."
    assert mimic_cxr.report_text("FINDINGS: A.", wanted) == "A."
    assert mimic_cxr.report_text("no header here", wanted) == "no header here"
    assert mimic_cxr.report_text("HISTORY: x.", wanted) == ""


@pytest.mark.parametrize(
    ("position", "code", "view"),
    [("PA", "postero-anterior", "frontal"), ("AP", "", "frontal"), ("LL", "left lateral", "lateral"),
     ("LATERAL", "", "lateral"), ("", "lateral", "lateral"), ("", "axial", "axial"), ("", "", "")],
)  # fmt: skip
def test_views(position: str, code: str, view: str) -> None:
    assert mimic_cxr.view_of(position, code) == view


def write_mimic(root: Path) -> Path:
    """Two patients, three studies, in the official layout: two views, one view, and a validation study without text."""
    lines = [("d2", "10000001", "50000001", "LATERAL", "train"), ("d1", "10000001", "50000001", "PA", "train"),
             ("d3", "10000001", "50000002", "AP", "train"), ("d4", "11000002", "50000003", "", "validate")]  # fmt: skip
    images, reports = root / MIMIC_LAYOUT["images"], root / MIMIC_LAYOUT["reports"]
    texts = {"50000001": "FINDINGS: one.", "50000002": "IMPRESSION: two.", "50000003": "INDICATION: nothing."}
    for dicom, subject, study, _, _ in lines:
        folder = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        (images / folder / f"s{study}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(images / folder / f"s{study}" / f"{dicom}.jpg")
        (reports / folder).mkdir(parents=True, exist_ok=True)
        (reports / folder / f"s{study}.txt").write_text(texts[study], encoding="utf-8")
    metadata = "dicom_id,subject_id,study_id,ViewPosition\n" + "".join(f"{d},{p},{s},{v}\n" for d, p, s, v, _ in lines)
    split = "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},{x}\n" for d, p, s, _, x in lines)
    for name, text in (("metadata", metadata), ("split", split)):
        (images / MIMIC_LAYOUT[name]).write_bytes(gzip.compress(text.encode()))
    return root


def test_mimic_layout_reads(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic cxr")
    first, second = mimic_cxr.read(root, MIMIC_LAYOUT)
    assert (first.study_id, first.group_id, first.text, first.split) == ("50000001", "10000001", "one.", "train")
    assert [(image.image_id, image.view) for image in first.images] == [("d1", "frontal"), ("d2", "lateral")]
    assert [image.view for image in second.images] == ["frontal"] and second.text == "two."
    assert mimic_cxr.read(root, MIMIC_LAYOUT, splits=("val",)) == []  # its only report has no text to learn from


def _drop_report(root: Path) -> None:
    next(root.rglob("s50000002.txt")).unlink()


def _drop_image(root: Path) -> None:
    next(root.rglob("d3.jpg")).unlink()


def _drop_column(root: Path) -> None:
    path = root / MIMIC_LAYOUT["images"] / MIMIC_LAYOUT["metadata"]
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"ViewPosition", b"View")))


def _cut_table(root: Path) -> None:
    path = root / MIMIC_LAYOUT["images"] / MIMIC_LAYOUT["split"]
    path.write_bytes(path.read_bytes()[:30])


def _unknown_split(root: Path) -> None:
    path = root / MIMIC_LAYOUT["images"] / MIMIC_LAYOUT["split"]
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"validate", b"dev")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_report, "s50000002.txt: the report of study 50000002 is missing"),
        (_drop_image, "d3.jpg: image of study 50000002 is missing"),
        (_drop_column, "metadata.csv.gz: column ViewPosition is missing"),
        (_cut_table, "split.csv.gz: cannot be read"),
        (_unknown_split, "split.csv.gz: image d4 has no split among"),
    ],
)
def test_damaged_mimic_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    root = write_mimic(tmp_path)
    damage(root)
    with pytest.raises(InputError, match=message) as caught:
        mimic_cxr.read(root, MIMIC_LAYOUT)
    assert "\n" not in str(caught.value)


# --- MedPix-2.0 ----------------------------------------------------------------------------------------------------


def test_real_medpix_counts(real: Path) -> None:
    studies = datasets.load_studies("medpix2")
    groups = {study.group_id for study in studies}
    pictures = [image.image_id for study in studies for image in study.images]
    assert (len(groups), len(pictures), len(set(pictures))) == (671, 2050, 2050)
    lines = [json.loads(x) for x in (real / "medpix2" / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(studies) == len({(x["case_id"], " ".join(x["caption"].split())) for x in lines})
    assert Counter(s.split for s in studies for _ in s.images) == {"train": 1653, "val": 197, "test": 200}
    captions: dict[str, list[str]] = {}
    for line in lines:
        captions.setdefault(line["case_id"], []).append(line["caption"])
    shared = {case for case, found in captions.items() if len(found) > 1 and len(set(found)) == 1}
    assert len(shared) == 137 and sum(len(found) > 1 for found in captions.values()) == 445
    assert {s.group_id for s in studies if len(s.images) == len(captions[s.group_id]) > 1} == shared
    findings = {x["image_id"]: x["case_findings"] for x in lines}
    for study in studies[::50]:
        text = findings[study.images[0].image_id]
        assert not text or " ".join(text.split()) in study.text


def medpix_record(**changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "case_id": "MPX1", "image_id": "MPX1_synpic1", "synpic_id": "synpic1", "file": "images/a.jpg", "split": "train",
        "caption": "A caption.", "plane": "Axial", "case_findings": None}  # fmt: skip
    return {**made, **changes}


def write_medpix(root: Path, *lines: object) -> Path:
    (root / "images").mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("L", (8, 8)).save(root / "images" / f"{name}.jpg")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "captions.jsonl").write_text(text + "\n", encoding="utf-8")
    return root


def test_medpix_groups_views_by_caption(tmp_path: Path) -> None:
    root = write_medpix(
        tmp_path,
        medpix_record(case_findings="Found."),
        medpix_record(
            image_id="2", file="images/b.jpg", caption="A  caption.", plane="Sagittal", case_findings="Found."
        ),
        medpix_record(image_id="3", file="images/c.jpg", caption="Other.", plane=None, case_findings="Other."),
    )
    first, second = medpix2.read(root, MEDPIX_LAYOUT)
    assert [image.view for image in first.images] == ["axial", "sagittal"] and first.text == "A caption. Found."
    assert (second.text, second.images[0].view, second.group_id) == ("Other.", "", "MPX1")
    assert first.study_id != second.study_id


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"case_id": ', "line 2: not valid JSON"),
        ("[1]", "line 2: a record must be a JSON object"),
        (medpix_record(caption=" "), "line 2: record MPX1_synpic1 has no caption"),
        (medpix_record(split="dev2"), "line 2: record MPX1_synpic1 has split 'dev2'"),
        (medpix_record(file="images/z.jpg"), "z.jpg: image of record MPX1_synpic1 is missing"),
    ],
)
def test_malformed_medpix_is_named(tmp_path: Path, line: object, message: str) -> None:
    root = write_medpix(tmp_path, medpix_record(), line)
    with pytest.raises(InputError, match=message) as caught:
        medpix2.read(root, MEDPIX_LAYOUT)
    assert "\n" not in str(caught.value)


# --- by name -------------------------------------------------------------------------------------------------------


def test_wrong_role_and_absent_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "no data"))
    with pytest.raises(InputError, match=r"vqa_rad.*set DATA_ROOT.*vqa_rad.md"):
        datasets.load_questions("vqa_rad")
    with pytest.raises(InputError, match=r"mimic_cxr.*credential"):
        datasets.load_studies("mimic_cxr")
    with pytest.raises(InputError, match="not for pre-training"):
        datasets.load_studies("vqa_rad")
    with pytest.raises(InputError, match="holds no questions"):
        datasets.load_questions("medpix2")
    with pytest.raises(InputError, match=r"'nothing' has no manifest.*vqa_rad"):
        datasets.load_questions("nothing")


def test_phantom_is_generated_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_PHANTOM", str(tmp_path / "phantom"))
    small = manifests.load("phantom_mimic_cxr").model_copy(
        update={"generator": manifests.Generator(kind="mimic_cxr", seed=9, size=64, counts={"studies": 3})}
    )
    monkeypatch.setattr(manifests, "load", lambda name: small)
    assert len(datasets.load_studies("phantom_mimic_cxr")) == 3
    assert (tmp_path / "phantom" / "phantom_mimic_cxr" / "generator.json").is_file()


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys; import amif_lib.data.load, amif_lib.data.manifests\n"
        "from amif_lib.data import decontaminate, images; from amif_lib.data.readers import medicat, medpix2, mimic_cxr, pathvqa, roco; from amif_lib.phantom import generate as phantom\n"
        "from amif_lib.data.readers import slake, vqa_med_2019, vqa_rad\n"
        "assert not {'torch', 'transformers', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], timeout=60)
