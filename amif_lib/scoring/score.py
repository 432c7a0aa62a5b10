"""Scores a user's predictions on the test questions of a question set as the kit scores its own.

Answers alone are scored `as given`; the protocols that choose among candidates need a run folder of the kit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests
from amif_lib.data.records import Question
from amif_lib.experiments.predictions import question_frame, read_predictions
from amif_lib.experiments.stored import Run
from amif_lib.scoring import baselines, inference, prediction_files, protocols
from amif_lib.scoring.protocols import PROTOCOLS, Protocol

WARNING = "**WARNING**"
PARTS = (("overall", ""), ("open", "yes_no"), ("closed", "yes_no"), ("open", "answer_type"), ("closed", "answer_type"))
COMPARED = ("most_frequent", "nearest_question")  # the baselines that a paired test is made against
BESIDE = (*COMPARED, "vocabulary_ceiling")
_GIVEN = (
    "Each answer of the file as it stands: in lower case with white space collapsed (and none around punctuation), "
    "equal to an accepted answer or wrong. Open and closed are reported by both definitions: yes_no (the answer is yes "
    "or no) and answer_type (the data set's own mark)."
)
AS_GIVEN = Protocol("as given", 1, "generate", "yes_no", _GIVEN)
NOTES = {protocol.title: protocol.note for protocol in (*PROTOCOLS.values(), AS_GIVEN)}
EXPLAINED = (
    "Accuracies are percentages, differences points; 95% intervals are from resampling images (cases where a set has "
    "them), whose questions are not independent. p values (exact McNemar) take questions as independent and are not "
    "adjusted for their number, nor is detectable: the smallest true difference whose interval leaves out 0 in 80% of "
    "repetitions. lenient: wrong answers that contain an accepted one."
)


@dataclass(frozen=True)
class Score:
    """`notes` on what was scored, and a table with one line per protocol, part and system (predictions, baselines).

    `table` has the columns `dataset, training_file, language, protocol, split (overall|open|closed), definition
    (yes_no|answer_type, empty for overall), system, label, n, correct, accuracy, ci_low, ci_high`, in percent. Lines of
    the predictions have `lenient`, the number of wrong answers that `contains` accepts; those of baselines the
    predictions' paired difference to them, in points: `difference, difference_low, difference_high, detectable`
    (`inference.detectable`), `wins` and `losses` (questions that only the predictions, only the baseline has right)
    and `mcnemar_p`.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def score_file(
    path: Path | str,
    dataset: str = "",
    training_file: str = "",
    language: str = "",
    prediction: str = "",
    identity: str = "",
) -> Score:
    """Score a file of answers, or a run folder of the kit, on all test questions of a question set.

    Args:
        path: a file (`prediction_files.read`) or a run folder.
        dataset: manifest name of the question set; a run says it itself.
        training_file: what baselines and ceiling learn from (`load.load_questions`).
        language: of SLAKE's questions.
        prediction, identity: the file's columns of predictions and question ids, if their names are unknown.

    Raises:
        InputError: predictions that cannot be read, or a test question without one; the message names the place.
    """
    path, shown = Path(path), paths.shown(Path(path))
    asked = {"dataset": dataset, "training_file": training_file, "language": language}
    if path.is_dir():
        asked = _of_spec(Run(path), asked)
    asked, questions = _questions(**asked)
    variants = manifests.load(asked["dataset"]).variants
    leaks = any(one.leaks and one.name in (asked["training_file"], asked["language"]) for one in variants)
    if path.is_dir():
        frame, candidates = _of_run(path, questions)
        used = [protocol for protocol in PROTOCOLS.values() if not (leaks and protocol.name == "strict")]
        notes = [f"{shown}: a run of the kit, {len(frame)} test questions on {frame['image_id'].nunique()} images."]
    else:
        given = prediction_files.read(path, questions, prediction, identity)
        questions = [q for q in questions if q.question_id not in given.ambiguous]
        frame, candidates, used = question_frame(questions), None, [AS_GIVEN]
        frame["generated"] = given.answers.loc[frame["question_id"]].to_numpy()
        notes = _about_file(given, frame, shown)
    scored = {protocol: protocols.score(frame, candidates, protocol) for protocol in used}
    for own in scored.values():
        answers = zip(own["prediction"], frame["gold"], own["correct"], strict=True)
        own["lenient"] = [not right and any(contains(text, one) for one in gold) for text, gold, right in answers]
    if scored[used[0]]["correct"].all():
        said = "every answer is right: was the accepted answer read as the prediction, or did the system see it?"
        notes.insert(0, f"{WARNING}: {said} (--prediction COLUMN)")
    if (empty := frame["question_id"][frame["generated"] == ""]).size:
        notes.append(f"Empty answers, counted as wrong: {len(empty)} (first: question {empty.iloc[0]}).")
    learnt = f"Baselines and ceiling learn from the {sum(q.split == 'train' for q in questions)} training questions of"
    held = " These hold answers to test questions, so that strict@1 is not scored and the baselines know them too."
    notes.append(f"{learnt} {', '.join(asked.values())}.{held * leaks}")
    if (lenient := scored[used[0]].query("lenient")["question_id"]).size:
        said = f"{len(lenient)} wrong answers contain an accepted one (not scored; first: question {lenient.iloc[0]})"
        notes.append(f"{used[0].title}: {said}.")
    table = _table(scored, questions, asked["dataset"]).assign(**asked)
    return Score(table[[*asked, *table.columns.drop(list(asked))]], tuple(notes))


