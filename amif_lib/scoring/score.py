"""Anyone's predictions on the test questions of a question set, scored as the kit scores its own.

Answers alone are scored `as given`; the protocols that choose among candidates need every candidate's log-likelihood,
as a run folder of the kit or JSON records with `log_likelihoods` have them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests
from amif_lib.data.records import Question, normalise_answer
from amif_lib.experiments.predictions import PREDICTIONS, candidate_frame, question_frame, read_predictions
from amif_lib.experiments.stored import Run
from amif_lib.scoring import baselines, prediction_files, protocols, statistics
from amif_lib.scoring.protocols import PROTOCOLS, Protocol

PARTS = (("overall", ""), ("open", "yes_no"), ("closed", "yes_no"), ("open", "answer_type"), ("closed", "answer_type"))
COMPARED = ("most_frequent", "nearest_question")  # the baselines that a paired test is made against
LABELS = {
    "predictions": "predictions",
    **{name: baselines.BASELINES[name][0] for name in (*COMPARED, "vocabulary_ceiling")},
    "candidate_ceiling": "ceiling of the given candidates",
}
AS_GIVEN = Protocol(
    name="as given",
    version=1,
    candidates="generate",
    closed="yes_no",
    note="Each answer of the file as it stands, whether it was generated or picked from a list: in lower case with "
    "white space collapsed (and none around punctuation), equal to an accepted answer or wrong. Open and closed are "
    "reported by both definitions: yes_no (the answer is yes or no) and answer_type (the data set's own mark).",
)
RANKING = [protocol for protocol in PROTOCOLS.values() if protocol.candidates != "generate"]
NOTES = {protocol.title: protocol.note for protocol in (*PROTOCOLS.values(), AS_GIVEN)}
INTERVALS = (
    "Accuracies and intervals (95%) are percentages. Wilson's interval takes questions as independent; the other one "
    "resamples images, since questions on one image are not. p values are not adjusted for their number."
)
LOG_LIKELIHOODS = (
    "These choose the likeliest of a list of candidates, so they need the log-likelihood of every candidate for every "
    "question: JSON records with log_likelihoods, an object from answer to number, or a run folder of the kit with its "
    "predictions.parquet."
)


@dataclass(frozen=True)
class Score:
    """What a reader must know (`notes`), and one line per protocol, part and system: predictions, baselines, ceilings.

    `table` has the columns `dataset, training_file, language, protocol, split (overall|open|closed), definition
    (yes_no|answer_type, empty for overall), system, label, n, correct, accuracy, wilson_low, wilson_high, ci_low,
    ci_high` (the last two from resampling images), in percent. The predictions' lines have `lenient`, the number of
    wrong answers that `lenient` makes equal to an accepted one; the baselines' lines the predictions' paired difference
    to them: `difference, difference_low, difference_high` (points), `bootstrap_p`, `wins` and `losses` (questions that
    only the predictions, only the baseline has right) and `mcnemar_p`.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """The questions that predictions are scored on, and how they were chosen."""

    dataset: str
    training_file: str
    language: str
    questions: list[Question]

    def answers(self, *splits: str) -> set[str]:
        return {answer for q in self.questions if q.split in splits for answer in q.answers}


