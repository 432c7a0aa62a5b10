"""Anyone's question-answer file as questions: JSON, JSON lines or CSV with the field names that are in common use.

Understood are lists of objects, an object that holds one such list, an object of lists by split, the MEVF layout (the
same field names as VQA-RAD), the LXMERT layouts (`img_id` with `labelf`/`sentf`, or with `label`/`sent`), SLAKE's and
PathVQA's. Which field was read as what is reported, never guessed silently.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.records import Question
from amif_lib.scoring import leaks
from amif_lib.scoring.leaks import from_records

# What a field may be called, most telling name first; letters' case and blanks around a name do not matter.
FIELDS = {
    "question": ("question", "questions", "sent", "query"),
    "answer": ("answer", "answers", "label", "gt_answer"),
    "image": ("image_name", "img_name", "image", "img", "image_id", "img_id", "imageid", "image_path", "file_name"),
    "split": ("split", "phrase_type", "subset"),
    "question_id": ("qid", "question_id", "qid_unique", "id"),
    "linked_id": ("qid_linked_id", "qid_para"),
    "rephrase": ("question_rephrase", "q_rephase"),
    "frame": ("question_frame", "q_framed"),
    "closed": ("answer_type",),
    "language": ("q_lang", "language", "lang"),
}
REQUIRED = ("question", "answer", "image")
SPLITS = {
    "train": ("train", "training", "trainset", "freeform", "para", "frame"),
    "val": ("val", "valid", "validate", "validation", "valset", "dev"),
    "test": ("test", "testing", "testset", "test_freeform", "test_para", "test_frame"),
}
CLOSED = {"closed": True, "yes/no": True, "open": False, "number": False, "other": False}
NULLS = ("", "null", "none", "nan")  # how a missing wording or link is written
EXTENSION = re.compile(r"\.(jpe?g|png|gif|bmp|tiff?|webp|dcm)$", re.IGNORECASE)


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file, which field was read as what, and what else a reader must know."""

    path: Path
    questions: list[Question]
    fields: dict[str, str]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        counts = {split: sum(q.split == split for q in self.questions) for split in SPLITS}
        found = ", ".join(f"{n} {split}" for split, n in counts.items() if n)
        read = ", ".join(kind if kind == name else f"{kind} = {name}" for kind, name in self.fields.items())
        return "; ".join([f"{paths.shown(self.path)}: {found}; fields: {read}", *self.notes])


def read(path: Path | str, split: str = "") -> QuestionFile:
    """The questions of a file. `split` (train, val or test), where given, holds for all of its records.

    Else the split is a record's own field, or what the file's name says. Raises InputError, naming file, record and
    field: not readable, no record, a field missing, empty or not understood, no split to be found.
    """
    path = Path(path)
    where = paths.shown(path)
    records = list(_records(path, where))
    if not records:
        raise InputError(f"{where}: no records; give a file with questions and answers")
    names = _recognise(records, where)
    notes = []
    if split:
        names.pop("split", None)
    elif "split" not in names and not any("split" in own for own, _ in records):
        split = _split_of_name(path, where)
        notes.append(f"every record is {split}, by the file's name")
    plain = [_plain(record, names, own, split, f"{where}: record {n}") for n, (own, record) in enumerate(records, 1)]
    if empty := sum(not any(record["answer"]) for record in plain):
        notes.append(f"{empty} of {len(plain)} answers are empty")
    if "closed" not in names:
        notes.append("no answer_type, so closed means that the answer is yes or no")
    return QuestionFile(path, from_records(plain), names, tuple(notes))


def compare(
    files: Sequence[str], train: Sequence[str] = (), test: Sequence[str] = (), say: Callable[[str], object] = str
) -> pd.DataFrame:
    """`leaks.lines` of all the files together; `say` is told of each file what was recognised in it.

    The files under `train` (`test`) take the place of the training (test) questions in `files`.
    """
    questions: list[Question] = []
    for split, names in (("", files), ("train", train), ("test", test)):
        for name in names:
            found = read(name, split)
            say(str(found))
            unwanted = {part for part, given in (("train", train), ("test", test)) if given} if not split else set()
            questions += [q for q in found.questions if q.split not in unwanted]
    return leaks.lines(questions)


def is_data_set(given: Sequence[str]) -> bool:
    """Whether what was given is the name of a data set with a manifest rather than files."""
    return len(given) == 1 and not Path(given[0]).exists() and given[0] in manifests.names()


