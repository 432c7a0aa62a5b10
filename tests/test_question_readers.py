"""Readers of the question sets: counts of the real files, every quirk by a hand-made file, every kind of bad input."""

from __future__ import annotations

import json
import logging
import pickle
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from amif_lib.core.errors import InputError
from amif_lib.core.files import sha256
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.data.readers import files, pathvqa, slake, vqa_med_2019, vqa_rad
from amif_lib.data.records import Question
from tests.conftest import write_picture

LAYOUT = {name: manifests.load(name).layout for name in ("slake", "pathvqa", "vqa_med_2019", "vqa_rad")}
READERS = {"slake": slake, "pathvqa": pathvqa, "vqa_med_2019": vqa_med_2019, "vqa_rad": vqa_rad}


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, (bytes, str)) else json.dumps(content, ensure_ascii=False)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def refused(name: str, root: Path, message: str, **choices: str) -> None:
    """Reading ends in an InputError of one line that matches `message`."""
    with pytest.raises(InputError, match=message) as caught:
        files.with_images(READERS[name].read(root, LAYOUT[name], **choices), root)
    assert "\n" not in str(caught.value)


# --- VQA-RAD ---


@pytest.fixture
def raw(real_data: Path) -> list[dict]:
    """The real file's records."""
    return json.loads((real_data / "vqa_rad" / LAYOUT["vqa_rad"]["annotations"]).read_text(encoding="utf-8"))


def train_and_test(name: str) -> tuple[list[Question], list[Question]]:
    questions = datasets.load_questions("vqa_rad", name)
    return tuple([q for q in questions if q.split == split] for split in ("train", "test"))


def test_quirks_of_the_real_vqa_rad(raw: list[dict]) -> None:
    train, test = train_and_test("default")
    assert sum(q.answer not in {q.answer for q in train} for q in test) == 115  # out of reach of training answers
    by_id = {q.question_id: q for q in train + test}
    integers = {str(r["qid"]): r["answer"] for r in raw if isinstance(r["answer"], int)}
    assert len(by_id) == 2248 and set(integers) == {"1511", "1568", "1683", "2234", "2235"}
    assert all(by_id[qid].answers == (str(value),) for qid, value in integers.items())
    assert [r["answer_type"] for r in raw if r["qid"] in (2156, 2157)] == ["CLOSED ", "CLOSED "]
    assert by_id["2156"].closed_field and by_id["2156"].answer == "maybe" and not by_id["2156"].closed_yes_no
    assert all(text == " ".join(text.split()) != "" for q in by_id.values() for text in (q.question, q.answer))
    assert {kind for q in by_id.values() for kind in q.question_type.split(", ")} == {
        "PRES", "POS", "ABN", "OTHER", "MODALITY", "SIZE", "PLANE", "ATTRIB", "ORGAN", "COLOR", "COUNT"}  # fmt: skip
    assert datasets.load_questions("vqa_rad", images=False) == train + test


def test_training_files_of_vqa_rad(raw: list[dict]) -> None:
    """The rules from the JSON alone: each record followed by its frame variant, and what is left out of that."""
    rows = {False: [], True: []}  # by whether a record is a test record: image, question, answer, id
    for row in raw:
        is_test = row["phrase_type"].startswith("test_")
        wordings = [(row["question"], "")] * (not is_test)
        if re.search(r"[^\W_]", row["question_frame"]) and row["question_frame"].strip() != "NULL":
            wordings.append((row["question_frame"], "-frame"))
        for wording, ending in wordings:
            asked, answered = (re.sub(r"\s+", " ", str(value)).strip() for value in (wording, row["answer"]))
            rows[is_test].append((Path(row["image_name"]).stem, asked, answered.lower(), f"{row['qid']}{ending}"))
    train, test = train_and_test("published3064")
    order = [f"{r['qid']}{ending}" for r in raw for ending in ("", "-frame")]
    expected = sorted(rows[False] + rows[True], key=lambda row: order.index(row[3]))
    assert [(q.image_id, q.question, q.answer, q.question_id) for q in train] == expected
    assert (len(train), len(rows[True])) == (3064, 284)  # 284 variants of test questions, with their answers
    clean, same = train_and_test("clean2772")
    asked = {(q.image_id, q.question.lower()) for q in test}
    assert same == test and len(clean) == 2772 and set(clean) <= set(train)
    assert not asked & {(q.image_id, q.question.lower()) for q in clean}
    tested = {r["image_name"] for r in raw if r["phrase_type"].startswith("test")}
    apart, same = train_and_test("image_disjoint")
    expected = {str(r["qid"]) for r in raw if r["image_name"] not in tested}
    assert same == test and {q.question_id for q in apart} == expected
    for v in manifests.load("vqa_rad").variants:
        found = Counter(q.split for q in datasets.load_questions("vqa_rad", v.name))
        assert found == {"train": v.train, "test": v.test}


