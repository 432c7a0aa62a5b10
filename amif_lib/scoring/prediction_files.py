"""Reads a user's file of predictions: answers by question id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import Question, normalise_answer
from amif_lib.scoring import leaks, question_files, user_files

# Known names of each column, the most specific first: those of lmms-eval, VLMEvalKit, MedEvalKit, LLaVA-Med, PMC-VQA,
# Every Eval Ever and the data sets' own annotations.
COLUMNS = {
    "question id": ("question_id", "qid", "id", "questionid", "sample_id", "doc_id", "index"),
    "prediction": (
        *("prediction", "pred", "predictions", "response", "answer_pred", "pred_answer", "model_answer"),
        *("generated_answer", "predicted_answer", "model_response", "model_output", "output", "output.raw", "outputs"),
        *("generated", "generated_text", "filtered_resps", "predicted", "hypothesis", "text"),
    ),
    "accepted answer": (
        *("target", "gold", "gt_answer", "ground_truth", "gt", "reference", "input.reference", "correct_answer"),
        *("doc.answer", "label", "answers", "answer"),
    ),
    "question": (*question_files.COLUMNS["question"], "doc.question", "input.raw"),
    "image": (*question_files.COLUMNS["image"], "doc.image"),
}
KNOWN = {name for columns in (COLUMNS, question_files.COLUMNS) for names in columns.values() for name in names}
WORDS = ("image", "question", "accepted answer")  # by which questions are matched if ids are not the data set's


@dataclass(frozen=True)
class PredictionFile:
    """`answers`, normalised, by question id, and how they were read.

    `fields`: which column was read as what; `ambiguous`: the test questions that several records may answer.
    """

    answers: pd.Series
    fields: dict[str, str]
    note: str = ""
    ambiguous: Sequence[str] = ()


def read(path: Path | str, questions: Sequence[Question], prediction: str = "", identity: str = "") -> PredictionFile:
    """The predictions in a file (`user_files.read`) on the test questions of `questions`.

    `prediction` and `identity` name the columns of predictions and question ids; if empty, known names are looked for.
    Records are matched to questions by id or, if the ids are not the data set's, by image, question and accepted
    answer. An answer is a text or a number and may be empty or null. Raises InputError, naming file and line or record,
    for unknown or several columns, no id, no or several answers, a question twice, or a question without a prediction.
    """
    records, shown = user_files.read(path), paths.shown(Path(path))
    names = _columns(records, shown, prediction.strip().lower(), identity.strip().lower())
    test, note, ambiguous = [q for q in questions if q.split == "test"], "", ()
    plain = user_files.each(records, lambda record: _id_and_answer(record, names))
    table = pd.DataFrame(plain, columns=["id", "answer"]).assign(place=records.index)
    for field in WORDS:
        table[field] = records[names[field]].map(_text).to_numpy() if field in names else ""
    if "question" in names and not identity and not _ids_fit(table, test):
        table, ambiguous, note = _match(table, test, [field for field in WORDS if field in names], shown)
        names.pop("question id", None)
    elif "question id" not in names:
        raise user_files.lacking("question id", records, COLUMNS, shown, " or use --id COLUMN")
    if (nameless := table[table["id"] == ""]).size:
        place = nameless["place"].iloc[0]
        raise InputError(f"{place}: {names['question id']} is missing or no id; give the question's id")
    if "accepted answer" in names and "accepted answer" in table:  # unless records were matched by it
        note = " ".join(filter(None, (note, _about_accepted(table, test, names["accepted answer"]))))
    table = table.set_index("id")
    if (twice := table[table.index.duplicated()]).size:
        raise InputError(f"{twice['place'].iloc[0]}: question {twice.index[0]} is answered twice; keep one")
    if lacking := [q.question_id for q in test if q.question_id not in {*table.index, *ambiguous}]:
        raise InputError(
            f"{shown}: {len(lacking)} of {len(test)} test questions have no prediction, the first is {lacking[0]} (the "
            f"file's first is {table.index[0]}: are these the set's ids, or row numbers?); nothing is scored, add them "
            "(an empty answer counts as wrong)"
        )
    return PredictionFile(table["answer"], names, note, ambiguous)


def _columns(records: pd.DataFrame, shown: str, prediction: str, identity: str) -> dict[str, str]:
    """Which column holds what; InputError if several may hold the predictions.

    `answer` holds predictions only if no other column can. Beside a known name of predictions it is the accepted
    answer; beside an unknown name, which may be a model's, it can be either.
    """
    for name, option in ((prediction, "--prediction"), (identity, "--id")):
        if name and name not in records:
            raise InputError(f"{option} {name}: no such column in {shown}; it has {', '.join(sorted(records))}")
    names = user_files.name_columns(records, COLUMNS)
    found = [prediction] if prediction else [name for name in COLUMNS["prediction"] if name in records]
    if not found and "answer" in records:
        found = [*(name for name in records if name not in {*KNOWN, identity}), "answer"]
    if not found:
        raise user_files.lacking("prediction", records, COLUMNS, shown, " or use --prediction COLUMN")
    if len(found) > 1:
        said = f"several columns may be the predictions ({', '.join(found)})"
        raise InputError(f"{shown}: {said}; choose with --prediction COLUMN")
    names |= {"prediction": found[0]} | ({"question id": identity} if identity else {})
    return {field: name for field, name in names.items() if field == "prediction" or name != found[0]}


def _single(cell: Any) -> Any:
    """A cell without the lists of one element in which lmms-eval writes answers."""
    while isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    return cell


def _text(cell: Any) -> str:
    """A cell as text to compare: an image's path, the first of several answers, or an empty text."""
    cell = cell.get("path") if isinstance(cell, dict) else cell[0] if isinstance(cell, list) and cell else cell
    return normalise_answer(user_files.whole(cell)) if user_files.is_text(cell) else ""


