"""Reads a user's question-answer file, with the field names of VQA-RAD and MEVF, SLAKE, PathVQA and VQA v2."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import Question, normalise_answer
from amif_lib.scoring import leaks, user_files

# Known names of each field, the most specific first.
COLUMNS = {
    "question": ("question", "questions", "sent", "query", "question_text"),
    "answer": ("answer", "answers", "label", "gt_answer"),
    "image": (
        *("image_name", "img_name", "image", "img", "image_id", "img_id", "imageid", "image_path", "img_path"),
        *("file_name", "figure_path"),
    ),
    "split": ("split", "phrase_type", "subset"),
    "rephrase": ("question_rephrase", "q_rephase"),
    "frame": ("question_frame", "q_framed"),
    "closed": ("answer_type",),
    "language": ("q_lang", "language", "lang"),
}
SPLITS = {  # their names in files; freeform, para and frame are VQA-RAD's `phrase_type`
    "train": ("train", "training", "trainset", "freeform", "para", "frame"),
    "val": ("val", "valid", "validate", "validation", "valset", "dev"),
    "test": ("test", "testing", "testset", "test_freeform", "test_para", "test_frame"),
}
CLOSED = {"closed": True, "yes/no": True, "open": False, "number": False, "other": False}
NULLS = ("", "null", "none", "nan")  # how a missing wording is written


def read(path: Path | str, split: str = "") -> tuple[list[Question], str]:
    """The questions of a file (`user_files.read`), and a line that says which field was read as what.

    `split` (train, val or test), if given, is that of all questions. Otherwise the records' field decides or, if
    that names one split at most, the file's name: VQA-RAD's test questions circulate with the `phrase_type` of
    training. Raises InputError, naming file, record and field, if one is missing or not understood.
    """
    table, shown = user_files.read(path), paths.shown(Path(path))
    names, notes = user_files.name_columns(table, COLUMNS), []
    for field in ("question", "answer", "image"):
        if field not in names:
            raise user_files.lacking(field, table, COLUMNS, shown)
    in_field = {split_of(cell) for cell in table[names["split"]]} if "split" in names else set()
    by_name = {known for word in re.split(r"[^a-z]+", Path(path).stem.lower()) if (known := split_of(word))}
    if not (split or in_field or len(by_name) == 1):
        raise InputError(f"{shown}: neither a field nor its name says which split it is; use --train or --test FILE")
    if not split and len(in_field) < 2 and len(by_name) == 1:
        (split,) = by_name
        against = f" and against its {names['split']}; --train or --test FILE decides" if in_field - by_name else ""
        notes.append(f"every record is {split}, by the file's name{against}")
    if split:
        names.pop("split", None)
    questions = user_files.each(table.assign(number=range(len(table))), lambda record: _question(record, names, split))
    if "closed" not in names:
        notes.append("no answer_type, so closed means that the answer is yes or no")
    counts = Counter(q.split for q in questions)
    found = ", ".join(f"{counts[name]} {name}" for name in SPLITS if counts[name])
    fields = ", ".join(kind if kind == name else f"{kind} = {name}" for kind, name in names.items())
    return questions, "; ".join([f"{shown}: {found}; fields: {fields}", *notes])


def compare(
    files: Sequence[str], train: Sequence[str] = (), test: Sequence[str] = (), say: Callable[[str], object] = str
) -> pd.DataFrame:
    """`leaks.lines` of all files together; `say` is called with a line on how each file was read.

    The files in `train` (`test`) replace the training (test) questions in `files`.
    """
    given = {split for split, names in (("train", train), ("test", test)) if names}
    questions: list[Question] = []
    for split, names in (("", files), ("train", train), ("test", test)):
        for name in names:
            found, said = read(name, split)
            say(said)
            questions += [q for q in found if split or q.split not in given]
    parts = {split: [q for q in questions if q.split == split] for split in SPLITS}
    names, said = user_files.image_names(*([q.image_id for q in part] for part in parts.values()))
    if said:
        say(said)
    pairs = zip(chain(*parts.values()), chain(*names), strict=True)
    return leaks.lines([replace(question, image_id=name) for question, name in pairs])


def split_of(text: object) -> str:
    """`train`, `val` or `test` for a split's name in a file (`SPLITS`), or an empty text for another word."""
    return next((split for split, known in SPLITS.items() if str(text).strip().lower() in known), "")


def _question(record: Mapping[str, Any], names: Mapping[str, str], split: str) -> Question:
    """A record's question. Raises ValueError if a field is missing or not understood."""
    cells = {field: record[name] for field, name in names.items()}
    answers, image = _answers(cells.pop("answer")), _image(cells.pop("image"))
    if not (user_files.is_text(cells["question"]) and str(cells["question"]).strip()):
        raise ValueError(f"{names['question']} is missing, empty or not text; mend or remove the record")
    if not answers:
        raise ValueError(f"{names['answer']} is missing, empty or not text; give a text or a list of texts")
    if not image:
        raise ValueError(f"{names['image']} is missing, or neither a name nor a picture; mend or remove the record")
    text = {field: user_files.whole(cell) for field, cell in cells.items()}
    if not (split := split or split_of(text["split"])):
        raise ValueError(f"{names['split']} is {text['split']!r}; use train, val or test")
    closed = yes_no = answers[0] in ("yes", "no")
    if "closed" in text and (closed := CLOSED.get(text["closed"].lower())) is None:
        raise ValueError(f"{names['closed']} is {text['closed']!r}; use OPEN or CLOSED")
    optional = {field: cell for field, cell in text.items() if cell.lower() not in NULLS}
    return Question(
        question_id=str(record["number"]),
        image_id="/".join(user_files.image_parts(image)),
        image_path=Path(image),
        question=" ".join(text["question"].split()),
        answers=answers,
        split=split,
        closed_field=closed,
        closed_yes_no=yes_no,
        language=optional.get("language", "en"),
        extra={field: optional[field] for field in leaks.WORDINGS if field in optional},
    )


def _answers(cell: Any) -> tuple[str, ...]:
    """The accepted answers in a text, a number, or a list of these or of `{"answer": ...}`; empty for anything else."""
    given = cell if isinstance(cell, list) else [cell]
    given = [one.get("answer") if isinstance(one, dict) else one for one in given]
    is_text = all(map(user_files.is_text, given))
    return tuple(normalise_answer(user_files.whole(one)) for one in given) if is_text else ()


def _image(cell: Any) -> str:
    """An image's name; for the hub's `{bytes, path}`, the path or, if there is none, a digest of the bytes."""
    if isinstance(cell, dict):
        cell = cell.get("path") or (hashlib.sha256(cell["bytes"]).hexdigest() if cell.get("bytes") else None)
    return user_files.whole(cell) if user_files.is_text(cell) else ""