def score_file(
    path: Path | str,
    dataset: str = "",
    training_file: str = "",
    language: str = "",
    candidates: Path | str | None = None,
) -> Score:
    """Score a file of answers, or a run folder of the kit, on all test questions of a question set.

    Args:
        path: a file (`prediction_files.read`), a run folder, or its `predictions.parquet`.
        dataset: manifest name of the question set; needed unless the run folder has its `spec.json`.
        training_file: what baselines and ceiling learn from (`load.load_questions`). A choice that has fewer test
            questions than the default leaves out the predictions on the others.
        language: of SLAKE's questions.
        candidates: a file with the answers that the predictions were chosen among (`prediction_files.read_candidates`).

    Raises:
        InputError: unreadable predictions, a test question without one, an id that is no question; names the place.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent if path.name == PREDICTIONS else None
    spec = Run(folder).spec if folder and (folder / "spec.json").is_file() else None
    options = {"dataset": dataset, "training_file": training_file, "language": language}
    own = {"dataset": spec.data.questions, **spec.data.question_settings} if spec else {}
    asked = _ask(*(own.get(name) or value for name, value in options.items()))
    for name, value in options.items():
        if value and value not in (getattr(asked, name), own.get(name)):
            have = getattr(asked, name)
            raise InputError(f"--{name.replace('_', '-')} {value}: this run has {have}; leave the option out")
    if folder and candidates:
        raise InputError(f"--candidates: {paths.shown(folder)} has its own candidates; leave the option out")

    listed = prediction_files.read_candidates(candidates) if candidates else None
    frame = question_frame(asked.questions)
    about = f"{paths.shown(path)}: {len(frame)} test questions on {frame['image_id'].nunique()} images."
    if folder:
        frame, ranked = _of_run(folder, frame, asked)
        used, notes = list(PROTOCOLS.values()), [about]
        if spec and spec.saw_test_answers:
            used.remove(PROTOCOLS["strict"])
            notes.append("Not scored: strict@1, since the run's training questions or vocabulary hold test answers.")
        elif not spec:
            notes.append("There is no spec.json, so it is not known whether the training saw test answers (strict@1).")
    else:
        given = prediction_files.read(path)
        about += " Read: " + ", ".join(f"{kind} = {name}" for kind, name in given.fields.items()) + "."
        left_out = _check_ids(given.table["place"], asked, paths.shown(path))
        frame["generated"] = given.table["answer"].loc[frame["question_id"]].to_numpy()
        used, ranked, said = _rankings(given.scores, asked)
        if ranked is not None:
            frame["log_likelihoods"] = list(given.scores.loc[frame["question_id"], ranked["answer"]].to_numpy())
        notes = [about]
        if left_out:
            notes.append(f"Predictions on other questions, left out: {len(left_out)} (first: {left_out[0]}).")
        notes += [*_about_answers(frame, asked, listed), *said]
    scored = {protocol: _with_lenient(protocols.score(frame, ranked, protocol), frame["gold"]) for protocol in used}
    notes += _about_data(asked) + _lenient_examples(used[0].title, scored[used[0]], frame["gold"], asked.dataset)
    out = _table(scored, asked.questions, listed)
    for position, name in enumerate(options):
        out.insert(position, name, getattr(asked, name))
    return Score(out, tuple(notes))


def _table(
    scored: Mapping[Protocol, pd.DataFrame], questions: Sequence[Question], listed: Collection[str] | None
) -> pd.DataFrame:
    """`Score.table` of what `protocols.score` gives and a column `lenient`; `listed`: candidates, for their ceiling."""
    made = {name: baselines.BASELINES[name][1](questions) for name in (*COMPARED, "vocabulary_ceiling")}
    if listed is not None:
        best = [next((answer for answer in gold if answer in listed), "") for gold in made[COMPARED[0]]["gold"]]
        made["candidate_ceiling"] = made[COMPARED[0]].assign(generated=best)
    beside = {name: protocols.score(frame, None, PROTOCOLS["generate"]) for name, frame in made.items()}
    rows = []
    for (protocol, predictions), (split, definition) in product(scored.items(), PARTS):
        part = protocols.select(predictions, split, definition or "yes_no")
        images = predictions["image_id"][part]
        for system, frame in {"predictions": predictions, **beside}.items() if part.any() else ():
            row = {"protocol": protocol.title, "split": split, "definition": definition, "system": system}
            row |= {"label": LABELS[system], **_accuracy(frame["correct"][part], images)}
            if system == "predictions":
                row["lenient"] = int(frame["lenient"][part].sum())
            elif system in COMPARED:
                row |= _comparison(predictions["correct"][part], frame["correct"][part], images)
            rows.append(row)
    return pd.DataFrame(rows).astype({"lenient": "Int64", "wins": "Int64", "losses": "Int64"})


def _accuracy(correct: pd.Series, images: pd.Series) -> dict[str, float]:
    low, high = statistics.wilson(int(correct.sum()), len(correct))
    by_image = statistics.bootstrap(correct, images)
    shares = {"accuracy": by_image.value, "wilson_low": low, "wilson_high": high}
    shares |= {"ci_low": by_image.low, "ci_high": by_image.high}
    return {"n": len(correct), "correct": int(correct.sum()), **{name: 100 * share for name, share in shares.items()}}


def _comparison(ours: pd.Series, theirs: pd.Series, images: pd.Series) -> dict[str, float]:
    gap, test = statistics.bootstrap_mean_difference([(ours, theirs, images)]), statistics.mcnemar(ours, theirs)
    points = {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high}
    tests = {"bootstrap_p": gap.p, "wins": test.wins, "losses": test.losses, "mcnemar_p": test.p}
    return {name: 100 * value for name, value in points.items()} | tests


def lenient(text: str) -> str:
    """A normalised answer without punctuation (a blank in its place) and articles: `The x-ray.` -> `x ray`."""
    blanks = "".join(" " if unicodedata.category(sign).startswith("P") else sign for sign in normalise_answer(text))
    return " ".join(word for word in blanks.split() if word not in ("a", "an", "the"))


def page(score: Score) -> str:
    """A score to read, as Markdown: the notes, then two tables per protocol."""
    out = [*score.notes, INTERVALS]
    for title, rows in score.table.groupby("protocol", sort=False):
        rows = rows.assign(part=rows["split"] + rows["definition"].map(lambda name: name and f", {name}"))
        out += [f"\n## {title}\n\n{NOTES[title]}\n", _scores(rows).to_markdown(index=False, disable_numparse=True)]
        out += ["", _differences(rows).to_markdown(index=False, disable_numparse=True)]
    return "\n".join(out)


def _scores(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per part, the predictions with intervals, the others beside them."""
    out = []
    for _, (own, *others) in ((part, list(lines.itertuples())) for part, lines in rows.groupby("part", sort=False)):
        line = {"": own.part, "n": own.n, "correct": own.correct, "accuracy": f"{own.accuracy:.2f}"}
        line["Wilson"] = f"[{own.wilson_low:.2f}, {own.wilson_high:.2f}]"
        line["images"] = f"[{own.ci_low:.2f}, {own.ci_high:.2f}]"
        line |= {other.label: f"{other.accuracy:.2f}" for other in others}
        out.append(line | {"more if lenient (not scored)": own.lenient})
    return pd.DataFrame(out)