def _table(scored: Mapping[Protocol, pd.DataFrame], questions: Sequence[Question], dataset: str) -> pd.DataFrame:
    """`Score.table` of what `protocols.score` gives, with a column `lenient`."""
    beside = {}
    for name in BESIDE:
        beside[name] = protocols.score(baselines.BASELINES[name][1](questions), None, PROTOCOLS["generate"])
    rows = []
    for (protocol, own), (split, definition) in product(scored.items(), PARTS):
        part = protocols.select(own, split, definition or "yes_no")
        clusters = load.clusters(dataset, own["image_id"][part])
        for system, frame in {"predictions": own, **beside}.items() if part.any() else ():
            right, label = frame["correct"][part], baselines.BASELINES[system][0] if system in beside else system
            share = inference.bootstrap(right, clusters)
            row = {"protocol": protocol.title, "split": split, "definition": definition, "system": system}
            row |= {"label": label, "n": len(right), "correct": int(right.sum()), "accuracy": 100 * share.value}
            row |= {"ci_low": 100 * share.low, "ci_high": 100 * share.high}
            if system == "predictions":
                row["lenient"] = int(own["lenient"][part].sum())
            elif system in COMPARED:
                row |= _comparison(own["correct"][part], right, clusters)
            rows.append(row)
    return pd.DataFrame(rows).astype({"lenient": "Int64", "wins": "Int64", "losses": "Int64"})


def _comparison(ours: pd.Series, theirs: pd.Series, clusters: Sequence[str]) -> dict[str, float]:
    gap = inference.bootstrap_mean([(ours.astype(float) - theirs, clusters)], draws=10_000)  # a difference, no share
    points = {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high}
    points = {name: 100 * value for name, value in (points | {"detectable": inference.detectable(gap)}).items()}
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return points | {"wins": wins, "losses": losses, "mcnemar_p": float(inference.mcnemar_p(wins, losses))}


def contains(text: str, gold: str) -> bool:
    """Whether an answer contains the words of the accepted one; yes and no must come first, or without the other.

    Case, punctuation and articles are ignored, and what models put around an answer: `\\boxed{The x-ray.}</s>`.
    """
    words, wanted = (
        [word for word in re.findall(r"\w+", unicodedata.normalize("NFKC", one).lower()) if word not in _ARTICLES]
        for one in (text, gold)
    )
    if gold in ("yes", "no"):
        return words[:1] == wanted or {"yes", "no"} & set(words) == {gold}
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(words)} "


