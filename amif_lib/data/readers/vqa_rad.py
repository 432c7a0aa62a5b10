"""Reader for VQA-RAD: the official JSON and its image folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.annotations import YES_NO, check_keys, choose, read_json, require_image, text
from amif_lib.data.records import Question, normalise_answer

REQUIRED = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")
SPLITS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
NULL = "NULL"  # how the release writes a missing text
TYPES = {"PRSE": "PRES", "ATRIB": "ATTRIB"}  # misspelt in the release


def records(path: Path) -> list[dict[str, Any]]:
    """The records of the JSON file, checked: all keys there, nothing empty, known types, each qid once.

    Raises:
        InputError: names the file and, where there is one, the record's qid.
    """
    name, content = paths.shown(path), read_json(path, "vqa_rad")
    seen: set[str] = set()
    for number, record in enumerate(content):
        where = f"{name}: record qid {record.get('qid', f'? (number {number})')}"
        check_keys(record, REQUIRED, where)
        if record["phrase_type"] not in SPLITS:
            raise InputError(f"{where}: phrase_type {record['phrase_type']!r} is not one of {', '.join(SPLITS)}")
        if record["answer_type"].strip() not in ("OPEN", "CLOSED"):
            raise InputError(f"{where}: answer_type {record['answer_type']!r} is neither OPEN nor CLOSED")
        if str(record["qid"]) in seen:
            raise InputError(f"{where}: this qid occurs twice; make it unique")
        seen.add(str(record["qid"]))
    return content


def _official1797(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The official training records."""
    return [record for record in content if SPLITS[record["phrase_type"]] == "train"]


def _published3064(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The official training records and the templated variant (`question_frame`) of every record that has one, which
    follows its record as in the circulating file (the nearest-question baseline takes the first of equals).

    284 of the 1,267 variants belong to test records and carry their answers: this file leaks. It is what circulates as
    the 3,064 training questions and agrees with the count that the paper gives.
    """
    out = []
    for record in content:
        if SPLITS[record["phrase_type"]] == "train":
            out.append(record)
        if text(record.get("question_frame", NULL)) not in (NULL, ""):
            out.append({**record, "qid": f"{record['qid']}-frame", "question": record["question_frame"]})
    return out


def _clean2772(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`published3064` without what equals a test question, its rephrasing or its variant on the same image."""
    wordings = ("question", "question_rephrase", "question_frame")
    asked = {
        (record["image_name"], normalise_answer(record.get(key, NULL)))
        for record in content
        if SPLITS[record["phrase_type"]] == "test"
        for key in wordings
    }
    return [
        record
        for record in _published3064(content)
        if (record["image_name"], normalise_answer(record["question"])) not in asked
    ]


def _image_disjoint(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The official training records on images that no test record asks about."""
    tested = {record["image_name"] for record in content if SPLITS[record["phrase_type"]] == "test"}
    return [record for record in _official1797(content) if record["image_name"] not in tested]


# Which training questions, the default first: a rule from all records to the training records (which may be variants of
# official ones).
TRAINING_FILES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "official1797": _official1797,
    "published3064": _published3064,
    "clean2772": _clean2772,
    "image_disjoint": _image_disjoint,
}


def read(
    root: Path, layout: Mapping[str, str], training_file: str = "default", *, images: bool = True
) -> list[Question]:
    """Training questions of `training_file` and all test questions, in the file's order.

    The release's quirks are evened out: integer ids and answers, `'CLOSED '`, tabs, misspelt question types.

    Args:
        root: folder that holds the set.
        layout: `annotations` (JSON file) and `images` (folder), under `root`.
        training_file: a key of `TRAINING_FILES`, or `default`.
        images: whether every question's image must be there; without, the annotations alone can be read and counted.

    Raises:
        InputError: unknown training file; malformed record or missing image, naming file and qid.
    """
    chosen = choose(training_file, TRAINING_FILES, "VQA-RAD")
    source, folder = root / layout["annotations"], root / layout["images"]
    content = records(source)
    present = {path.name for path in folder.glob("*")} if images else set()
    test = [record for record in content if SPLITS[record["phrase_type"]] == "test"]
    questions = []
    for split, part in (("train", TRAINING_FILES[chosen](content)), ("test", test)):
        for record in part:
            if images:
                image = str(record["image_name"])
                require_image(folder / image, present, image, f"qid {record['qid']}")
            questions.append(_question(record, split, folder))
    return questions


def _question(record: dict[str, Any], split: str, folder: Path) -> Question:
    answer = normalise_answer(record["answer"])
    kinds = [
        TYPES.get(kind.strip().upper(), kind.strip().upper())
        for kind in str(record.get("question_type", "")).split(",")
    ]
    extra = {
        "phrase_type": record["phrase_type"],
        "image_organ": str(record.get("image_organ", "")),
        "linked_id": str(record.get("qid_linked_id", "")),
        # the same question in other words, which `leaks` looks for among the training questions
        "rephrase": text(record.get("question_rephrase", NULL)).removeprefix(NULL),
        "frame": text(record.get("question_frame", NULL)).removeprefix(NULL),
    }
    return Question(
        question_id=str(record["qid"]),
        image_id=Path(record["image_name"]).stem,
        image_path=folder / record["image_name"],
        question=text(record["question"]),
        answers=(answer,),
        split=split,
        closed_field=record["answer_type"].strip() == "CLOSED",
        closed_yes_no=answer in YES_NO,
        question_type=", ".join(kinds),
        extra=extra,
    )
