"""Anyone's predictions on the test questions of a question set, scored as the kit scores its own.

Answers alone are scored `as given`: each as it stands, however it was found. The protocols choose among candidates, which
takes every candidate's log-likelihood: a run folder of the kit holds them, and so may the records of a JSON file
(`log_likelihoods`, an object from answer to number). Beside the score stand the
baselines and what training answers can reach at most. Only annotations are read; nothing here needs torch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load as datasets
from amif_lib.data import manifests, redistribution
from amif_lib.data.records import Question, normalise_answer
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions
from amif_lib.scoring import baselines, prediction_files, protocols, statistics
from amif_lib.scoring.protocols import PROTOCOLS

PARTS = (("overall", ""), ("open", "yes_no"), ("closed", "yes_no"), ("open", "answer_type"), ("closed", "answer_type"))
COMPARED = ("most_frequent", "nearest_question")  # the baselines that a paired test is made against
LABELS = {
    "predictions": "predictions",
    **{name: baselines.BASELINES[name][0] for name in (*COMPARED, "vocabulary_ceiling")},
    "candidate_ceiling": "ceiling of the given candidates",
}
ARTICLES = ("a", "an", "the")
AS_GIVEN = protocols.Protocol(
    name="as given",
    version=1,
    candidates="generate",
    closed="yes_no",
    note="Each answer of the file as it stands, whether it was generated or picked from a list: in lower case with white space "
    "collapsed, equal to an accepted answer or wrong. Open and closed are reported by both definitions: yes_no (the answer "
    "is yes or no) and answer_type (the data set's own mark).",
)
TITLES = {**{name: protocol.title for name, protocol in PROTOCOLS.items()}, AS_GIVEN.name: AS_GIVEN.name}  # as printed
NOTES = {TITLES[protocol.name]: protocol.note for protocol in (*PROTOCOLS.values(), AS_GIVEN)}
INTERVALS = (
    "Accuracies and intervals (95%) are percentages. Wilson's interval takes questions as independent; the other one "
    "resamples images, since questions on one image are not. p values are not adjusted for their number."
)


@dataclass(frozen=True)
class Score:
    """`table` is what the function `table` gives, with data set and training file; `notes` are what a reader must know."""

    table: pd.DataFrame
    notes: tuple[str, ...]


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
        training_file: what baselines and ceiling learn from (`datasets.load_questions`). A choice that has fewer test
            questions than the default leaves out the predictions on the others.
        language: of SLAKE's questions.
        candidates: a file with the answers that the predictions were chosen among (`prediction_files.read_candidates`).

    Raises:
        InputError: unreadable predictions, a test question without one, an id that is no question; names the place.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent if path.name == PREDICTIONS else None
    spec = results.Run(folder).spec if folder and (folder / "spec.json").is_file() else None
    asked_for = {"dataset": dataset, "training_file": training_file, "language": language}
    own = {"dataset": spec.data.questions, **spec.data.question_settings} if spec else {}
    settings = _named(*(own.get(name) or value for name, value in asked_for.items()))
    for name, value in asked_for.items():
        if value and value not in (settings[name], own.get(name)):
            raise InputError(f"--{name.replace('_', '-')} {value}: this run has {settings[name]}; leave the option out")
    if folder and candidates:
        raise InputError(f"--candidates: {paths.shown(folder)} has its own candidates; leave the option out")

    questions = _load(settings)
    asked = baselines.vocabulary_ceiling(questions)  # for its columns, which are those of stored predictions
    notes = [f"{paths.shown(path)}: {len(asked)} test questions on {asked['image_id'].nunique()} images."]
    ranked, listed, used = None, None, [AS_GIVEN]
    if folder:
        frame, ranked = _stored(folder, asked, questions, settings)
        used = list(PROTOCOLS.values())
        if spec and spec.saw_test_answers:
            used.remove(PROTOCOLS["strict"])
            notes.append("Not scored: strict@1, since the run's training questions or vocabulary hold test answers.")
        elif not spec:
            notes.append("There is no spec.json, so it is not known whether the training saw test answers (strict@1).")
    else:
        given = prediction_files.read(path)
        notes[0] += " Read: " + ", ".join(f"{kind} = {name}" for kind, name in given.fields.items()) + "."
        if left_out := _check_ids(given.places, questions, paths.shown(path), settings):
            notes.append(f"Predictions on other questions, left out: {len(left_out)} (first: {left_out[0]}).")
        frame = asked.assign(generated=[given.answers[question] for question in asked["question_id"]])
        listed = prediction_files.read_candidates(candidates) if candidates else None
        notes += _about_answers(frame, questions, listed)
        if given.scores:
            frame, ranked = _ranked(frame, given.scores, questions)
            notes.append("It is not known whether the training saw test answers (strict@1).")
            for protocol in (p for p in PROTOCOLS.values() if p.candidates != "generate"):
                if lacking := _lacking(protocol, ranked, questions):
                    notes.append(
                        f"Not scored: {protocol.title}, which ranks {lacking[0]} answers; {len(lacking[1])} of them have no "
                        f"log-likelihood{_such_as(lacking[1], settings['dataset'])}."
                    )
                else:
                    used.append(protocol)
        else:
            others = ", ".join(p.title for p in PROTOCOLS.values() if p.candidates != "generate")
            notes.append(
                f"Not scored: {others}. These choose the likeliest of a list of candidates, so they need the log-likelihood "
                "of every candidate for every question: JSON records with log_likelihoods, an object from answer to number, "
                "or a run folder of the kit with its predictions.parquet."
            )
    notes += _about_data(questions, settings)
    scored = {protocol.name: _with_lenient(protocols.score(frame, ranked, protocol), frame) for protocol in used}
    notes += _lenient_examples(TITLES[used[0].name], scored[used[0].name], frame, settings["dataset"])
    out = table(scored, questions, listed)
    for position, (name, value) in enumerate(settings.items()):
        out.insert(position, name, value)
    return Score(out, tuple(notes))


def table(
    scored: Mapping[str, pd.DataFrame], questions: Sequence[Question], listed: Collection[str] | None = None
) -> pd.DataFrame:
    """One line per protocol, part and system: the predictions, the baselines, the ceilings.

    Columns `protocol, split (overall|open|closed), definition (yes_no|answer_type, empty for overall), system, label, n,
    correct, accuracy, wilson_low, wilson_high, ci_low, ci_high` (the last two from resampling images), in percent. The
    predictions' lines have `lenient`, the number of wrong answers that `lenient` makes equal to an accepted one; the
    baselines' lines the predictions' paired difference to them: `difference, difference_low, difference_high` (points),
    `bootstrap_p`, `wins` and `losses` (questions that only the predictions, only the baseline has right) and `mcnemar_p`.

    Args:
        scored: by protocol name what `protocols.score` gives and a column `lenient` (0 or 1), test questions in order.
        questions: training and test questions.
        listed: candidates whose ceiling is asked.
    """
    made = {name: baselines.BASELINES[name][1](questions) for name in (*COMPARED, "vocabulary_ceiling")}
    if listed is not None:
        best = [next((answer for answer in gold if answer in listed), "") for gold in made[COMPARED[0]]["gold"]]
        made["candidate_ceiling"] = made[COMPARED[0]].assign(generated=best)
    beside = {name: protocols.score(frame, None, PROTOCOLS["generate"]) for name, frame in made.items()}
    rows = []
    for protocol, predictions in scored.items():
        for split, definition in PARTS:
            part = protocols.select(predictions, split, definition or "yes_no")
            if not part.any():
                continue
            ours, images = predictions["correct"][part], predictions["image_id"][part]
            about = {"protocol": TITLES[protocol], "split": split, "definition": definition}
            for system, frame in {"predictions": predictions, **beside}.items():
                row = about | {"system": system, "label": LABELS[system]} | _accuracy(frame["correct"][part], images)
                if system == "predictions":
                    row["lenient"] = int(frame["lenient"][part].sum())
                elif system in COMPARED:
                    row |= _comparison(ours, frame["correct"][part], images)
                rows.append(row)
    return pd.DataFrame(rows).astype({"lenient": "Int64", "wins": "Int64", "losses": "Int64"})


def _accuracy(correct: pd.Series, images: pd.Series) -> dict[str, float]:
    low, high = statistics.wilson(int(correct.sum()), len(correct))
    by_image = statistics.bootstrap(correct, images)
    shares = {"accuracy": by_image.value, "wilson_low": low, "wilson_high": high}
    shares |= {"ci_low": by_image.low, "ci_high": by_image.high}
    return {"n": len(correct), "correct": int(correct.sum()), **{name: 100 * share for name, share in shares.items()}}


def _comparison(ours: pd.Series, theirs: pd.Series, images: pd.Series) -> dict[str, float]:
    gap, test = statistics.bootstrap_difference(ours, theirs, images), statistics.mcnemar(ours, theirs)
    return {
        "difference": 100 * gap.value,
        "difference_low": 100 * gap.low,
        "difference_high": 100 * gap.high,
        "bootstrap_p": gap.p,
        "wins": test.wins,
        "losses": test.losses,
        "mcnemar_p": test.p,
    }


def lenient(text: str) -> str:
    """A normalised answer without punctuation (a blank in its place) and articles: `The x-ray.` -> `x ray`."""
    blanks = "".join(" " if unicodedata.category(sign).startswith("P") else sign for sign in normalise_answer(text))
    return " ".join(word for word in blanks.split() if word not in ARTICLES)


def page(score: Score) -> str:
    """A score to read, as Markdown: the notes, then two tables per protocol."""
    out = [*score.notes, INTERVALS]
    for title, lines in score.table.groupby("protocol", sort=False):
        out += [f"\n## {title}\n\n{NOTES[title]}\n", _scores(lines).to_markdown(index=False, disable_numparse=True)]
        out += ["", _differences(lines).to_markdown(index=False, disable_numparse=True)]
    return "\n".join(out)


def _part(line: Any) -> str:
    return line.split + (f", {line.definition}" if line.definition else "")


def _scores(lines: pd.DataFrame) -> pd.DataFrame:
    """One row per part, the predictions with intervals, the others beside them."""
    rows = []
    for _, part in lines.groupby(["split", "definition"], sort=False):
        own, *others = part.itertuples()
        rows.append(
            {
                "": _part(own),
                "n": own.n,
                "correct": own.correct,
                "accuracy": f"{own.accuracy:.2f}",
                "Wilson": f"[{own.wilson_low:.2f}, {own.wilson_high:.2f}]",
                "images": f"[{own.ci_low:.2f}, {own.ci_high:.2f}]",
                **{other.label: f"{other.accuracy:.2f}" for other in others},
                "more if lenient (not scored)": own.lenient,
            }
        )
    return pd.DataFrame(rows)


def _differences(lines: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "predictions minus": line.label,
            "": _part(line),
            "points": f"{line.difference:+.2f}",
            "images": f"[{line.difference_low:.2f}, {line.difference_high:.2f}]",
            "bootstrap p": f"{line.bootstrap_p:.3g}",
            "only here right": line.wins,
            "only there right": line.losses,
            "McNemar p": f"{line.mcnemar_p:.3g}",
        }
        for name in COMPARED
        for line in lines[lines["system"] == name].itertuples()
    )


# --- questions and predictions brought together ------------------------------------------------------------------


def _named(dataset: str, training_file: str, language: str) -> dict[str, str]:
    """The settings with defaults put in by name. Raises InputError where the data set is no question set."""
    known = [name for name in manifests.names() if manifests.load(name).role == "questions"]
    if dataset not in known:
        raise InputError(f"--dataset: {dataset or 'none given'} is no question set; name one of {', '.join(known)}")
    manifest = manifests.load(dataset)
    if training_file in ("", "default"):  # variants are training files, the default first, but for SLAKE languages
        files = [variant.name for variant in manifest.variants if manifest.reader != "slake"]
        training_file = files[0] if files else "default"
    return {"dataset": dataset, "training_file": training_file, "language": language or "en"}


def _load(settings: Mapping[str, str]) -> list[Question]:
    kept = {"training_file": settings["training_file"], "language": settings["language"]}
    return datasets.load_questions(settings["dataset"], **kept, allow_cross_language=True, images=False)


def _check_ids(
    places: Mapping[str, str], questions: Sequence[Question], shown: str, settings: Mapping[str, str]
) -> list[str]:
    """The ids of predictions on questions that are not asked: those of other splits, languages and variants.

    Raises InputError where an id is no question at all, none is a test question, or a test question has no prediction.
    """
    test, dataset = {q.question_id: q for q in questions if q.split == "test"}, settings["dataset"]
    if others := [name for name in places if name not in test]:
        slake = manifests.load(dataset).reader == "slake"
        whole = _load(_named(dataset, "", "en+zh" if slake else "en"))
        unknown = set(others) - {q.question_id for q in (*questions, *whole)}
        if first := next((name for name in others if name in unknown), ""):
            raise InputError(
                f"{shown}, {places[first]}: question {first} is none of {dataset} ({len(unknown)} such ids; test "
                f"questions have ids such as {next(iter(test))}); correct or remove it"
            )
        if len(others) == len(places):
            raise InputError(
                f"{shown}: none of its {len(places)} ids is a test question of {dataset} (first: {others[0]}); give "
                "predictions on the test split"
            )
    if lacking := [name for name in test if name not in places]:
        raise InputError(
            f"{shown}: {len(lacking)} of {len(test)} test questions have no prediction, the first is {lacking[0]}; "
            "nothing is scored, add them (an empty answer counts as wrong)"
        )
    return others


def _stored(
    folder: Path, asked: pd.DataFrame, questions: Sequence[Question], settings: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A run's predictions in the order of `asked`, with what the data set itself says of each question."""
    stored, ranked = read_predictions(folder)
    where = paths.shown(folder / PREDICTIONS)
    _check_ids({name: f"row {n}" for n, name in enumerate(stored["question_id"])}, questions, where, settings)
    stored = stored.set_index("question_id").loc[asked["question_id"]]
    for name, ours, theirs in zip(asked["question_id"], asked["gold"], stored["gold"], strict=True):
        if set(ours) != set(theirs):
            raise InputError(
                f"{where}: question {name}: its accepted answers are not those of {settings['dataset']}; the run was "
                "made on other data or the file was edited, run the fine-tuning again"
            )
    return asked.assign(**{name: stored[name].to_numpy() for name in ("generated", "log_likelihoods")}), ranked


