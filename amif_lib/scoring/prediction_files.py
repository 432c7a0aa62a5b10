"""Anyone's file of predictions as answers by question id."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import Question, normalise_answer
from amif_lib.scoring import leaks, question_files, user_files

# What a column may be called, most telling name first, as lmms-eval, VLMEvalKit, MedEvalKit, LLaVA-Med, PMC-VQA, Every
# Eval Ever and the sets' own annotations have it. `answer` is the accepted answer, unless no other column can be a
# prediction.
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
# Columns of the sets and tools that are never predictions. A column of any other name may be a model's.
OTHERS = {name for names in (*COLUMNS.values(), *question_files.COLUMNS.values()) for name in names} | {
    *("question_type", "content_type", "base_type", "modality", "location", "triple", "image_organ", "category"),
    *("image_case_url", "question_relation", "evaluation", "question_raw", "correct", "hit", "score", "prompt"),
    *("model", "model_id", "answer_id", "resps", "dataset", "type", "qid_para", "qid_linked_id", "messages", "task"),
    *("log", "place", "options", "log_likelihoods"),
}
WORDS = ("image", "question", "accepted answer")  # what tells questions apart where ids do not


@dataclass(frozen=True)
class PredictionFile:
    """`answers`, normalised, by question id, and what a reader must know of how they were read.

    `fields` says which column was read as what; `ambiguous` are the test questions that several records may answer.
    """

    answers: pd.Series
    fields: dict[str, str]
    notes: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()


def read(path: Path | str, questions: Sequence[Question], prediction: str = "", identity: str = "") -> PredictionFile:
    """The predictions in a file (`user_files.read`) on the test questions of `questions`.

    The columns `prediction` and `identity` hold predictions and question ids, where they are given; else they are told
    by name. Records are told apart by their ids or, where these are not the set's, by image, question and accepted
    answer. An answer is a text or a number and may be empty or null. Raises InputError, naming file and line or record:
    unknown or several columns, no id, no or several answers, a question twice, a test question without a prediction.
    """
    records, shown = user_files.read(path), paths.shown(Path(path))
    names = _columns(records, shown, prediction.strip().lower(), identity.strip().lower())
    test, notes, ambiguous = [q for q in questions if q.split == "test"], [], ()
    known = {answer for q in questions for answer in q.answers}
    plain = user_files.each(records, lambda record: _prediction(record, names, known))
    table = pd.DataFrame(plain, columns=["id", "answer"]).assign(place=records.index)
    for field in WORDS:
        table[field] = records[names[field]].map(_text).to_numpy() if field in names else ""
    if "question" in names and not identity and not _ids_fit(table, test):
        table, ambiguous, said = _match(table, test, [field for field in WORDS if field in names], shown)
        names.pop("question id", None)
        notes.append(said)
    elif "question id" not in names:
        raise user_files.lacking("question id", records, COLUMNS, shown, " or use --id COLUMN")
    if (table["id"] == "").any():
        place = table["place"][table["id"] == ""].iloc[0]
        raise InputError(f"{place}: {names['question id']} is missing or no id; give the question's id")
    if "accepted answer" in names:
        notes.append(_about_accepted(table, test, names))
    table = table.set_index("id")
    if (twice := table[table.index.duplicated()]).size:
        raise InputError(f"{twice['place'].iloc[0]}: question {twice.index[0]} is answered twice; keep one")
    answered = {*table.index, *ambiguous}
    if lacking := [q.question_id for q in test if q.question_id not in answered]:
        raise InputError(
            f"{shown}: {len(lacking)} of {len(test)} test questions have no prediction, the first is {lacking[0]} (the "
            f"file's first is {table.index[0]}: are these the set's ids, or row numbers?); nothing is scored, add them "
            "(an empty answer counts as wrong)"
        )
    return PredictionFile(table["answer"], names, tuple(notes), ambiguous)


def _columns(records: pd.DataFrame, shown: str, prediction: str, identity: str) -> dict[str, str]:
    """Which column holds what. InputError where several may be the predictions, or one has a name that is not known."""
    for name, option in ((prediction, "--prediction"), (identity, "--id")):
        if name and name not in records:
            raise InputError(f"{option} {name}: no such column in {shown}; it has {', '.join(sorted(records))}")
    names = user_files.name_columns(records, COLUMNS)
    named = [prediction] if prediction else [name for name in COLUMNS["prediction"] if name in records]
    others = [name for name in records if name not in OTHERS and records[name].map(_wordy).mean() > 0.5]
    if len(named) > 1 or (others and not named and "accepted answer" in names):
        listed = ", ".join([*(named or others), *(["answer"] if "answer" in records else [])])
        raise InputError(f"{shown}: several columns may be the predictions ({listed}); choose with --prediction COLUMN")
    if not named and "answer" not in records:
        raise user_files.lacking("prediction", records, COLUMNS, shown, " or use --prediction COLUMN")
    names |= {"prediction": (named or ["answer"])[0]} | ({"question id": identity} if identity else {})
    return {field: name for field, name in names.items() if field == "prediction" or name != names["prediction"]}


def _wordy(cell: Any) -> bool:
    """Whether a cell may be an answer: a text that is no number and no truth value."""
    cell = _one(cell)
    return isinstance(cell, str) and not cell.strip().replace(".", "").isdigit() and cell not in ("True", "False")


def _one(cell: Any) -> Any:
    """What is in a list of one, as lmms-eval writes answers."""
    while isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    return cell


def _text(cell: Any) -> str:
    """A cell to compare: of an image its path, of several answers the first; empty where there is none."""
    cell = cell.get("path") if isinstance(cell, dict) else cell[0] if isinstance(cell, list) and cell else cell
    return normalise_answer(user_files.whole(cell)) if user_files.is_text(cell) else ""


def _prediction(record: Mapping[str, Any], names: Mapping[str, str], known: Collection[str]) -> tuple[str, str]:
    """Id (empty: none) and answer of a record. ValueError says what is wrong with it.

    An answer 2.0 is `2`, unless it is among the answers `known` to be the set's.
    """
    question, answer = record.get(names.get("question id", "")), _one(record[names["prediction"]])
    question = user_files.whole(question) if user_files.is_text(question) else ""
    if answer is not None and not user_files.is_text(answer):
        raise ValueError(f"{names['prediction']} is missing or not one text; give one (an empty one counts as wrong)")
    answer = "" if answer is None else normalise_answer(answer)
    return question, answer if answer in known else user_files.whole(answer)


# --- which record answers which question -----------------------------------------------------------------------------


def _ids_fit(table: pd.DataFrame, test: Sequence[Question]) -> bool:
    """Whether the ids are the set's: they stand beside the questions' own words or, with other words, are all there."""
    known = {q.question_id: leaks.plain(q.question) for q in test}
    words = dict(zip(table["id"], table["question"].map(leaks.plain), strict=True))
    questions = set(known.values())
    asked = [name for name in known if words.get(name) in questions]
    same = sum(known[name] == words[name] for name in asked)
    return 2 * same >= len(asked) if asked else set(known) <= set(words)


def _match(
    table: pd.DataFrame, test: Sequence[Question], fields: list[str], shown: str
) -> tuple[pd.DataFrame, tuple[str, ...], str]:
    """The table with the ids of the questions that its records answer, the ambiguous questions, and what was done.

    Questions with equal `fields` are told apart where the file has the set's order; else they need not be where their
    predictions are equal, and are ambiguous otherwise. InputError where a question has no record.
    """
    (theirs, ours), _ = user_files.image_names(table["image"], [str(q.image_path) for q in test])
    cells = {"image": (theirs, ours)}
    cells["question"] = table["question"].map(leaks.plain), [leaks.plain(q.question) for q in test]
    cells["accepted answer"] = table["accepted answer"], [q.answer for q in test]
    without_answers = [field for field in fields if field != "accepted answer"]  # theirs may be written otherwise
    for chosen in (fields, without_answers):
        theirs, ours = (list(zip(*(cells[field][side] for field in chosen), strict=True)) for side in (0, 1))
        asked, records, pairs, ambiguous = Counter(ours), defaultdict(list), {}, []
        for number, key in enumerate(theirs):
            records[key].append(number)
        for number, (question, key) in enumerate(zip(test, ours, strict=True)):
            found = [number] if theirs == ours else records[key]
            if theirs == ours or (len(found) >= asked[key] and table["answer"].iloc[found].nunique() == 1):
                pairs[question.question_id] = found[-1]
            elif found:
                ambiguous.append(question.question_id)
        lacking = [q.question_id for q, key in zip(test, ours, strict=True) if not records[key]]
        if not lacking and pairs:
            how = "order and words" if theirs == ours else ", ".join(chosen)
            said = f"The file has no ids of the set: {len(pairs)} of {len(test)} questions are matched by {how}."
            return table.iloc[list(pairs.values())].assign(id=list(pairs)), tuple(ambiguous), said
    raise InputError(
        f"{shown}: has no ids of the set, and by {', '.join(fields)} {len(lacking)} of {len(test)} test questions "
        f"(first {(lacking or ambiguous)[0]}) are not in it; give their ids (--id COLUMN)"
    )


def _about_accepted(table: pd.DataFrame, test: Sequence[Question], names: Mapping[str, str]) -> str:
    """How often the file's accepted answers are the set's: a column that was mistaken shows."""
    gold = {q.question_id: q.answers for q in test}
    rows = table[table["id"].isin(gold)]
    same = sum(answer in gold[name] for name, answer in zip(rows["id"], rows["accepted answer"], strict=True))
    column = names["accepted answer"]
    choice = f" (or use --prediction {column})" if same < len(rows) else ""
    return f"{column} is read as the accepted answer and not scored; it is the set's in {same} of {len(rows)}{choice}."
