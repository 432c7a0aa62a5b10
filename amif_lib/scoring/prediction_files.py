"""Anyone's file of predictions as answers by question id: CSV, TSV, JSON or JSON lines with column names in common use.

Which column was read as what is reported, never guessed silently.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import normalise_answer

# What a column may be called, most telling name first: beside `pred`, a column `answer` holds the accepted answer.
SCORES = "log_likelihoods"  # of JSON records, optional: an object from candidate answer to its log-likelihood
FIELDS = {"question id": ("question_id", "qid", "id"), "answer": ("prediction", "pred", "answer")}


@dataclass(frozen=True)
class PredictionFile:
    """Normalised answers and their places in the file, both by question id, and which column was read as what.

    `scores` has, by question id, every candidate's log-likelihood, or is empty where the file has none.
    """

    answers: dict[str, str]
    places: dict[str, str]
    fields: dict[str, str]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def read(path: Path | str) -> PredictionFile:
    """The predictions in a file: a list of records, or a JSON object from question id to answer, told by its ending.

    An id is a text or a whole number (12 is "12"). An answer is a text or a number and may be empty or null. Raises
    InputError, naming file and line or record: not readable, cut off, unknown columns, no or several answers.
    """
    path, shown = Path(path), paths.shown(Path(path))
    records = list(_records(path, shown))
    if not records:
        raise InputError(f"{shown}: no predictions; give one answer per test question")
    present = {key for _, record in records for key in record}
    fields = {kind: next((name for name in known if name in present), "") for kind, known in FIELDS.items()}
    for kind, name in fields.items():
        if not name:
            found = ", ".join(sorted(present))
            raise InputError(
                f"{shown}: no column for the {kind} (known names: {', '.join(FIELDS[kind])}); its columns are {found}; "
                "rename one"
            )
    answers: dict[str, str] = {}
    places: dict[str, str] = {}
    scores: dict[str, dict[str, float]] = {}
    for place, record in records:
        question, answer = _identifier(record, fields["question id"], place), _answer(record, fields["answer"], place)
        if question in answers:
            raise InputError(f"{place}: question {question} is answered twice, first at {places[question]}; keep one")
        answers[question], places[question] = answer, place.removeprefix(shown).lstrip(":, ")
        if SCORES in present:
            scores[question] = _scores(record, place)
            first = next(iter(scores.values()))
            if scores[question].keys() != first.keys():
                odd = min(scores[question].keys() ^ first.keys())
                raise InputError(
                    f"{place}: {SCORES}: {odd!r} is scored in some records and not in others; score all in all"
                )
    return PredictionFile(answers, places, fields | ({"log-likelihoods": SCORES} if scores else {}), scores)


def read_candidates(path: Path | str) -> set[str]:
    """The answers that a system chose among: a JSON list, a JSON object from answer to number or back, or text lines."""
    path, shown = Path(path), paths.shown(Path(path))
    content: Any = _text(path, shown)
    if path.suffix.lower() == ".json":
        content = _json(content, shown)
        if isinstance(content, dict):
            content = list(content if all(isinstance(value, int) for value in content.values()) else content.values())
    elif path.suffix.lower() == ".txt":
        content = content.splitlines()
    else:
        raise InputError(f"{shown}: give candidates as a .json list, or as .txt with one on each line")
    if not isinstance(content, list) or not all(isinstance(one, str | int) for one in content):
        raise InputError(f"{shown}: must hold a list of answers, each a text; bring it into that form")
    if not (found := {normalise_answer(one) for one in content} - {""}):
        raise InputError(f"{shown}: no candidate; give the answers that the predictions were chosen among")
    return found


def _identifier(record: dict[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(f"{place}: {name} is missing or no id; give the question's id")
    return str(value).strip()


def _answer(record: dict[str, Any], name: str, place: str) -> str:
    value = record.get(name, ())
    if value is None or value != value:  # null, NaN
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{place}: {name} is missing or not one text; give one answer (an empty one counts as wrong)")
    return normalise_answer(value)


def _scores(record: dict[str, Any], place: str) -> dict[str, float]:
    """A record's log-likelihoods by normalised answer."""
    value = record.get(SCORES)
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"{place}: {SCORES} is missing or no object from answer to number; give one for every question"
        )
    out: dict[str, float] = {}
    for text, number in value.items():
        answer = normalise_answer(text)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InputError(f"{place}: {SCORES}: {text!r} has no finite number; give its log-likelihood")
        if answer in out:
            raise InputError(f"{place}: {SCORES}: {text!r} occurs twice, case and white space set aside; keep one")
        out[answer] = float(number)
    return out


def _records(path: Path, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, record)`, the place being file and line or record, keys in lower case."""
    kind = path.suffix.lower()
    if path.exists() and kind not in (".csv", ".tsv", ".json", ".jsonl"):
        raise InputError(f"{shown}: give predictions as .csv, .tsv, .json or .jsonl, or a run folder of the kit")
    text = _text(path, shown)
    found: Iterable[tuple[str, Any]]
    if kind == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        found = ((f"{shown}, line {n}", _json(line, shown, n)) for n, line in lines if line.strip())
    elif kind == ".json":
        content = _json(text, shown)
        if isinstance(content, dict):
            content = [{"question_id": key, "answer": value} for key, value in content.items()]
        if not isinstance(content, list):
            raise InputError(f"{shown}: must hold a list of records, or an object from question id to answer; mend it")
        found = ((f"{shown}: record {n}", record) for n, record in enumerate(content, start=1))
    else:
        found = _rows(text, "\t" if kind == ".tsv" else ",", shown)
    for place, record in found:
        if not isinstance(record, dict):
            raise InputError(f"{place}: not an object with named fields; give question id and answer")
        yield place, {str(key).strip().lower(): value for key, value in record.items()}


def _text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: not UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror}); name a file that is there") from None


def _rows(text: str, delimiter: str, shown: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            place = f"{shown}, line {reader.line_num}"
            if not header:
                header = [name.strip().lower() for name in cells]
                if doubled := [name for n, name in enumerate(header) if name in header[:n]]:
                    raise InputError(f"{place}: the header names {doubled[0]!r} twice; rename one column")
            elif cells:  # else a blank line
                if len(cells) != len(header):
                    raise InputError(
                        f"{place}: not {len(header)} cells as in the header; put answers with commas in quotes"
                    )
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{shown}, line {reader.line_num}: not valid CSV ({error}), perhaps cut off; mend it"
        ) from None


def _json(text: str, shown: str, line: int = 0) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # json keeps the last of equal keys, and says nothing
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for n, key in enumerate(keys) if key in keys[:n])
            raise InputError(
                f"{shown}{f', line {line}' if line else ''}: {twice!r} occurs twice in an object; keep one"
            )
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        place = f"{shown}, line {line or error.lineno}"
        raise InputError(
            f"{place}: not valid JSON ({error.msg}), perhaps cut off; mend it (JSON lines: .jsonl)"
        ) from None
    except InputError:
        raise
    except (RecursionError, ValueError):  # a number of thousands of digits is a plain ValueError
        place = f"{shown}{f', line {line}' if line else ''}"
        raise InputError(f"{place}: nested too deeply or a number too long; mend the file") from None
