"""Anyone's file of predictions as answers by question id."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import parse_json, read_text
from amif_lib.data.records import Question, normalise_answer
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions
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
    "log-likelihoods": ("log_likelihoods",),  # of JSON records: an object from candidate answer to number
}
# Columns of the sets and tools that are never predictions. A column of any other name may be a model's.
OTHERS = {name for names in (*COLUMNS.values(), *question_files.COLUMNS.values()) for name in names} | {
    *("question_type", "content_type", "base_type", "modality", "location", "triple", "image_organ", "category"),
    *(
        "image_case_url",
        "question_relation",
        "evaluation",
        "question_raw",
        "correct",
        "hit",
        "score",
        "prompt",
        "model",
    ),
    *("model_id", "answer_id", "resps", "dataset", "type", "qid_para", "messages", "task", "log", "place", "options"),
}


@dataclass(frozen=True)
class PredictionFile:
    """`table` has, by question id, the normalised `answer` and its `place` in the file; `fields` which column was read
    as what; `scores`, where the file has them, the log-likelihoods of normalised answers (questions, answers);
    `notes` what a reader must know; `untold` the questions for which it cannot be told which record answers them."""

    table: pd.DataFrame
    fields: dict[str, str]
    scores: pd.DataFrame | None
    notes: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()


def read(path: Path | str, questions: Sequence[Question], prediction: str = "", identity: str = "") -> PredictionFile:
    """The predictions in a file (`user_files.read`) on the test questions of `questions`.

    The columns `prediction` and `identity` hold predictions and question ids, where they are given; else they are told
    by name. Records are told apart by their ids or, where these are not the set's, by image, question and accepted
    answer. An answer is a text or a number and may be empty or null. Raises InputError, naming file and line or record:
    unknown or several columns, no id, no or several answers, a question twice.
    """
    records, shown = user_files.read(path), paths.shown(Path(path))
    names, guessed = _columns(records, shown, prediction.strip().lower(), identity.strip().lower())
    test, notes, untold = [q for q in questions if q.split == "test"], [], ()
    known = {answer for q in questions for answer in q.answers}
    plain = user_files.each(records, lambda record: _prediction(record, names, known))
    table = pd.DataFrame(plain, columns=["id", "answer"]).assign(place=records.index)
    for field in ("question", "image", "accepted answer"):
        table[field] = records[names[field]].map(_text).to_numpy() if field in names else ""
    if "question" in names and not identity and not _ids_fit(table, test):
        fields = [field for field in ("image", "question", "accepted answer") if field in names]
        table, untold, said = _match(table, test, fields, shown)
        names.pop("question id", None)
        notes.append(said)
    elif "question id" not in names:
        raise user_files.lacking("question id", records, COLUMNS, shown, " or use --id COLUMN")
    if (table["id"] == "").any():
        place = table["place"][table["id"] == ""].iloc[0]
        raise InputError(f"{place}: {names['question id']} is missing or no id; give the question's id")
    if "accepted answer" in names:
        notes.append(_about_accepted(table, test, names, guessed, shown))
    table = table.set_index("id")
    twice = table.index.duplicated()
    if twice.any():
        question, place = table.index[twice][0], table["place"][twice].iloc[0]
        first = table["place"][~twice][question].removeprefix(shown).lstrip(", ")
        raise InputError(f"{place}: question {question} is answered twice, first at {first}; keep one")
    scores = None
    if "log-likelihoods" in names:
        scores = _scores(records, names["log-likelihoods"]).loc[table["place"]].set_axis(table.index)
    return PredictionFile(table, names, scores, tuple(notes), untold)


def read_run(folder: Path, questions: Sequence[Question]) -> PredictionFile:
    """The predictions of a run folder; InputError where its accepted answers differ from those of `questions`."""
    stored, ranked = read_predictions(folder)
    shown, gold = paths.shown(folder / PREDICTIONS), {q.question_id: set(q.answers) for q in questions}
    for name, answers in zip(stored["question_id"], stored["gold"], strict=True):
        if name in gold and set(answers) != gold[name]:
            raise InputError(
                f"{shown}: question {name}: its accepted answers are not the data set's; the run was made on other "
                "data or the file was edited, run the fine-tuning again"
            )
    ids = pd.Index(stored["question_id"])
    table = pd.DataFrame({"answer": stored["generated"].to_numpy(), "place": shown}, index=ids)
    scores = pd.DataFrame(np.stack(stored["log_likelihoods"]), index=ids, columns=ranked["answer"])
    return PredictionFile(table, {"prediction": "generated"}, scores)


def _columns(records: pd.DataFrame, shown: str, prediction: str, identity: str) -> tuple[dict[str, str], bool]:
    """Which column holds what, and whether that of the predictions was told by nothing but being the only one."""
    for name, option in ((prediction, "--prediction"), (identity, "--id")):
        if name and name not in records:
            raise InputError(f"{option} {name}: no such column in {shown}; it has {', '.join(sorted(records))}")
    names = user_files.name_columns(records, COLUMNS)
    named = [name for name in COLUMNS["prediction"] if name in records]
    others = [name for name in records if name not in OTHERS and records[name].map(_wordy).mean() > 0.5]
    possible = [prediction] if prediction else named or (others if "accepted answer" in names else [])
    if len(possible) > 1:
        listed = ", ".join([*possible, *(["answer"] if "answer" in records else [])])
        raise InputError(f"{shown}: several columns may be the predictions ({listed}); choose with --prediction COLUMN")
    if not possible and "answer" not in records:
        raise user_files.lacking("prediction", records, COLUMNS, shown, " or use --prediction COLUMN")
    names |= {"prediction": (possible or ["answer"])[0]} | ({"question id": identity} if identity else {})
    if not isinstance(records[names.get("log-likelihoods", names["prediction"])].iloc[0], dict):
        names.pop("log-likelihoods", None)
    names = {field: name for field, name in names.items() if field == "prediction" or name != names["prediction"]}
    return names, not prediction and not named and bool(others)


def _wordy(cell: Any) -> bool:
    """Whether a cell may be an answer: a text that is no number and no truth value."""
    cell = _one(cell)
    return (
        isinstance(cell, str) and not cell.strip().lower().replace(".", "").isdigit() and cell not in ("True", "False")
    )


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


def _scores(records: pd.DataFrame, column: str) -> pd.DataFrame:
    """Log-likelihoods (records, normalised answers). InputError where a record lacks one that others have."""
    cells = [cell if isinstance(cell, dict) else {} for cell in records[column]]
    plain = [{normalise_answer(text): number for text, number in cell.items()} for cell in cells]
    if twice := [n for n, cell in enumerate(cells) if len(plain[n]) < len(cell)]:
        raise InputError(f"{records.index[twice[0]]}: {column}: an answer occurs twice, case set aside; keep one")
    scores = pd.DataFrame(plain, index=records.index).apply(pd.to_numeric, errors="coerce").sort_index(axis=1)
    if (bad := ~np.isfinite(scores)).any(axis=None):
        place, answer = bad.stack().idxmax()
        raise InputError(f"{place}: {column}: {answer!r} has no finite number; score all answers in all records")
    return scores


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
    """The table with the ids of the questions that its records answer, the questions left untold, and what was done.

    Questions with equal `fields` are told apart where the file has the set's order; else they need not be where their
    predictions are equal, and are untold otherwise. InputError where a question has no record.
    """
    (theirs, ours), _ = user_files.image_names(table["image"], [str(q.image_path) for q in test])
    cells = {"image": (theirs, ours)}
    cells["question"] = table["question"].map(leaks.plain), [leaks.plain(q.question) for q in test]
    cells["accepted answer"] = table["accepted answer"], [q.answer for q in test]
    for chosen in (
        fields,
        [field for field in fields if field != "accepted answer"],
    ):  # theirs may be written otherwise
        theirs, ours = (list(zip(*(cells[field][side] for field in chosen), strict=True)) for side in (0, 1))
        rows, pairs, untold = defaultdict(list), {}, []
        for number, key in enumerate(theirs):
            rows[key].append(number)
        asked = Counter(ours)
        for number, (question, key) in enumerate(zip(test, ours, strict=True)):
            found = [number] if theirs == ours else rows[key]
            if len(found) == 1 or (
                found and len(rows[key]) >= asked[key] and table["answer"].iloc[found].nunique() == 1
            ):
                pairs[question.question_id] = found[-1]
            elif found:
                untold.append(question.question_id)
        lacking = [q.question_id for q in test if q.question_id not in {*pairs, *untold}]
        if not lacking and pairs:
            how = "order and words" if theirs == ours else ", ".join(chosen)
            said = f"The file has no ids of the set: {len(pairs)} of {len(test)} questions are matched by {how}."
            return table.iloc[list(pairs.values())].assign(id=list(pairs)), tuple(untold), said
    raise InputError(
        f"{shown}: has no ids of the set, and by {', '.join(fields)} {len(lacking)} of {len(test)} test questions "
        f"(first {(lacking or untold)[0]}) are not in it; give their ids (--id COLUMN)"
    )


def _about_accepted(
    table: pd.DataFrame, test: Sequence[Question], names: Mapping[str, str], guessed: bool, shown: str
) -> str:
    """How often the file's accepted answers are the set's. InputError where they say that columns were mistaken."""
    gold = {q.question_id: q.answers for q in test}
    rows = table[table["id"].isin(gold)]
    same = sum(answer in gold[name] for name, answer in zip(rows["id"], rows["accepted answer"], strict=True))
    column, chosen = names["accepted answer"], names["prediction"]
    if guessed and same < 0.9 * len(rows):
        raise InputError(f"{shown}: the predictions may be in {column} or {chosen}; choose with --prediction COLUMN")
    choice = f" (or use --prediction {column})" if same < len(rows) else ""
    return f"{column} is read as the accepted answer and not scored; it is the set's in {same} of {len(rows)}{choice}."


def renumbered(ids: pd.Index, test: Sequence[str]) -> str:
    """What ids that are not the set's look like, for a message; empty if nothing known."""
    numbers = pd.to_numeric(pd.Series(ids), errors="coerce")
    if numbers.isna().any():
        return ""
    if sorted(numbers) == list(range(int(numbers.min()), int(numbers.min()) + len(numbers))) and numbers.min() in (
        0,
        1,
    ):
        return f"; {int(numbers.min())} to {int(numbers.max())} are row numbers, as the hub's files have, and no ids"
    for off in (-1, 1):
        if set(test) <= {str(int(number) + off) for number in numbers}:
            return f"; they are the set's ids {'plus' if off < 0 else 'minus'} 1"
    return ""


def read_candidates(path: Path | str) -> set[str]:
    """The answers that a system chose among: a JSON list, a JSON object from answer to number or back, or lines."""
    path, shown = Path(path), paths.shown(Path(path))
    text = read_text(path, "name a file that is there")
    if path.suffix.lower() not in (".json", ".txt"):
        raise InputError(f"{shown}: give candidates as a .json list, or as .txt with one on each line")
    content = text.split("\n") if path.suffix.lower() == ".txt" else parse_json(text, shown, once=True)
    if isinstance(content, dict):
        content = list(content if all(isinstance(value, int) for value in content.values()) else content.values())
    if not isinstance(content, list) or not all(map(user_files.is_text, content)):
        raise InputError(f"{shown}: must hold a list of answers, each a text; bring it into that form")
    if not (found := {normalise_answer(one) for one in content} - {""}):
        raise InputError(f"{shown}: no candidate; give the answers that the predictions were chosen among")
    return found