def _id_and_answer(record: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, str]:
    """Id (empty if there is none) and answer of a record. Raises ValueError for an answer that is no text."""
    question, answer = record.get(names.get("question id", "")), _single(record[names["prediction"]])
    if answer is not None and not user_files.is_text(answer):
        raise ValueError(f"{names['prediction']} is missing or not one text; give one (an empty one counts as wrong)")
    question = user_files.whole(question) if user_files.is_text(question) else ""
    return question, "" if answer is None else normalise_answer(user_files.whole(answer))


# --- which record answers which question -----------------------------------------------------------------------------


def _ids_fit(table: pd.DataFrame, test: Sequence[Question]) -> bool:
    """Whether the ids are the set's: most are beside their question's words or, if no words fit, all are there."""
    known = {q.question_id: leaks.plain(q.question) for q in test}
    words = dict(zip(table["id"], table["question"].map(leaks.plain), strict=True))
    questions = set(known.values())
    asked = [name for name in known if words.get(name) in questions]
    same = sum(known[name] == words[name] for name in asked)
    return 2 * same >= len(asked) if asked else set(known) <= set(words)


def _match(
    table: pd.DataFrame, test: Sequence[Question], fields: list[str], shown: str
) -> tuple[pd.DataFrame, list[str], str]:
    """The table with ids of the questions that its records answer, the ambiguous questions, and what was done.

    A file in the set's order is read in that order. Otherwise, questions with equal `fields` are ambiguous, unless
    their predictions are equal too. Raises InputError if a question has no record.
    """
    (theirs, ours), _ = user_files.image_names(table["image"], [str(q.image_path) for q in test])
    cells = {"image": (theirs, ours)}
    cells["question"] = table["question"].map(leaks.plain), [leaks.plain(q.question) for q in test]
    cells["accepted answer"] = table["accepted answer"], [q.answer for q in test]
    ids, said = [q.question_id for q in test], "The file has no ids of the set: {} of {} questions are matched by {}."
    for chosen in (fields, [field for field in fields if field != "accepted answer"]):  # it may be written otherwise
        theirs, ours = (
            ["\t".join(key) for key in zip(*(cells[f][side] for f in chosen), strict=True)] for side in (0, 1)
        )
        if theirs == ours:
            return table.assign(id=ids), [], said.format(len(ids), len(ids), "order and words")
        asked = Counter(ours)  # how many questions look alike
        found = table["answer"].groupby(np.array(theirs)).agg(["first", "nunique", "size"]).reindex(ours).set_axis(ids)
        clear = (found["nunique"] == 1) & (found["size"] >= [asked[key] for key in ours])
        if found["size"].notna().all() and clear.any():
            matched = found["first"][clear].rename_axis("id").rename("answer").reset_index()
            return matched, [*clear.index[~clear]], said.format(len(matched), len(ids), ", ".join(chosen))
    lacking = found.index[found["size"].isna()]
    raise InputError(
        f"{shown}: has no ids of the set, and by {', '.join(chosen)} {len(lacking)} of {len(ids)} test questions "
        f"(first {[*lacking, *ids][0]}) are not in it; give their ids (--id COLUMN)"
    )


def _about_accepted(table: pd.DataFrame, test: Sequence[Question], column: str) -> str:
    """How often the file's accepted answers are the data set's: seldom, if the column was mistaken for them."""
    gold = {q.question_id: q.answers for q in test}
    rows = table[table["id"].isin(gold)]
    same = sum(answer in gold[name] for name, answer in zip(rows["id"], rows["accepted answer"], strict=True))
    choice = f" (or use --prediction {column})" if same < len(rows) else ""
    return f"{column} is read as the accepted answer and not scored; it is the set's in {same} of {len(rows)}{choice}."
