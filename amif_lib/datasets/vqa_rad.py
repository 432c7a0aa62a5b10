"""Reader for VQA-RAD: the official JSON and its image folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amif_lib import paths
from amif_lib.datasets.records import Question, normalise_answer
from amif_lib.errors import InputError

REQUIRED = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")
SPLITS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
NULL = "NULL"  # how the release writes a missing text
TYPES = {"PRSE": "PRES", "ATRIB": "ATTRIB"}  # misspelt in the release


def records(path: Path) -> list[dict[str, Any]]:
    """The records of the JSON file, checked: all keys there, nothing empty, known types, each qid once.

    Raises:
        InputError: names the file and, where there is one, the record's qid.
    """
    name = paths.shown(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; see data_manifests/vqa_rad.md for where to get it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 ({error}); fetch the file again") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {error.lineno}: not valid JSON ({error.msg}); fetch the file again") from None
    if not isinstance(content, list) or not content:
        raise InputError(f"{name}: must hold a list of records; is it the official file?")
    seen: set[str] = set()
    for number, record in enumerate(content):
        if not isinstance(record, dict):
            raise InputError(f"{name}: record number {number} is not a JSON object; mend or remove it")
        where = f"{name}: record qid {record.get('qid', f'? (number {number})')}"
        for key in REQUIRED:
            if key not in record:
                raise InputError(f"{where}: key {key} is missing; mend or remove the record")
            if not isinstance(record[key], (str, int)) or isinstance(record[key], bool) or not str(record[key]).strip():
                raise InputError(f"{where}: {key} is empty or not text; mend or remove the record")
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


# Which training questions: a rule from all records to the training records (which may be variants of official ones).
TRAINING_FILES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "official1797": _official1797,
    "published3064": _published3064,
    "clean2772": _clean2772,
}
DEFAULT = "official1797"


def text(value: object) -> str:
    """A question as it is shown: tabs and runs of blanks (both occur in the release) become one blank."""
    return " ".join(str(value).split())


def read(root: Path, layout: Mapping[str, str], training_file: str = "default") -> list[Question]:
    """Training questions of `training_file` and all test questions, in the file's order.

    The release's quirks are evened out: integer ids and answers, `'CLOSED '`, tabs, misspelt question types.

    Args:
        root: folder that holds the set.
        layout: `annotations` (JSON file) and `images` (folder), under `root`.
        training_file: a key of `TRAINING_FILES`, or `default`.

    Raises:
        InputError: unknown training file; malformed record or missing image, naming file and qid.
    """
    chosen = DEFAULT if training_file == "default" else training_file
    if chosen not in TRAINING_FILES:
        known = ", ".join(("default", *TRAINING_FILES))
        raise InputError(f"training_file: {training_file!r} is not known for VQA-RAD; choose one of {known}")
    source, folder = root / layout["annotations"], root / layout["images"]
    content = records(source)
    present = {path.name for path in folder.glob("*")}
    test = [record for record in content if SPLITS[record["phrase_type"]] == "test"]
    questions = []
    for split, part in (("train", TRAINING_FILES[chosen](content)), ("test", test)):
        for record in part:
            if record["image_name"] not in present:
                raise InputError(
                    f"{paths.shown(folder / str(record['image_name']))}: image of qid {record['qid']} is missing; "
                    "fetch it or remove the record"
                )
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
        closed_yes_no=answer in ("yes", "no"),
        question_type=", ".join(kinds),
        extra=extra,
    )