def _differences(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "predictions minus": line.label,
            "": line.part,
            "points": f"{line.difference:+.2f}",
            "images": f"[{line.difference_low:.2f}, {line.difference_high:.2f}]",
            "bootstrap p": f"{line.bootstrap_p:.3g}",
            "only here right": line.wins,
            "only there right": line.losses,
            "McNemar p": f"{line.mcnemar_p:.3g}",
        }
        for name in COMPARED
        for line in rows[rows["system"] == name].itertuples()
    )


# --- questions and predictions brought together ------------------------------------------------------------------


def _ask(dataset: str, training_file: str = "", language: str = "") -> Asked:
    """The questions, defaults put in by name. Raises InputError where the data set is no question set."""
    known = [name for name in manifests.names() if manifests.load(name).role == "questions"]
    if dataset not in known:
        raise InputError(f"--dataset: {dataset or 'none given'} is no question set; name one of {', '.join(known)}")
    manifest = manifests.load(dataset)
    if training_file in ("", "default"):  # variants are training files, the default first, but for SLAKE languages
        files = [variant.name for variant in manifest.variants if manifest.reader != "slake"]
        training_file = files[0] if files else "default"
    language = language or "en"
    questions = load.load_questions(dataset, training_file, language, images=False)
    return Asked(dataset, training_file, language, questions)


def _check_ids(places: pd.Series, asked: Asked, shown: str) -> list[str]:
    """The ids of predictions on questions that are not asked: those of other splits, languages and variants.

    `places` names each prediction's place by its id. Raises InputError where an id is no question at all or a test
    question has no prediction.
    """
    test = pd.Index([q.question_id for q in asked.questions if q.split == "test"])
    others = places.index[~places.index.isin(test)]
    if len(others):
        slake = manifests.load(asked.dataset).reader == "slake"
        whole = [*asked.questions, *_ask(asked.dataset, language="en+zh" if slake else "en").questions]
        unknown = others[~others.isin([q.question_id for q in whole])]
        if len(unknown):
            raise InputError(
                f"{places[unknown[0]]}: question {unknown[0]} is none of {asked.dataset} ({len(unknown)} such ids; "
                f"test questions have ids such as {test[0]}); correct or remove it"
            )
    lacking = test[~test.isin(places.index)]
    if len(lacking):
        raise InputError(
            f"{shown}: {len(lacking)} of {len(test)} test questions have no prediction, the first is {lacking[0]}; "
            "nothing is scored, add them (an empty answer counts as wrong)"
        )
    return list(others)


def _of_run(folder: Path, frame: pd.DataFrame, asked: Asked) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A run's predictions in the order of `frame`, with what the data set itself says of each question; candidates."""
    stored, ranked = read_predictions(folder)
    where, ids = paths.shown(folder / PREDICTIONS), stored["question_id"]
    _check_ids(pd.Series([f"{where}, row {n}" for n in range(len(ids))], index=ids), asked, where)
    stored = stored.set_index("question_id").loc[frame["question_id"]]
    for name, ours, theirs in zip(frame["question_id"], frame["gold"], stored["gold"], strict=True):
        if set(ours) != set(theirs):
            raise InputError(
                f"{where}: question {name}: its accepted answers are not those of {asked.dataset}; the run was "
                "made on other data or the file was edited, run the fine-tuning again"
            )
    return frame.assign(**{name: stored[name].to_numpy() for name in ("generated", "log_likelihoods")}), ranked


