"""Anyone's predictions on the test questions of a question set, scored as the kit scores its own.

Answers alone are scored `as given`; the protocols that choose among candidates need every candidate's log-likelihood,
as a run folder of the kit or JSON records with `log_likelihoods` have them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests
from amif_lib.data.records import Question, normalise_answer
from amif_lib.experiments.predictions import CANDIDATES, candidate_frame, question_frame
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.experiments.stored import Run
from amif_lib.scoring import baselines, prediction_files, protocols, statistics
from amif_lib.scoring.protocols import PROTOCOLS, Protocol

WARNING = "**WARNING**"
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
    wrong answers that a `reading` makes right; the baselines' lines the predictions' paired difference to them, in
    points: `difference, difference_low, difference_high, detectable` (`statistics.detectable`), `bootstrap_p`, `wins`
    and `losses` (questions that only the predictions, only the baseline has right) and `mcnemar_p`.
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
    prediction: str = "",
    identity: str = "",
) -> Score:
    """Score a file of answers, or a run folder of the kit, on all test questions of a question set.

    Args:
        path: a file (`prediction_files.read`), a run folder, or its `predictions.parquet`.
        dataset: manifest name of the question set; needed unless the run folder has its `spec.json`.
        training_file: what baselines and ceiling learn from (`load.load_questions`). A choice that has fewer test
            questions than the default leaves out the predictions on the others.
        language: of SLAKE's questions.
        prediction, identity: the file's columns of predictions and question ids, where their names do not tell.
        candidates: a file with the answers that the predictions were chosen among (`prediction_files.read_candidates`).

    Raises:
        InputError: unreadable predictions, a test question without one, an id that is no question; names the place.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent if (path.with_name(CANDIDATES)).is_file() else None
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
    read, chosen = (prediction_files.read_run, ()) if folder else (prediction_files.read, (prediction, identity))
    given = read(folder or path, asked.questions, *chosen)
    left_out = _check_ids(given.table["place"], asked, given.untold, paths.shown(path))
    asked = replace(asked, questions=[q for q in asked.questions if q.question_id not in given.untold])
    frame = question_frame(asked.questions)
    frame["generated"] = given.table["answer"].loc[frame["question_id"]].to_numpy()
    used, ranked, not_scored = _rankings(given.scores, asked, spec)
    used.insert(0, PROTOCOLS["generate"] if folder else AS_GIVEN)
    if ranked is not None:
        frame["log_likelihoods"] = list(given.scores.loc[frame["question_id"], ranked["answer"]].to_numpy())
    scored = {protocol: _with_reading(protocols.score(frame, ranked, protocol), frame["gold"]) for protocol in used}

    columns = ", ".join(f"{kind} = {name}" for kind, name in given.fields.items())
    notes = [
        f"{paths.shown(path)}: {len(frame)} test questions on {frame['image_id'].nunique()} images. Read: {columns}."
    ]
    if scored[used[0]]["correct"].all():
        said = "every answer is the accepted one: was that read, or did the system see it?"
        notes.insert(0, f"{WARNING}: {said} (--prediction COLUMN)")
    if given.untold:
        said = f"{len(given.untold)} test questions are not scored, since several records may answer them"
        notes.insert(0, f"{WARNING}: {said} (first: {given.untold[0]}).")
    if left_out:
        notes.append(f"Predictions on other questions, left out: {len(left_out)} (first: {left_out[0]}).")
    notes += [*given.notes, *_about_answers(frame, asked, listed), *not_scored, *_about_data(asked)]
    notes += _readings(used[0].title, scored[used[0]], frame["gold"], asked.dataset)
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
    points["detectable"] = statistics.detectable(gap)
    tests = {"bootstrap_p": gap.p, "wins": test.wins, "losses": test.losses, "mcnemar_p": test.p}
    return {name: 100 * value for name, value in points.items()} | tests


def lenient(text: str) -> str:
    """A normalised answer without punctuation (a blank in its place) and articles: `The x-ray.` -> `x ray`."""
    blanks = "".join(" " if unicodedata.category(sign).startswith("P") else sign for sign in normalise_answer(text))
    return " ".join(word for word in blanks.split() if word not in ("a", "an", "the"))


def unwrapped(text: str) -> str:
    """An answer without what models add to it: `\\boxed{}`, end-of-sequence tokens, full-width or invisible signs."""
    text = "".join(sign for sign in unicodedata.normalize("NFKC", text) if unicodedata.category(sign) != "Cf")
    text = re.sub(r"</?s>|<eos>|<pad>|<\|\w+\|>|\[(sep|eos|pad)\]", " ", text, flags=re.IGNORECASE)
    return normalise_answer(re.sub(r"\\boxed\{(.*?)\}", r"\1", text))


def reading(text: str, gold: str) -> str:
    """The mildest reading by which a wrong answer is the accepted one; empty if there is none."""
    words, wanted = lenient(unwrapped(text)).split(), lenient(unwrapped(gold)).split()
    if unwrapped(text) == unwrapped(gold):
        return "without \\boxed{}, end-of-sequence tokens, full-width or invisible signs"
    if words == wanted != []:
        return "without punctuation and articles"
    if gold in ("yes", "no"):
        return "by the yes or no in them" * (words[:1] == wanted or {"yes", "no"} & set(words) == {gold})
    return "as they contain it" * bool(wanted and f" {' '.join(wanted)} " in f" {' '.join(words)} ")


