"""Reader for VQA-RAD: the official JSON and its image folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from amif_lib.core import paths
from amif_lib.data.readers import files
from amif_lib.data.readers.files import Record, one_line
from amif_lib.data.records import Question, normalise_answer

REQUIRED = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")
SPLITS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
NULL = "NULL"  # how the release writes a missing text
TYPES = {"PRSE": "PRES", "ATRIB": "ATTRIB"}  # misspelt in the release
TRAINING_FILES = ("official1797", "published3064", "clean2772", "image_disjoint")


def read(root: Path, layout: Mapping[str, str], training_file: str = "official1797") -> list[Question]:
    """Training questions of `training_file` (see `training_records`) and all test questions, in the file's order.

    Irregularities of the release are corrected: integer ids and answers, `'CLOSED '`, tabs, misspelt question types.
    `layout`: `annotations` (JSON file) and `images` (folder).
    """
    path, folder, seen = root / layout["annotations"], root / layout["images"], {}
    content = files.read_json(path)
    for number, record in enumerate(content):
        where = f"{paths.shown(path)}: record qid {record.get('qid', f'? (number {number})')}"
        files.check_keys(record, REQUIRED, where)
        files.check_one_of(record["phrase_type"], SPLITS, f"{where}: phrase_type")
        files.check_one_of(record["answer_type"].strip(), ("OPEN", "CLOSED"), f"{where}: answer_type")
        files.check_once(f"qid {record['qid']}", seen, where)
    test = [record for record in content if SPLITS[record["phrase_type"]] == "test"]
    parts = {"train": training_records(content, test, training_file), "test": test}
    return [_question(record, split, folder) for split, part in parts.items() for record in part]


def training_records(content: list[Record], test: list[Record], chosen: str) -> list[Record]:
    """The records of a training file, in the annotation file's order.

    `official1797`: those of the official split. `image_disjoint`: of these, those on images without a test record.
    `published3064`: the official ones, and after each record its templated variant (`question_frame`) if it has one.
    284 of the 1,267 variants belong to test records and carry their answers: this file leaks. It is what circulates as
    the 3,064 training questions and agrees with the paper's count. `clean2772`: the same without questions that equal a
    test question, its rephrasing or its variant on the same image.
    """
    official = [record for record in content if SPLITS[record["phrase_type"]] == "train"]
    if chosen == "official1797":
        return official
    if chosen == "image_disjoint":
        tested = {record["image_name"] for record in test}
        return [record for record in official if record["image_name"] not in tested]
    out = []
    for record in content:
        if SPLITS[record["phrase_type"]] == "train":
            out.append(record)
        if one_line(record.get("question_frame", NULL)) not in (NULL, ""):
            out.append({**record, "qid": f"{record['qid']}-frame", "question": record["question_frame"]})
    if chosen == "published3064":
        return out
    wordings = ("question", "question_rephrase", "question_frame")
    asked = {(r["image_name"], normalise_answer(r.get(key, NULL))) for r in test for key in wordings}
    return [r for r in out if (r["image_name"], normalise_answer(r["question"])) not in asked]


def _question(record: Record, split: str, folder: Path) -> Question:
    kinds = [kind.strip().upper() for kind in str(record.get("question_type", "")).split(",")]
    extra = {
        "phrase_type": record["phrase_type"],
        "image_organ": str(record.get("image_organ", "")),
        # the same question in other words, looked for among the training questions (`scoring.leaks`)
        "rephrase": one_line(record.get("question_rephrase", NULL)).removeprefix(NULL),
        "frame": one_line(record.get("question_frame", NULL)).removeprefix(NULL),
    }
    more = {
        "closed_field": record["answer_type"].strip() == "CLOSED",
        "question_type": ", ".join(TYPES.get(kind, kind) for kind in kinds),
        "extra": extra,
    }
    image = folder / record["image_name"]
    return files.question(record["qid"], image, record["question"], [record["answer"]], split, **more)