def record(**changes: object) -> dict[str, object]:
    return {"qid": 7, "phrase_type": "freeform", "image_name": "a.jpg", "question": "Is it?", "answer": "Yes",
            "answer_type": "CLOSED", "question_type": "PRES"} | changes  # fmt: skip


def write_vqa(root: Path, content: object) -> Path:
    write_picture(root / LAYOUT["vqa_rad"]["images"] / "a.jpg")
    put(root / LAYOUT["vqa_rad"]["annotations"], content)
    return root


# --- SLAKE ---


def slake_record(**changes: object) -> dict[str, object]:
    return {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "Is it?", "answer": "Yes", "q_lang": "en",
            "location": "Lung", "modality": "CT", "answer_type": "CLOSED", "base_type": "vqa", "content_type": "Organ",
            "triple": ["vhead", "_", "_"], "qid": 7} | changes  # fmt: skip


def write_slake(root: Path, train: object) -> Path:
    write_picture(root / "imgs" / "xmlab1" / "source.jpg")
    for key, content in (("train", train), ("val", [slake_record(qid=901)]), ("test", [slake_record(qid=902)])):
        put(root / LAYOUT["slake"][key], content)
    return root


def test_slake_quirks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        slake_record(qid=1, answer_type="CLOSED ", answer=" yes "),
        slake_record(qid=2, answer_type="open", answer="Small Bowel", question="Which  organ\tis it?"),
        slake_record(qid=3, answer_type="OPEN", answer="Lung, Heart"),
        slake_record(qid=4, answer_type="CLOSED", answer="Left"),
        slake_record(qid=1622, answer="", answer_type="OPEN"),
        slake_record(qid=5, q_lang="zh", question="图中有肝脏吗?", answer="包含", answer_type="CLOSED"),
        slake_record(qid=6, q_lang="zh", question="成像方式?", answer="CT", answer_type="OPEN"),
    ]
    root = write_slake(tmp_path / "a slake", rows)
    with caplog.at_level(logging.INFO, "amif_lib"):
        english = slake.read(root, LAYOUT["slake"])
    assert "the question without an answer is left out (qid 1622)" in caplog.text
    got = {q.question_id: q for q in english}
    assert list(got) == ["1", "2", "3", "4", "901", "902"] and english[-2].split == "val"
    assert [(got[i].answers, got[i].closed_field, got[i].closed_yes_no) for i in "1234"] == [
        (("yes",), True, True), (("small bowel",), False, False), (("lung, heart",), False, False),
        (("left",), True, False)]  # fmt: skip
    assert got["2"].question == "Which organ is it?" and got["2"].question_type == "Organ"
    assert got["1"].image_id == "xmlab1" and got["1"].image_path.is_file() and {q.language for q in english} == {"en"}
    chinese = slake.read(root, LAYOUT["slake"], language="zh")
    assert [(q.answer, q.closed_field, q.closed_yes_no, q.language, q.question) for q in chinese] == [
        ("包含", True, True, "zh", "图中有肝脏吗?"), ("ct", False, False, "zh", "成像方式?")]  # fmt: skip
    both = slake.read(root, LAYOUT["slake"], language="en+zh")
    assert Counter(q.language for q in both) == {"en": 6, "zh": 2}


