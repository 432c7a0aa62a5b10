"""Known regions of generated data sets: which pixels show what a question or report names; for scoring maps only.

No reader and no training opens these files (`masks/`, `masks.json`, `question_regions.json` beside a phantom set).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.records import Question, Study

SHORTEST = 5  # letters of a word of an answer: shorter ones are mostly no findings
COMMONEST = 0.02  # of the training questions that may hold such a word: beyond, it is how one asks ("present", "there")


def known(name: str) -> bool:
    """Whether a data set comes with regions: generated sets do, real ones do not."""
    return manifests.load(name).generator is not None


def of_questions(name: str) -> dict[str, list[str]]:
    """For each question id the labels that the question asks about (none, where it asks about the whole image)."""
    return _read(_folder(name, paths.phantom_root()) / "question_regions.json")


def findings(name: str, image_id: str) -> tuple[str, ...]:
    """The findings that an image shows, in the order of the label list."""
    about = _read(_folder(name, paths.phantom_root()) / "masks.json")
    areas = about["images"].get(image_id.removesuffix(".png"), {"areas": {}})["areas"]
    return tuple(label for label in about["findings"] if label in areas)


def mask(name: str, image_id: str, label: str) -> np.ndarray:
    """Where an image shows a label: (H, W) of booleans, at the image's own size."""
    folder = _folder(name, paths.phantom_root())
    number = _read(folder / "masks.json")["labels"].get(label)
    path = folder / "masks" / f"{image_id.removesuffix('.png')}.png"
    if number is None or not path.is_file():
        what = f"no label {label!r}" if number is None else "no such mask"
        raise InputError(f"{paths.shown(path)}: {what}; delete {paths.shown(folder)} to have the set made again")
    with Image.open(path) as picture:
        return np.asarray(picture) == number


def coverage(region: np.ndarray, side: int) -> np.ndarray:
    """The share of each cell that a region (H, W) covers, on a grid over the image: (side, side), 0 to 1.

    The network squeezes an image to a square, so cells are taken over the whole image, whatever its shape.
    """
    picture = Image.fromarray(np.asarray(region, dtype=np.float32), mode="F")
    return np.clip(np.asarray(picture.resize((side, side), Image.Resampling.BOX)), 0, 1)


def naming_word(text: str, label: str) -> str:
    """The words of `text` that name a label, as written there (`Nodules` for `nodule`); empty if there are none."""
    found = re.search(rf"(?<!\w){re.escape(label)}s?(?!\w)", text, re.IGNORECASE)
    return found[0] if found else ""


@lru_cache(maxsize=16)
class Asked(NamedTuple):
    """A word of a text that a network can be asked about."""

    id: str  # of the question or study
    image_id: str
    label: str  # what the region shows
    word: str  # as the text names it
    text: str  # the question, or the sentence of the report
    read: str  # what the network reads: the question, or the whole report


def named_in_questions(name: str, questions: Sequence[Question]) -> list[Asked]:
    """The findings that questions name and their images show, in file order."""
    about, out = of_questions(name), []
    for q in questions:
        for label in about.get(q.question_id, ()):
            word = naming_word(q.question, label)
            if word and label in findings(name, q.image_id):
                out.append(Asked(q.question_id, q.image_id, label, word, q.question, q.question))
    return out


def named_in_reports(name: str, studies: Sequence[Study]) -> list[Asked]:
    """The findings that reports name and their images show, in file order."""
    out = []
    for study in studies:
        for image in study.images:
            for label in findings(name, image.image_id):
                if word := naming_word(study.text, label):
                    sentence = next(part for part in study.text.split(". ") if word in part).strip(" .")[:120]
                    out.append(Asked(study.study_id, image.image_id, label, word, sentence, study.text))
    return out


def named_answers(questions: Sequence[Question]) -> list[Asked]:
    """The test questions that hold a word of a training answer, by a rule, where no regions are known.

    The word has `SHORTEST` letters or more and stands in at most the share `COMMONEST` of the training questions; the
    longest of several counts.
    """
    learnt = [question for question in questions if question.split == "train"]
    holding = Counter(word for question in learnt for word in set(_words(question.question)))
    answers = {word for question in learnt for word in _words(question.answer) if len(word) >= SHORTEST}
    known, out = {word for word in answers if holding[word] <= COMMONEST * len(learnt)}, []
    for q in (question for question in questions if question.split == "test"):
        if words := [word for word in _words(q.question) if word in known]:
            start = q.question.lower().index(word := max(words, key=len))
            written = q.question[start : start + len(word)]
            out.append(Asked(q.question_id, q.image_id, word, written, q.question, q.question))
    return out


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _folder(name: str, root: Path) -> Path:  # `location` compares the generator's code each time, slow in a loop
    return manifests.location(name)


@lru_cache(maxsize=16)
def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{paths.shown(path)}: missing; delete the set's folder to have it made again")
    return json.loads(path.read_text(encoding="utf-8"))
