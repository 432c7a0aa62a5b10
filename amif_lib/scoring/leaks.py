"""What the training questions of a set give away about its test questions, and what can be scored without any model.

`lines` takes any list of questions, `report` a set that has a manifest; accuracies are percentages.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests
from amif_lib.data.records import Question, close_punctuation, normalise_answer
from amif_lib.scoring import baselines, protocols

log = logging.getLogger(__name__)
WORDINGS = ("rephrase", "frame")  # keys of `Question.extra` that hold the question in other words
SCORES = {"ceiling": "vocabulary_ceiling", "lookup": "nearest_question", "most_frequent": "most_frequent"}
PARTS = {  # column ending -> split and definition of closed
    "overall": ("overall", "answer_type"),
    "open": ("open", "answer_type"),
    "closed": ("closed", "answer_type"),
    "open_yes_no": ("open", "yes_no"),
    "closed_yes_no": ("closed", "yes_no"),
}
MEANINGS = {
    "n_train": "training questions",
    "n_test": "test questions",
    "train_images": "images with a training question",
    "test_images": "images with a test question",
    "test_images_in_train": "of these, images that have a training question too",
    "on_train_image": "test questions on such an image",
    "paraphrase_in_train": "test questions with a paraphrase and their answer in training, on the same image "
    "(empty: no rephrased or framed wordings, so it cannot be told)",
    "repeated_in_train": "test questions repeated in training: image, question and answer",
    "unseen_answer": "test questions whose answer no training question has",
}
ABOUT = ("data_set", "training_file", "training", "test")
COLUMNS = (*ABOUT, *MEANINGS, *(f"{score}_{part}" for score in SCORES for part in PARTS))


def report(name: str) -> pd.DataFrame:
    """Leaks and ceilings of a question set, one line per training file (`lines` for a set with several languages).

    A variant whose files are absent is left out with a warning. Raises InputError as `load_questions` does.
    """
    manifest = manifests.load(name)
    variants = {variant.name: load.variant_settings(manifest.reader, variant.name) for variant in manifest.variants}
    frames: list[pd.DataFrame] = []
    for variant, settings in (variants or {"default": {}}).items():
        try:
            questions = load.load_questions(name, images=False, **settings)
        except InputError as error:
            if not frames:  # not even the default can be read
                raise
            log.warning("%s, %s: left out (%s)", name, variant, error)
        else:
            frames.append(lines(questions, name, variant))
    return pd.concat(frames, ignore_index=True)


def lines(questions: Sequence[Question], data_set: str = "", training_file: str = "") -> pd.DataFrame:
    """Compare test questions with training questions: columns `COLUMNS`, one line for questions in one language.

    With several languages, each language's test questions are compared with the training questions of each language
    and of all together. Raises InputError if there are no training or no test questions.
    """
    languages, rows = list(dict.fromkeys(q.language for q in questions)), []
    for language, learnt in product(languages, dict.fromkeys([*languages, "+".join(languages)])):
        train = [q for q in questions if q.split == "train" and q.language in learnt.split("+")]
        test = [q for q in questions if q.split == "test" and q.language == language]
        training, tested = (f"{learnt} train", f"{language} test") if len(languages) > 1 else ("train", "test")
        if train and test:
            about = {"data_set": data_set, "training_file": training_file, "training": training, "test": tested}
            rows.append(about | measure(train, test))
    if not rows:
        splits = ", ".join(sorted({q.split for q in questions})) or "none"
        raise InputError(f"leaks: need training and test questions, found only: {splits}; name files of both")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def measure(training: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """Counts (`MEANINGS`) and accuracies in percent (`SCORES`) of test questions, given training questions."""
    images, test_images = ({q.image_id for q in part} for part in (training, test))
    vocabulary = {answer for q in training for answer in q.answers}
    found: dict[str, float] = {
        "n_train": len(training),
        "n_test": len(test),
        "train_images": len(images),
        "test_images": len(test_images),
        "test_images_in_train": len(test_images & images),
        "on_train_image": sum(q.image_id in images for q in test),
        "paraphrase_in_train": float("nan"),
        "repeated_in_train": sum(in_training(training, test)),
        "unseen_answer": sum(not vocabulary.intersection(q.answers) for q in test),
    }
    if any(q.extra.get(key) for q in test for key in WORDINGS):
        found["paraphrase_in_train"] = sum(in_training(training, test, WORDINGS))
    both = [*(replace(q, split="train") for q in training), *test]
    for name, baseline in SCORES.items():
        scored = protocols.score(baselines.BASELINES[baseline][1](both), None, protocols.PROTOCOLS["generate"])
        accuracy = protocols.accuracies(scored)
        found |= {f"{name}_{part}": round(accuracy[key], 2) for part, key in PARTS.items()}
    return found


def plain(text: str) -> str:
    """A question's words as they are compared: Unicode NFKC, lower case, no white space around punctuation."""
    return close_punctuation(normalise_answer(unicodedata.normalize("NFKC", text)))


def in_training(training: Sequence[Question], test: Sequence[Question], wordings: Sequence[str] = ()) -> list[bool]:
    """For each test question: whether a training question on the same image has its words and one of its answers.

    `wordings`: which of the test question's other wordings (`WORDINGS`) count as well.
    """
    known = {(q.image_id, plain(q.question), answer) for q in training for answer in q.answers}
    texts = [[q.question, *(q.extra.get(key, "") for key in wordings)] for q in test]
    return [
        any((q.image_id, plain(text), answer) in known for text in own for answer in q.answers)
        for q, own in zip(test, texts, strict=True)
    ]


def transposed(table: pd.DataFrame) -> pd.DataFrame:
    """The table for reading: one row per measure with its meaning, one column per line."""
    names = dict(MEANINGS)
    for (score, baseline), part in product(SCORES.items(), PARTS):
        names[f"{score}_{part}"] = f"{baselines.BASELINES[baseline][0]}: {part.replace('_yes_no', ', yes/no')}, %"
    heads = [" / ".join(filter(None, own)) for own in zip(*(table[name] for name in ABOUT[1:]), strict=True)]
    body = table[list(names)].set_axis(list(names.values()), axis=1).T.set_axis(heads, axis=1)
    return body.map(lambda value: "" if pd.isna(value) else f"{value:.10g}").rename_axis("").reset_index()