def page(score: Score) -> str:
    """A score to read, as Markdown: the notes, then two tables per protocol."""
    out = [*score.notes, INTERVALS]
    for title, rows in score.table.groupby("protocol", sort=False):
        rows = rows.assign(part=rows["split"] + rows["definition"].map(lambda name: name and f", {name}"))
        out += [f"\n## {title}\n\n{NOTES[title]}\n", _scores(rows).to_markdown(index=False, disable_numparse=True)]
        out += ["", _differences(rows).to_markdown(index=False, disable_numparse=True)]
    return "\n".join(out + [note for note in score.notes if note.startswith(WARNING)])  # terminals show the end


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
            "smallest detectable": f"{line.detectable:.2f}",
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


def _check_ids(places: pd.Series, asked: Asked, untold: Collection[str], shown: str) -> list[str]:
    """The ids of predictions on questions that are not asked: those of other splits, languages and variants.

    `places` names each prediction's place by its id. Raises InputError where an id is no question at all or a test
    question, `untold` excepted, has no prediction.
    """
    test = pd.Index([q.question_id for q in asked.questions if q.split == "test"])
    lacking = test[~test.isin([*places.index, *untold])]
    others, looks = places.index[~places.index.isin(test)], ""
    if len(lacking):
        looks = prediction_files.renumbered(places.index, test)
    if len(others):
        slake = manifests.load(asked.dataset).reader == "slake"
        whole = [*asked.questions, *_ask(asked.dataset, language="en+zh" if slake else "en").questions]
        unknown = others[~others.isin([q.question_id for q in whole])]
        if len(unknown):
            raise InputError(
                f"{places[unknown[0]]}: question {unknown[0]} is none of {asked.dataset} ({len(unknown)} such ids; "
                f"test questions have ids such as {test[0]}{looks}); correct or remove it"
            )
    if len(lacking):
        raise InputError(
            f"{shown}: {len(lacking)} of {len(test)} test questions have no prediction, the first is {lacking[0]}"
            f"{looks}; nothing is scored, add them (an empty answer counts as wrong)"
        )
    return list(others)


def _rankings(
    scores: pd.DataFrame | None, asked: Asked, spec: RunSpec | None
) -> tuple[list[Protocol], pd.DataFrame | None, list[str]]:
    """Which ranking protocols log-likelihoods (questions, answers) allow, the candidates, and what to say."""
    if scores is None:
        others = ", ".join(protocol.title for protocol in RANKING)
        return [], None, [f"Not scored: {others}. {LOG_LIKELIHOODS}"]
    used, notes = [], [] if spec else ["It is not known whether the training saw test answers (strict@1)."]
    for protocol in RANKING:
        wanted = asked.answers(*protocol.candidates.split("+"))
        if lacking := sorted(wanted - set(scores)):
            example = f", such as {lacking[0]!r}" if manifests.may_show(asked.dataset, "texts") else ""
            why = f"which ranks {len(wanted)} answers; {len(lacking)} of them have no log-likelihood{example}"
        elif protocol.name == "strict" and spec and spec.saw_test_answers:
            why = "since the run's training questions or vocabulary hold test answers"
        else:
            used.append(protocol)
            continue
        notes.append(f"Not scored: {protocol.title}, {why}.")
    return used, candidate_frame(list(scores), 1, asked.questions), notes  # sums are given: no protocol divides by 1


# --- what a reader must know -------------------------------------------------------------------------------------


def _about_answers(frame: pd.DataFrame, asked: Asked, listed: Collection[str] | None) -> list[str]:
    """Empty answers, where the answers occur in the data set, and what the list says that they were chosen among."""
    out, given = [], frame.set_index("question_id")["generated"]
    if (empty := given[given == ""]).size:
        out.append(f"Empty answers, counted as wrong: {len(empty)} (first: question {empty.index[0]}).")
    test_only = asked.answers("test") - asked.answers("train", "val")
    out.append(f"Answers that only test questions have: {int(given.isin(test_only).sum())}.")
    if listed is not None:
        odd = given[(given != "") & ~given.isin(listed)]
        outside = f"{len(odd)} (first: question {odd.index[0]})" if len(odd) else "0"
        like = {"test": "the test answers, as under protocol paper", "train": "the training answers, as under strict@1"}
        found = next((said for split, said in like.items() if set(listed) == asked.answers(split)), "no protocol's")
        out.append(
            f"Candidates: {len(listed)}. Answers that are not among them: {outside}. They are {found}; answers that "
            f"only test questions have: {len(test_only & set(listed))}."
        )
    return out


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


def _with_reading(scored: pd.DataFrame, gold: pd.Series) -> pd.DataFrame:
    """Add the columns `reading` of wrong answers (empty: none makes them right) and `lenient`, whether there is one."""
    answers = zip(scored["prediction"], gold, scored["correct"], strict=True)
    found = [
        "" if correct else next(filter(None, (reading(text, one) for one in accepted)), "")
        for text, accepted, correct in answers
    ]
    return scored.assign(reading=found, lenient=[bool(name) for name in found])


def _readings(title: str, scored: pd.DataFrame, gold: pd.Series, dataset: str) -> list[str]:
    """How many answers only leniency would accept, by reading, and one each where the set's texts may be shown."""
    out = []
    for name, found in scored.assign(gold=gold)[scored["lenient"]].groupby("reading"):
        one, example = found.iloc[0], ""
        if manifests.may_show(dataset, "texts"):
            example = f": {one['prediction']!r} for {' | '.join(one['gold'])!r}"
        out.append(f"{len(found)} {name} (first: question {one['question_id']}{example})")
    head = f"{title}: {scored['lenient'].sum()} wrong answers would be right under a lenient reading (not scored): "
    return [head + "; ".join(out) + "."] if out else []
