"""What a score must beat: answers that need no image model, and the ceiling of a fixed answer list.

Each baseline returns a frame with the columns of stored predictions, so that `protocols.score` scores it (protocol
`generate`: the answer is what it says, no candidate is ranked).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import redistribution
from amif_lib.data.manifests import data_digest
from amif_lib.data.records import Question

RULES = 2  # raise when a baseline's rule or a training file's order changes: older stored answers are then not read

# How a yes/no question starts; used on the question's own words, never on its answer.
_YES_NO = re.compile(r"(is|are|was|were|does|do|did|has|have|had|can|could|will|would|should)\b")


def _split(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Training and test questions, validation belonging to neither."""
    training = [q for q in questions if q.split == "train"]
    test = [q for q in questions if q.split == "test"]
    for name, part in (("train", training), ("test", test)):
        if not part:
            raise InputError(f"baselines: no question of split {name!r} among {len(questions)}; load both splits")
    return training, test


def _commonest(answers: Sequence[str]) -> str:
    """The most frequent answer; of equally frequent ones the first that occurs (file order)."""
    return Counter(answers).most_common(1)[0][0]


def _frame(training: Sequence[Question], test: Sequence[Question], answer: Callable[[Question], str]) -> pd.DataFrame:
    """Columns of stored predictions; `image_in_training`: whether a training question is on the same image."""
    images = {q.image_id for q in training}
    chosen = [answer(question) for question in test]
    return pd.DataFrame(
        {
            "question_id": [q.question_id for q in test],
            "image_id": [q.image_id for q in test],
            "question": [q.question for q in test],
            "gold": [list(q.answers) for q in test],
            "split": [q.split for q in test],
            "question_type": [q.question_type for q in test],
            "closed_field": [q.closed_field for q in test],
            "closed_yes_no": [q.closed_yes_no for q in test],
            "generated": chosen,
            "prediction": chosen,
            "image_in_training": [q.image_id in images for q in test],
        }
    )


def most_frequent_answer(questions: Sequence[Question]) -> pd.DataFrame:
    """The commonest training answer, for every test question."""
    training, test = _split(questions)
    answer = _commonest([q.answer for q in training])
    return _frame(training, test, lambda question: answer)


def most_frequent_answer_by_form(questions: Sequence[Question]) -> pd.DataFrame:
    """As `most_frequent_answer`, separately for questions that start like a yes/no question (is, does, are ...)."""
    training, test = _split(questions)
    groups: dict[bool, list[str]] = defaultdict(list)
    for question in training:
        groups[looks_yes_no(question.question)].append(question.answer)
    answers = {form: _commonest(found) for form, found in groups.items()}
    overall = _commonest([q.answer for q in training])
    return _frame(training, test, lambda question: answers.get(looks_yes_no(question.question), overall))


def looks_yes_no(question: str) -> bool:
    """Whether a question's first word asks for yes or no."""
    return _YES_NO.match(question.strip().lower()) is not None


def nearest_question(questions: Sequence[Question]) -> pd.DataFrame:
    """The answer of the most similar training question on the same image.

    Similarity is the Jaccard index of the questions' word sets (lower case, word characters only); of equally similar
    ones the first in file order is taken. An image without a training question gets the most frequent answer.
    """
    training, test = _split(questions)
    by_image: dict[str, list[tuple[frozenset[str], str]]] = defaultdict(list)
    for question in training:
        by_image[question.image_id].append((_words(question.question), question.answer))
    fallback = _commonest([q.answer for q in training])

    def lookup(question: Question) -> str:
        words = _words(question.question)
        near = by_image.get(question.image_id)
        return max(near, key=lambda entry: _jaccard(words, entry[0]))[1] if near else fallback  # max keeps the first

    return _frame(training, test, lookup)


def _words(question: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", question.lower()))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def vocabulary_ceiling(questions: Sequence[Question]) -> pd.DataFrame:
    """The best that any method can score which answers with training answers only: the accepted answer itself where it
    occurs in training, else nothing."""
    training, test = _split(questions)
    vocabulary = {answer for question in training for answer in question.answers}
    return _frame(training, test, lambda question: next((a for a in question.answers if a in vocabulary), ""))


BASELINES: dict[str, tuple[str, Callable[[Sequence[Question]], pd.DataFrame]]] = {
    "most_frequent": ("most frequent training answer", most_frequent_answer),
    "most_frequent_by_form": ("most frequent answer, yes/no-looking questions apart", most_frequent_answer_by_form),
    "nearest_question": ("nearest question on the same image", nearest_question),
    "vocabulary_ceiling": ("ceiling of the training answers", vocabulary_ceiling),
}


def stored_path(scale: str, dataset: str, training_file: str, language: str = "en") -> Path:
    """The file of `stored`: of the scale's results, of `results/private/` or, under FROM=reference, of the reference."""
    if paths.from_reference():
        folder = paths.reference(scale) / "baselines"
    else:
        folder = redistribution.folder(paths.scale_dir(scale) / "baselines", texts=[dataset])  # it holds the questions
    which = training_file if language == "en" else f"{training_file}-{language}"
    return folder / f"{dataset}-{which}-{data_digest(dataset)}-{RULES}.parquet"


def stored(
    scale: str, dataset: str, training_file: str, language: str = "en", allow_cross_language: bool = False
) -> dict[str, pd.DataFrame]:
    """Every baseline's answers on a question set, by name: read where they are stored, else computed and stored.

    They lie in `results/<scale>/baselines/`, the file being named by question set, training file, language (where it is
    not English) and manifest digest, so that tables can be made again without the data (under `results/private/` where
    the set's texts may not be shown). Raises InputError where neither file nor data exist.
    """
    path = stored_path(scale, dataset, training_file, language)
    if not path.is_file():
        if paths.from_reference():
            raise InputError(
                f"{paths.shown(path)}: no such file; the reference results of scale {scale} hold no answers of {dataset} (its "
                "texts may not be passed on), or were made for an earlier version of the data"
            )
        from amif_lib.data.load import load_questions

        questions = load_questions(
            dataset, training_file=training_file, language=language, allow_cross_language=allow_cross_language
        )
        whole = pd.concat([make(questions).assign(baseline=name) for name, (_, make) in BASELINES.items()])
        with files.write_aside(path) as aside:
            whole.to_parquet(aside, index=False)
    whole = pd.read_parquet(path)
    return {
        name: whole[whole["baseline"] == name].drop(columns="baseline").reset_index(drop=True) for name in BASELINES
    }