_ARTICLES = ("a", "an", "the")
SCORES = ["part", "label", "n", "correct", "accuracy", "ci_low", "ci_high", "lenient"]
DIFFERENCES = ["difference", "difference_low", "difference_high", "detectable", "wins", "losses", "mcnemar_p"]


def page(score: Score) -> str:
    """A score as Markdown: the notes, then two tables per protocol with columns of `Score.table`."""
    out = [*score.notes, EXPLAINED]
    for title, rows in score.table.groupby("protocol", sort=False):
        rows = rows.assign(part=rows["split"] + rows["definition"].map(lambda name: name and f", {name}"))
        rows = rows.astype({"lenient": object}).fillna({"lenient": ""})
        tables = [rows[SCORES], rows[rows["system"].isin(COMPARED)][["part", "label", *DIFFERENCES]]]
        texts = [table.round(4).to_markdown(index=False, floatfmt=".4g") for table in tables]
        out += [f"\n## {title}\n\n{NOTES[title]}\n", texts[0], f"\nPredictions minus a baseline:\n\n{texts[1]}"]
    return "\n".join(out + [note for note in score.notes if note.startswith(WARNING)])  # terminals show the end


# --- questions and predictions brought together ---


def _of_spec(run: Run, asked: dict[str, str]) -> dict[str, str]:
    """The question set that a run was trained on. Raises InputError if another one is asked for."""
    own = {"dataset": run.spec.data.questions, **run.spec.data.question_settings}
    for name, value in asked.items():
        if value not in ("", own[name]):
            raise InputError(f"--{name.replace('_', '-')} {value}: this run has {own[name]}; leave the option out")
    return own


def _questions(dataset: str, training_file: str, language: str) -> tuple[dict[str, str], list[Question]]:
    """The questions, and how they were chosen (with defaults filled in). InputError if `dataset` is no question set."""
    known = [name for name in manifests.names() if manifests.load(name).role == "questions"]
    if dataset not in known:
        raise InputError(f"--dataset: {dataset or 'none given'} is no question set; name one of {', '.join(known)}")
    manifest = manifests.load(dataset)
    if training_file in ("", "default"):  # variants are training files, the default first; only SLAKE's are languages
        training_files = [variant.name for variant in manifest.variants if manifest.reader != "slake"]
        training_file = training_files[0] if training_files else "default"
    asked = {"dataset": dataset, "training_file": training_file, "language": language or "en"}
    return asked, load.load_questions(dataset, training_file, language or "en", images=False)


def _of_run(folder: Path, questions: Sequence[Question]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A run's predictions in the order of the questions, and its candidates; InputError if questions differ."""
    frame, candidates = read_predictions(folder)
    gold = {q.question_id: set(q.answers) for q in questions if q.split == "test"}
    if dict(zip(frame["question_id"], map(set, frame["gold"]), strict=True)) != gold:
        raise InputError(
            f"{paths.shown(folder)}: its questions and accepted answers are not the data set's; the run was made on "
            "other data or the file was edited, run the fine-tuning again"
        )
    return frame.set_index("question_id").loc[list(gold)].reset_index(), candidates


def _about_file(given: prediction_files.PredictionFile, frame: pd.DataFrame, shown: str) -> list[str]:
    """How a file was read, and what of it is not scored."""
    columns = ", ".join(f"{field} = {name}" for field, name in given.fields.items())
    notes = [f"{shown}: {len(frame)} test questions on {frame['image_id'].nunique()} images. Read: {columns}."]
    if given.note:
        notes.append(given.note)
    if given.ambiguous:
        said = f"{len(given.ambiguous)} test questions are not scored, since several records may answer them"
        notes.insert(0, f"{WARNING}: {said} (first: {given.ambiguous[0]}).")
    if len(others := given.answers.index.difference(frame["question_id"], sort=False)):
        notes.append(f"Predictions whose id is of no test question, left out: {len(others)} (first: {others[0]}).")
    return notes