@pytest.fixture
def annotations(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLAKE's real files without images."""
    if not (shared_data / "slake_annotations").is_dir():
        pytest.skip("SLAKE's annotation files not found (slake_annotations/ in the data folder)")
    (tmp_path / "slake").symlink_to(shared_data / "slake_annotations")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path / "slake"


def test_real_slake_is_as_its_manifest_expects(annotations: Path) -> None:
    manifest = manifests.load("slake")
    assert all(sha256(annotations / entry.path) == entry.sha256 for entry in manifest.files)
    found = datasets.counts("slake", images=False)
    assert found == {split.name: split.counts() for split in manifest.splits}
    for v in manifest.variants:
        counted = Counter(q.split for q in datasets.load_questions("slake", language=v.name, images=False))
        assert counted == {"train": v.train, "val": v.val, "test": v.test}
    raw = json.loads((annotations / "train.json").read_text(encoding="utf-8"))
    english, chinese = (datasets.load_questions("slake", language=x, images=False) for x in ("en", "zh"))
    train = [q for q in english if q.split == "train"]
    assert [q.question_id for q in train] == [str(r["qid"]) for r in raw if r["q_lang"] == "en" and r["answer"]]
    on_train = {q.image_id for q in chinese if q.split == "train"}
    assert sum(q.split == "test" and q.image_id in on_train for q in english) == 781  # the leak that en+zh would be
    refused("slake", annotations, r"source.jpg: image of question \d+ is missing; 0 of \d+ images found under")


# --- PathVQA ---

PATHVQA_ROWS = [
    {"image": "train_0000", "question": "where are  the cells?", "answer": " In the Canals "},
    {"image": "train_0001", "question": "is it benign?", "answer": "yes"},
    {"image": "train_0000", "question": "where are  the cells?", "answer": " In the Canals "},
    {"image": "train_0000", "question": "where are the cells?", "answer": "in the canals"},
    {"image": "train_0001", "question": "whose nuclei are lost?", "answer": "neutrophils"},
    {"image": "train_0001", "question": "the lesion is what?", "answer": "no"},
]


def write_pathvqa(root: Path, train: object = None) -> Path:
    """The official layout with one question in validation and test."""
    for split in ("train", "val", "test"):
        rows = PATHVQA_ROWS if split == "train" else [{"image": f"{split}_0000", "question": "what?", "answer": split}]
        rows = train if split == "train" and train is not None else rows
        for number in range(3):  # the third has no question
            write_picture(root / "images" / split / f"{split}_{number:04d}.jpg")
        put(root / "qas" / split / f"{split}_qa.pkl", rows if isinstance(rows, bytes) else pickle.dumps(rows))
    return root


def test_pathvqa_quirks(tmp_path: Path) -> None:
    root = write_pathvqa(tmp_path / "a pathvqa")
    questions = pathvqa.read(root, LAYOUT["pathvqa"])
    train = [q for q in questions if q.split == "train"]
    assert [q.question_id for q in train] == [
        "train_0000-1", "train_0001-1", "train_0000-2", "train_0000-3", "train_0001-2", "train_0001-3"]  # fmt: skip
    assert (train[0].question, train[0].answers) == ("where are the cells?", ("in the canals",))
    closed = [False, True, False, False, False, True]
    assert [q.closed_yes_no for q in train] == [q.closed_field for q in train] == closed
    assert [q.question_type for q in train] == ["where", "yes/no", "where", "where", "whose", "yes/no"]
    assert [(q.split, q.answer) for q in questions[6:]] == [("val", "val"), ("test", "test")]
    assert train[0].image_path.is_file() and train[0].language == "en"
    fewer = [q for q in pathvqa.read(root, LAYOUT["pathvqa"], "deduplicated") if q.split == "train"]
    # as the file has them: the third row equals the first, the fourth only after normalisation
    assert [q.question_id for q in fewer] == [q.question_id for i, q in enumerate(train) if i != 2]


class Malicious:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("opened"),)


def test_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_pathvqa(tmp_path, pickle.dumps([*PATHVQA_ROWS, Malicious()]))
    refused("pathvqa", root, "train_qa.pkl: .*names .*, which can run code and plain questions never need")
    assert not Path("opened").exists()


