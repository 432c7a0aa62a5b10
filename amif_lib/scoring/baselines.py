"""What a score must beat: answers that need no image model, and the ceiling of a fixed answer list.

Each gives a frame with the columns of stored predictions, which `protocols.score` scores as generated answers.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests
from amif_lib.data.manifests import data_digest
from amif_lib.data.records import Question
from amif_lib.experiments.predictions import question_frame

RULES = 2  # increase it if a baseline's rule or a training file's order changes: files stored before are then not read
# How a yes/no question starts; applied to the question, never to its answer.
_YES_NO = re.compile(r"\s*(is|are|was|were|does|do|did|has|have|had|can|could|will|would|should)\b", re.IGNORECASE)


def _training(questions: Sequence[Question]) -> list[Question]:
    if lacking := {"train", "test"} - {q.split for q in questions}:
        raise InputError(f"baselines: no question of split {lacking.pop()!r} among {len(questions)}; load both splits")
    return [q for q in questions if q.split == "train"]


def _commonest(questions: Sequence[Question]) -> str:
    """The most frequent answer; of equally frequent ones the first that occurs (file order)."""
    return Counter(q.answer for q in questions).most_common(1)[0][0]


def _answered(questions: Sequence[Question], answer: Callable[[Question], str]) -> pd.DataFrame:
    """The test questions with `answer`'s answers; `image_in_training`: a training question is on the same image."""
    chosen = [answer(q) for q in questions if q.split == "test"]
    frame = question_frame(questions).assign(generated=chosen, prediction=chosen)
    return frame.assign(image_in_training=frame["image_id"].isin({q.image_id for q in _training(questions)}))


def most_frequent_answer(questions: Sequence[Question]) -> pd.DataFrame:
    """The commonest training answer, for every test question."""
    answer = _commonest(_training(questions))
    return _answered(questions, lambda _: answer)


def most_frequent_answer_by_form(questions: Sequence[Question]) -> pd.DataFrame:
    """As `most_frequent_answer`, separately for questions that start like yes/no questions (is, does, are, ...)."""

    def form(question: Question) -> bool:
        return bool(_YES_NO.match(question.question))

    training = _training(questions)
    answers = {one: _commonest([q for q in training if form(q) == one] or training) for one in (True, False)}
    return _answered(questions, lambda question: answers[form(question)])


def nearest_question(questions: Sequence[Question]) -> pd.DataFrame:
    """The answer of the most similar training question on the same image.

    Similarity is the Jaccard index of the questions' word sets (lower case, word characters only); of equally similar
    ones the first in file order is taken. An image without a training question gets the most frequent answer.
    """
    by_image: dict[str, list[tuple[set[str], str]]] = defaultdict(list)
    for question in _training(questions):
        by_image[question.image_id].append((_words(question), question.answer))
    fallback = _commonest(_training(questions))

    def lookup(question: Question) -> str:
        words = _words(question)
        similarity = [len(words & other) / max(1, len(words | other)) for other, _ in by_image[question.image_id]]
        return by_image[question.image_id][similarity.index(max(similarity))][1] if similarity else fallback

    return _answered(questions, lookup)


def _words(question: Question) -> set[str]:
    return set(re.findall(r"\w+", question.question.lower()))


def vocabulary_ceiling(questions: Sequence[Question]) -> pd.DataFrame:
    """The best that answering with training answers only can score: the accepted answer where it is one, else none."""
    vocabulary = {answer for question in _training(questions) for answer in question.answers}
    return _answered(questions, lambda question: next((a for a in question.answers if a in vocabulary), ""))


BASELINES: dict[str, tuple[str, Callable[[Sequence[Question]], pd.DataFrame]]] = {
    "most_frequent": ("most frequent training answer", most_frequent_answer),
    "most_frequent_by_form": ("most frequent answer, yes/no-looking questions apart", most_frequent_answer_by_form),
    "nearest_question": ("nearest question on the same image", nearest_question),
    "vocabulary_ceiling": ("ceiling of the training answers", vocabulary_ceiling),
}


def stored(scale: str, dataset: str, training_file: str, language: str = "en") -> dict[str, pd.DataFrame]:
    """Every baseline's answers on a question set, by name: read where they are stored, else computed and stored.

    They lie in `results/<scale>/baselines/`, so that tables can be made again without the data (under
    `results/private/` where the set's texts may not be shown). Raises InputError where neither file nor data exist.
    """
    folder = paths.reference(scale) / "baselines"
    if not paths.from_reference():
        folder = manifests.folder_for(paths.scale_dir(scale) / "baselines", texts=[dataset])  # it holds the questions
    which = training_file if language == "en" else f"{training_file}-{language}"
    path = folder / f"{dataset}-{which}-{data_digest(dataset)}-{RULES}.parquet"
    if not path.is_file():
        if paths.from_reference():
            raise InputError(f"{paths.shown(path)}: no such file; the reference holds no answers of {dataset}")
        questions = load.load_questions(dataset, training_file=training_file, language=language)
        whole = pd.concat([make(questions).assign(baseline=name) for name, (_, make) in BASELINES.items()])
        with files.atomic_write(path) as aside:
            whole.to_parquet(aside, index=False)
    groups = pd.read_parquet(path).groupby("baseline", sort=False)
    return {name: part.drop(columns="baseline").reset_index(drop=True) for name, part in groups}
