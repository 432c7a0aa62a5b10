"""Known regions of generated data sets: which pixels show what a question or report names; for scoring maps only.

No reader and no training opens these files (`masks/`, `masks.json`, `question_regions.json` beside a phantom set).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from amif_lib.core import paths
from amif_lib.data import manifests
from amif_lib.data.records import Question, Study

SHORTEST = 5  # letters: shorter words of answers rarely name a finding


class Asked(NamedTuple):
    """A word of a text that a network can be asked about."""

    id: str  # of the question or study
    image_id: str
    label: str  # what the region shows
    word: str  # as the text names it
    text: str  # the question, or the sentence of the report
    read: str  # what the network reads: the question, or the whole report


def known(name: str) -> bool:
    """Whether a data set comes with regions: generated sets do, real ones do not."""
    return manifests.load(name).generator is not None


def findings(name: str, image_id: str) -> list[str]:
    """The findings that an image shows, in the order of the label list."""
    about = _read(name, paths.phantom_root(), "masks.json")
    areas = about["images"].get(image_id.removesuffix(".png"), {"areas": {}})["areas"]
    return [label for label in about["findings"] if label in areas]


def findings_of(study: Study) -> str:
    """The findings that a study's images show, with semicolons between; empty where no regions are known."""
    name = study.data_set
    shown = {label for image in study.images for label in findings(name, image.image_id)} if known(name) else ()
    return "; ".join(sorted(shown))


def masks(name: str, image_ids: Iterable[str], labels: Sequence[str]) -> Iterator[np.ndarray]:
    """Where each image shows each of F labels: (F, H, W) of booleans, at the image's own size."""
    numbers = _read(name, paths.phantom_root(), "masks.json")["labels"]
    wanted, folder = np.array([numbers[label] for label in labels])[:, None, None], manifests.location(name) / "masks"
    for image_id in image_ids:
        with Image.open(folder / f"{image_id.removesuffix('.png')}.png") as picture:
            yield np.asarray(picture) == wanted


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


def named_in_questions(name: str, questions: Sequence[Question]) -> list[Asked]:
    """The findings that questions name and their images show, in file order."""
    about, out = _read(name, paths.phantom_root(), "question_regions.json"), []
    for q in questions:
        for label in about.get(q.question_id, ()):
            if (word := naming_word(q.question, label)) and label in findings(name, q.image_id):
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


def answer_words(questions: Sequence[Question]) -> list[Asked]:
    """For sets without regions: the longest word of each test question that is also a word of a training answer."""
    answers = {w for q in questions if q.split == "train" for w in re.findall(r"[a-z]+", q.answer.lower())}
    out = []
    for q in (question for question in questions if question.split == "test"):
        words = [w for w in re.findall(r"[A-Za-z]+", q.question) if len(w) >= SHORTEST and w.lower() in answers]
        if words:
            word = max(words, key=len)
            out.append(Asked(q.question_id, q.image_id, word.lower(), word, q.question, q.question))
    return out


@lru_cache(maxsize=16)
def _read(name: str, root: Path, file: str) -> dict[str, Any]:  # `root` tells the folders of two tests apart
    return json.loads((manifests.location(name) / file).read_text(encoding="utf-8"))