# --- VQA-Med-2019 ---

# Lines of the official test file (Ben Abacha et al. 2019, CC BY 4.0), and what the readme's rules accept.
REFERENCES = {
    "ct w/contrast (iv)": {"ct w/contrast (iv)", "ct w/contrast iv", "ct w/contrast"},
    "face, sinuses, and neck#skull and contents": {"face, sinuses, and neck", "skull and contents"},
    "(iatrogenic) pneumoperitoneum": {
        "(iatrogenic) pneumoperitoneum", "iatrogenic pneumoperitoneum", "pneumoperitoneum"},
}  # fmt: skip


def test_vqa_med_references() -> None:
    for reference, expected in REFERENCES.items():
        got = vqa_med_2019.accepted(reference)
        assert set(got) == expected and len(got) == len(set(got)) and got[0] == reference.split("#")[0]


TRAINING = """synpic1|what modality is shown?|ct w/contrast (iv)
synpic1|in what plane is this?|axial
synpic1|what organ is this?|breast
synpic1|is this image normal?|no
synpic2|is \tthis a t1 weighted image?|yes
synpic2|what is abnormal?|crohn's d\u00efsease#x

"""
TEST = """synpic8|modality|what type of imaging modality is shown?|ct w/contrast (iv)
synpic9|organ|what organ system is imaged?|face, sinuses, and neck#skull and contents
synpic7|abnormality|is this image normal?|Yes
"""


def write_vqa_med(root: Path, train: object = TRAINING, test: object = TEST) -> Path:
    layout = LAYOUT["vqa_med_2019"]
    for split, images in (("train", "12"), ("val", "3"), ("test", "789")):
        for number in images:
            write_picture(root / layout[f"{split}_images"] / f"synpic{number}.jpg")
    put(root / layout["train"], train)
    put(root / layout["val"], "synpic3|what is the plane?|pa\r\n")
    put(root / layout["test"], test)
    folder = (root / layout["train"]).parent / "QAPairsByCategory"
    for name, numbers in (("C1_Modality", (0, 4)), ("C2_Plane", (1,)), ("C3_Organ", (2,)), ("C4_Abnormality", (3, 5))):
        put(folder / f"{name}_train.txt", "\n".join(TRAINING.split("\n")[i] for i in numbers))
    put((root / layout["val"]).parent / "QAPairsByCategory" / "C2_Plane_val.txt", "synpic3|what is the plane?|pa\n")
    return root


def test_vqa_med_quirks(tmp_path: Path) -> None:
    root = write_vqa_med(tmp_path / "a set")
    questions = vqa_med_2019.read(root, LAYOUT["vqa_med_2019"])
    assert [q.split for q in questions] == ["train"] * 6 + ["val"] + ["test"] * 3
    expected = ["1-1", "1-2", "1-3", "1-4", "2-1", "2-2"]
    assert [q.question_id for q in questions[:6]] == [f"synpic{ending}" for ending in expected]
    assert questions[0].answers == ("ct w/contrast (iv)",)  # a class's name in training, an optional part in the test
    assert questions[5].answers == ("crohn's d\u00efsease#x",)  # no alternatives in training either
    assert questions[4].question == "is this a t1 weighted image?"
    types = [q.question_type for q in questions]
    assert types[:5] == ["modality", "plane", "organ", "abnormality", "modality"]
    assert types[5:] == ["abnormality", "plane", "modality", "organ", "abnormality"]
    assert questions[8].answers == ("face, sinuses, and neck", "skull and contents")
    assert [q.closed_yes_no for q in questions] == [i in (3, 4, 9) for i in range(10)]
    assert questions[9].answer == "yes" and questions[9].closed_field and questions[6].answer == "pa"
    without = vqa_med_2019.read(root, LAYOUT["vqa_med_2019"], "without_abnormality")
    assert without == [q for q in questions if q.question_type != "abnormality"]


