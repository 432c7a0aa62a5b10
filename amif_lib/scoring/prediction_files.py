"""Anyone's file of predictions as answers by question id."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import normalise_answer
from amif_lib.scoring import user_files

# What a column may be called, most telling name first: beside `pred`, a column `answer` holds the accepted answer.
COLUMNS = {
    "question id": ("question_id", "qid", "id"),
    "answer": ("prediction", "pred", "answer"),
    "log-likelihoods": ("log_likelihoods",),  # of JSON records: an object from candidate answer to number
}


@dataclass(frozen=True)
class PredictionFile:
    """`table` has, by question id, the normalised `answer` and its `place` in the file; `fields` which column was read
    as what; `scores`, where the file has them, the log-likelihoods of normalised answers (questions, answers)."""

    table: pd.DataFrame
    fields: dict[str, str]
    scores: pd.DataFrame | None


def read(path: Path | str) -> PredictionFile:
    """The predictions in a file (`user_files.read`).

    An id is a text or a whole number (12.0 is "12"). An answer is a text or a number and may be empty or null. Raises
    InputError, naming file and line or record: unknown columns, no id, no or several answers, a question twice.
    """
    records = user_files.read(path)
    names = user_files.name_columns(records, COLUMNS, ("question id", "answer"), path)
    plain = user_files.each(records, lambda record: _prediction(record, names))
    table = pd.DataFrame(plain, columns=["id", "answer", "scores"]).assign(place=records.index).set_index("id")
    twice = table.index.duplicated()
    if twice.any():
        question, place = table.index[twice][0], table["place"][twice].iloc[0]
        first = table["place"][~twice][question].removeprefix(paths.shown(Path(path))).lstrip(", ")
        raise InputError(f"{place}: question {question} is answered twice, first at {first}; keep one")
    if "log-likelihoods" not in names:
        return PredictionFile(table, names, None)
    scores = pd.DataFrame(table["scores"].tolist(), index=table.index)
    if scores.isna().any(axis=None):
        place, answer = scores.set_axis(table["place"]).isna().stack().idxmax()
        raise InputError(f"{place}: {answer!r} has no log-likelihood, as in other records; score all in all")
    return PredictionFile(table, names, scores)


def _prediction(record: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, str, dict[str, float]]:
    """Id, answer and log-likelihoods of a record. ValueError says what is wrong with it."""
    question, answer = record[names["question id"]], record[names["answer"]]
    if isinstance(question, float) and question.is_integer():
        question = int(question)
    if isinstance(question, float) or not user_files.is_text(question) or not str(question).strip():
        raise ValueError(f"{names['question id']} is missing or no id; give the question's id")
    if answer is not None and not user_files.is_text(answer):
        raise ValueError(
            f"{names['answer']} is missing or not one text; give one answer (an empty one counts as wrong)"
        )
    scores = {}
    if name := names.get("log-likelihoods"):
        if not isinstance(record[name], dict) or not record[name]:
            raise ValueError(f"{name} is missing or no object from answer to number; give one for every question")
        for text, number in record[name].items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"{name}: {text!r} has no finite number; give its log-likelihood")
            if normalise_answer(text) in scores:
                raise ValueError(f"{name}: {text!r} occurs twice, case and white space set aside; keep one")
            scores[normalise_answer(text)] = float(number)
    return str(question).strip(), "" if answer is None else normalise_answer(answer), scores


def read_candidates(path: Path | str) -> set[str]:
    """The answers that a system chose among: a JSON list, a JSON object from answer to number or back, or lines."""
    path, shown = Path(path), paths.shown(Path(path))
    text = user_files.read_text(path)
    if path.suffix.lower() not in (".json", ".txt"):
        raise InputError(f"{shown}: give candidates as a .json list, or as .txt with one on each line")
    content = text.split("\n") if path.suffix.lower() == ".txt" else user_files.read_json(text, path)
    if isinstance(content, dict):
        content = list(content if all(isinstance(value, int) for value in content.values()) else content.values())
    if not isinstance(content, list) or not all(map(user_files.is_text, content)):
        raise InputError(f"{shown}: must hold a list of answers, each a text; bring it into that form")
    if not (found := {normalise_answer(one) for one in content} - {""}):
        raise InputError(f"{shown}: no candidate; give the answers that the predictions were chosen among")
    return found