SPLITS = {"test": ("test",), "train": ("train",), "train+val": ("train", "val"), "all": ("train", "val", "test")}


def _ranked(
    frame: pd.DataFrame, scores: Mapping[str, Mapping[str, float]], questions: Sequence[Question]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The questions with their log-likelihoods, and the candidates, as a run folder of the kit has them."""
    answers = sorted(next(iter(scores.values())))
    of = {split: {a for q in questions if q.split == split for a in q.answers} for split in ("train", "val", "test")}
    candidates = pd.DataFrame({"answer": answers, "tokens": 1})  # sums are given, so that no protocol divides by it
    for split, known in of.items():
        candidates[f"in_{split}"] = candidates["answer"].isin(known)
    found = [np.array([scores[name][a] for a in answers], dtype=np.float32) for name in frame["question_id"]]
    return frame.assign(log_likelihoods=found), candidates


def _lacking(
    protocol: protocols.Protocol, candidates: pd.DataFrame, questions: Sequence[Question]
) -> tuple[int, list[str]] | None:
    """How many answers a protocol ranks, and those of them that are no candidate; None where all are."""
    wanted = {a for q in questions if q.split in SPLITS[protocol.candidates] for a in q.answers}
    lacking = sorted(wanted - set(candidates["answer"]))
    return (len(wanted), lacking) if lacking else None


def _such_as(answers: Sequence[str], dataset: str) -> str:
    return f", such as {answers[0]!r}" if redistribution.may_show(dataset, "texts") else ""


# --- what a reader must know -------------------------------------------------------------------------------------


def _about_answers(frame: pd.DataFrame, questions: Sequence[Question], listed: Collection[str] | None) -> list[str]:
    """Empty answers, where the answers occur in the data set, and what the list says that they were chosen among."""
    out, given = [], frame.set_index("question_id")["generated"]
    if (empty := given[given == ""]).size:
        out.append(f"Empty answers, counted as wrong: {len(empty)} (first: question {empty.index[0]}).")
    test = {answer for q in questions if q.split == "test" for answer in q.answers}
    test_only = test - {answer for q in questions if q.split != "test" for answer in q.answers}
    out.append(f"Answers that only test questions have: {int(given.isin(test_only).sum())}.")
    if listed is None:
        return out
    odd = given[(given != "") & ~given.isin(listed)]
    outside = f"{len(odd)} (first: question {odd.index[0]})" if len(odd) else "0"
    out.append(f"Candidates: {len(listed)}. Answers that are not among them: {outside}.")
    train = {answer for q in questions if q.split == "train" for answer in q.answers}
    known = len(test_only & set(listed))
    if set(listed) == test:
        out.append(
            "They are the test answers, as under protocol paper: compare with it, and with no score of strict@1."
        )
    elif set(listed) == train:
        out.append("They are the training answers, as under strict@1: compare with it, and with no score of paper.")
    elif known:
        out.append(
            f"They are no protocol's. Of them, only test questions have {known}: compare with no score of strict@1."
        )
    else:
        out.append(
            "They are no protocol's. None of them is an answer that only test questions have: strict@1, which ranks all "
            f"{len(train)} training answers, is nearest."
        )
    return out


def _about_data(questions: Sequence[Question], settings: Mapping[str, str]) -> list[str]:
    manifest, n = manifests.load(settings["dataset"]), sum(q.split == "train" for q in questions)
    out = [f"Baselines and ceiling learn from the {n} training questions of {', '.join(settings.values())}."]
    chosen = {settings["training_file"], settings["language"]}
    if any(variant.leaks and variant.name in chosen for variant in manifest.variants):
        out.append("These hold answers to test questions, which the baselines know too.")
    if all(q.closed_field == q.closed_yes_no for q in questions if q.split == "test"):
        out.append("The set does not mark closed questions in another way: yes_no and answer_type are the same.")
    return out


def _with_lenient(scored: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """With a column `lenient`: wrong, but equal to an accepted answer after `lenient`."""
    answers = zip(scored["correct"], scored["prediction"], frame["gold"], strict=True)
    found = [not right and lenient(text) in {lenient(one) for one in gold} - {""} for right, text, gold in answers]
    return scored.assign(lenient=found)


def _lenient_examples(title: str, scored: pd.DataFrame, frame: pd.DataFrame, dataset: str) -> list[str]:
    """How many answers only leniency would accept, and a few of them where the set's texts may be shown."""
    if not (n := int(scored["lenient"].sum())):
        return []
    head = f"{title}: wrong answers that would match without punctuation and articles (not scored): {n}"
    found = scored.assign(gold=frame["gold"])[scored["lenient"]].head(3)
    if not redistribution.may_show(dataset, "texts"):
        return [f"{head} (first: question {found['question_id'].iloc[0]}). {redistribution.why_not(dataset, 'texts')}"]
    shown = (
        f"question {line.question_id}: {line.prediction!r} for {' | '.join(line.gold)!r}" for line in found.itertuples()
    )
    return [f"{head}, such as {'; '.join(shown)}."]