def test_vqa_med_without_its_files_by_category(tmp_path: Path) -> None:
    root = write_vqa_med(tmp_path)
    next(root.rglob("C2_Plane_train.txt")).write_text("\ufeff\n", encoding="utf-8")  # empty is as absent
    questions = vqa_med_2019.read(root, LAYOUT["vqa_med_2019"])
    assert [q.question_type for q in questions[:3]] == ["modality", "", "organ"]
    message = r"All_QA_Pairs_train.txt, line 2: the question is in no file by category"
    refused("vqa_med_2019", root, message, training_file="without_abnormality")


# --- bad input ---


WRITERS = {"vqa_rad": write_vqa, "slake": write_slake, "pathvqa": write_pathvqa}
DAMAGED = [
    ("vqa_rad", [record(answer=True)], "qid 7: answer is missing, empty or not text"),
    ("vqa_rad", [record(image_name="b.jpg")], "b.jpg: image of question 7 is missing"),
    ("vqa_rad", [record(phrase_type="dev")], "qid 7: phrase_type 'dev' is not one of"),
    ("vqa_rad", [record(), record(qid="7")], "Public.json: record qid 7: qid 7 occurs twice"),
    ("vqa_rad", '[{"qid": 1,\n "question": }]', "VQA_RAD Dataset Public.json, line 2: not valid JSON"),
    ("slake", [slake_record(qid=902)], "test.json: record qid 902: qid 902 occurs twice .*train.json"),
    ("pathvqa", pickle.dumps(PATHVQA_ROWS)[:60], "train_qa.pkl: not a readable pickle"),
    ("pathvqa", pickle.dumps([{**PATHVQA_ROWS[0], "answer": ["x"]}]), r"0 \(train_0000\): answer is missing, empty"),
    ("train", "synpic1|what?|ct\nsynpic1|what is it?\n", "train.txt, line 2: 2 fields, expected 3 .image|question"),
    ("train", b"synpic1|what?|crohn\xb4s\n", "All_QA_Pairs_train.txt, line 1: not UTF-8"),
    ("test", "synpic8|plane|what?|#()\n", "Ref_Answers.txt, line 1: answer is empty"),
    ("test", "synpic8|plane|what?|pa\nsynpic8|organ|which?|eye\n", "line 2: a question about image synpic8 occurs"),
]


@pytest.mark.parametrize(("kind", "content", "message"), DAMAGED, ids=lambda value: str(value)[:40])
def test_damaged_files_are_named(tmp_path: Path, kind: str, content: object, message: str) -> None:
    folder = tmp_path / "a set"
    root = WRITERS[kind](folder, content) if kind in WRITERS else write_vqa_med(folder, **{kind: content})
    refused({"train": "vqa_med_2019", "test": "vqa_med_2019"}.get(kind, kind), root, message)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vqa_rad", {"training_file": "x"}, "training_file: 'x' is not one of official1797, published3064"),
        ("vqa_rad", {"language": "zh"}, "vqa_rad: language: 'zh' is not one of en"),
        ("slake", {"language": "fr"}, r"slake: language: 'fr' is not one of en, zh, en\+zh"),
        ("vqa_rad", {}, r"set DATA_ROOT to the folder that holds vqa_rad/ .make data DATASETS=vqa_rad fetches it"),
        ("medpix2", {}, "'medpix2' is for pretraining, not for questions"),
        ("nothing", {}, "'nothing' has no manifest.*vqa_rad"),
    ],
)
def test_unknown_sets_and_choices_are_named(tmp_path: Path, monkeypatch, name: str, settings: dict, message: str):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "no data"))
    with pytest.raises(InputError, match=message):
        datasets.load_questions(name, **settings)


def test_a_small_pickle_takes_no_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    """Memo, bytes and text of 8 GiB, said in a few bytes."""
    for n, content in enumerate((b"]r\xff\xff\xff\x3f.", b"\x96\0\0\0\0\2\0\0\0.", b"\x8d\0\0\0\0\2\0\0\0.")):
        root = write_pathvqa(tmp_path / str(n), b"\x80\x05" + content)
        tracemalloc.start()
        refused("pathvqa", root, "not a readable pickle")
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
        tracemalloc.stop()