def _rankings(scores: pd.DataFrame | None, asked: Asked) -> tuple[list[Protocol], pd.DataFrame | None, list[str]]:
    """Which protocols log-likelihoods (questions, answers) allow beside `as given`, the candidates, and what to say."""
    if scores is None:
        others = ", ".join(protocol.title for protocol in RANKING)
        return [AS_GIVEN], None, [f"Not scored: {others}. {LOG_LIKELIHOODS}"]
    used, notes = [AS_GIVEN], ["It is not known whether the training saw test answers (strict@1)."]
    for protocol in RANKING:
        splits = ("train", "val", "test") if protocol.candidates == "all" else protocol.candidates.split("+")
        wanted = asked.answers(*splits)
        if lacking := sorted(wanted - set(scores)):
            example = f", such as {lacking[0]!r}" if manifests.may_show(asked.dataset, "texts") else ""
            notes.append(
                f"Not scored: {protocol.title}, which ranks {len(wanted)} answers; {len(lacking)} of them have no "
                f"log-likelihood{example}."
            )
        else:
            used.append(protocol)
    return used, candidate_frame(sorted(scores), 1, asked.questions), notes  # sums are given: no protocol divides by 1


# --- what a reader must know -------------------------------------------------------------------------------------


def _about_answers(frame: pd.DataFrame, asked: Asked, listed: Collection[str] | None) -> list[str]:
    """Empty answers, where the answers occur in the data set, and what the list says that they were chosen among."""
    out, given = [], frame.set_index("question_id")["generated"]
    if (empty := given[given == ""]).size:
        out.append(f"Empty answers, counted as wrong: {len(empty)} (first: question {empty.index[0]}).")
    train, test = asked.answers("train"), asked.answers("test")
    test_only = test - asked.answers("train", "val")
    out.append(f"Answers that only test questions have: {int(given.isin(test_only).sum())}.")
    if listed is None:
        return out
    odd = given[(given != "") & ~given.isin(listed)]
    outside = f"{len(odd)} (first: question {odd.index[0]})" if len(odd) else "0"
    out.append(f"Candidates: {len(listed)}. Answers that are not among them: {outside}.")
    if set(listed) == test:
        said = "They are the test answers, as under protocol paper: compare with it, and with no score of strict@1."
    elif set(listed) == train:
        said = "They are the training answers, as under strict@1: compare with it, and with no score of paper."
    elif known := len(test_only & set(listed)):
        said = f"They are no protocol's. Of them, only test questions have {known}: compare with no score of strict@1."
    else:
        said = "They are no protocol's. None of them is an answer that only test questions have: strict@1, which ranks "
        said += f"all {len(train)} training answers, is nearest."
    return [*out, said]


def _about_data(asked: Asked) -> list[str]:
    n = sum(q.split == "train" for q in asked.questions)
    about = f"{asked.dataset}, {asked.training_file}, {asked.language}"
    out = [f"Baselines and ceiling learn from the {n} training questions of {about}."]
    chosen = (asked.training_file, asked.language)
    if any(variant.leaks and variant.name in chosen for variant in manifests.load(asked.dataset).variants):
        out.append("These hold answers to test questions, which the baselines know too.")
    if all(q.closed_field == q.closed_yes_no for q in asked.questions if q.split == "test"):
        out.append("The set does not mark closed questions in another way: yes_no and answer_type are the same.")
    return out


def _with_lenient(scored: pd.DataFrame, gold: pd.Series) -> pd.DataFrame:
    """With a column `lenient`: wrong, but equal to an accepted answer after `lenient`."""
    answers = zip(scored["prediction"], gold, strict=True)
    found = np.array([lenient(text) in {lenient(one) for one in accepted} - {""} for text, accepted in answers])
    return scored.assign(lenient=found & ~scored["correct"])


def _lenient_examples(title: str, scored: pd.DataFrame, gold: pd.Series, dataset: str) -> list[str]:
    """How many answers only leniency would accept, and a few of them where the set's texts may be shown."""
    found = scored.assign(gold=gold)[scored["lenient"]]
    if not len(found):
        return []
    head = f"{title}: wrong answers that would match without punctuation and articles (not scored): {len(found)}"
    if not manifests.may_show(dataset, "texts"):
        return [f"{head} (first: question {found['question_id'].iloc[0]}). {manifests.why_not(dataset, 'texts')}"]
    examples = found.head(3).itertuples()
    shown = (f"question {one.question_id}: {one.prediction!r} for {' | '.join(one.gold)!r}" for one in examples)
    return [f"{head}, such as {'; '.join(shown)}."]