def _records(path: Path, where: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """`(what the place in the file says, record)`, keys in lower case."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{where}: is a folder; name the file with the questions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error}); save it as UTF-8") from None
    if path.suffix.lower() in (".csv", ".tsv"):
        found = [({}, row) for row in _csv(text, "\t" if path.suffix.lower() == ".tsv" else ",", where)]
    elif path.suffix.lower() == ".jsonl":
        found = [({}, _json(line, where, n)) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        found = list(_lists(_json(text, where), where))
    for number, (own, record) in enumerate(found, start=1):
        if not isinstance(record, dict):
            raise InputError(f"{where}: record {number} is not an object with named fields; mend or remove it")
        lower = {str(key).strip().lower(): value for key, value in record.items()}
        if "sentf" in lower or "labelf" in lower:
            yield from ((own, one) for one in _lxmert(lower, f"{where}: record {number}"))
        else:
            yield own, lower


def _json(text: str, where: str, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, line {line or error.lineno}: not valid JSON ({error.msg}); mend the file") from None
    except (RecursionError, ValueError):  # a number of thousands of digits is a plain ValueError
        raise InputError(
            f"{where}{f', line {line}' if line else ''}: nested too deeply or a number too long; mend the file"
        ) from None


def _csv(text: str, delimiter: str, where: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    for row in reader:
        if None in row or None in row.values():
            raise InputError(
                f"{where}, line {reader.line_num}: not {len(reader.fieldnames or ())} cells as in the header; mend it"
            )
        yield row


def _lists(content: Any, where: str) -> Iterator[tuple[dict[str, str], Any]]:
    if isinstance(content, list):
        yield from (({}, record) for record in content)
        return
    parts = (
        {key: value for key, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else {}
    )
    by_split = {key: split for key in parts if (split := _split_of(key))}
    if parts and len(by_split) == len(parts):
        for key, split in by_split.items():
            yield from (({"split": split}, record) for record in parts[key])
    elif len(parts) == 1:
        yield from (({}, record) for record in next(iter(parts.values())))
    else:
        raise InputError(f"{where}: must hold a list of records, or one list per split; bring it into that form")


def _lxmert(record: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """One record per question of LXMERT's `{img_id, labelf: {set: [answers]}, sentf: {set: [questions]}}`."""
    answers, questions = ([], [])
    for key, into in (("labelf", answers), ("sentf", questions)):
        for part in (record.get(key) or {}).values() if isinstance(record.get(key), dict) else ():
            into.extend(part if isinstance(part, list) else [part])
    if len(answers) != len(questions):
        raise InputError(f"{where}: sentf has {len(questions)} questions and labelf {len(answers)} answers; mend it")
    rest = {key: value for key, value in record.items() if key not in ("labelf", "sentf")}
    for question, answer in zip(questions, answers, strict=True):
        yield {**rest, "sent": question, "label": answer}


def _recognise(records: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]], where: str) -> dict[str, str]:
    present = {key for _, record in records for key in record}
    names = {kind: next((n for n in known if n in present), "") for kind, known in FIELDS.items()}
    for kind in REQUIRED:
        if not names[kind]:
            raise InputError(
                f"{where}: no field for the {kind} (known names: {', '.join(FIELDS[kind])}); "
                f"its fields are {', '.join(sorted(present))}; rename one"
            )
    return {kind: name for kind, name in names.items() if name}


def _plain(
    record: Mapping[str, Any], names: Mapping[str, str], own: Mapping[str, str], split: str, where: str
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind in REQUIRED:
        if record.get(names[kind]) is None:
            raise InputError(f"{where}: {names[kind]} is missing; mend or remove the record")
    out["question"], out["image"] = (_text(record, names[kind], where) for kind in ("question", "image"))
    out["image"] = EXTENSION.sub("", out["image"])
    out["answer"] = _answers(record[names["answer"]], f"{where}: {names['answer']}")
    out["split"] = split or own.get("split") or _record_split(record, names["split"], where)
    for kind in ("question_id", "linked_id", "rephrase", "frame", "language"):
        value = str(record.get(names.get(kind, ""), "")).strip()
        if value.lower() not in NULLS:
            out[kind] = value
    if "closed" in names:
        value = str(record.get(names["closed"], "")).strip().lower()
        if value not in CLOSED:
            raise InputError(f"{where}: {names['closed']} is {value!r}; use OPEN or CLOSED")
        out["closed"] = CLOSED[value]
    return out


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record[name]
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise InputError(f"{where}: {name} is empty or not text; mend or remove the record")
    return str(value).strip()


def _answers(value: Any, where: str) -> list[str]:
    """Accepted answers: a text or number, a list of them or of `{"answer": ...}`, or LXMERT's `{answer: score}`."""
    if isinstance(value, dict):
        value = [value["answer"]] if "answer" in value else list(value)
    given = value if isinstance(value, list) else [value]
    given = [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in given]
    if not given or not all(isinstance(one, str | int | float) for one in given):
        raise InputError(f"{where} is empty or not text; give a text or a list of texts")
    return [str(one).strip() for one in given]


def _split_of(text: str) -> str:
    value = text.strip().lower()
    return next((split for split, known in SPLITS.items() if value in known), "")


def _record_split(record: Mapping[str, Any], name: str, where: str) -> str:
    value = str(record.get(name, ""))
    if not (found := _split_of(value)):
        raise InputError(f"{where}: {name} is {value!r}; use train, val or test")
    return found


def _split_of_name(path: Path, where: str) -> str:
    found = {split for word in re.split(r"[^a-z]+", path.stem.lower()) if (split := _split_of(word))}
    if len(found) != 1:
        raise InputError(f"{where}: neither a field nor its name says which split it is; use --train or --test FILE")
    return found.pop()
