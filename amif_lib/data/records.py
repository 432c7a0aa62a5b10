"""The two record types that every reader yields: a study for pre-training, a question for Med-VQA.

Readers turn the official files into these and nothing downstream knows a data set's own layout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StudyImage:
    """One image of a study. `view` is `"frontal"`, `"lateral"`, a plane such as `"axial"`, or `""` where unknown."""

    image_id: str
    path: Path
    view: str = ""


@dataclass(frozen=True)
class Study:
    """One pre-training sample: a text and the image or images it describes (paper section 3.1, `(I_i, W_i)`).

    `group_id` names what must not be split or paired as a negative: the case, patient study or article. For an article
    it is `article_id(...)`, so that one article has one id in every set that draws on it. `extra` holds what no
    training reads, such as an article's `licence`. `data_set` is the manifest name of the set from which it was read.
    """

    study_id: str
    images: tuple[StudyImage, ...]
    text: str
    split: str = "train"
    group_id: str = ""
    extra: dict[str, str] = field(default_factory=dict, compare=False)
    data_set: str = ""


@dataclass(frozen=True)
class Question:
    """One Med-VQA question.

    `answers` holds the accepted answers, normalised (`normalise_answer`), the first being the one to train on.
    `closed_field` is the data set's own open/closed field where it has one (`answer_type`), `closed_yes_no` the paper's
    definition: the answer is yes or no (Table 1 caption). A set without a field has `closed_field = closed_yes_no`.
    """

    question_id: str
    image_id: str
    image_path: Path
    question: str
    answers: tuple[str, ...]
    split: str
    closed_field: bool
    closed_yes_no: bool
    question_type: str = ""
    language: str = "en"
    extra: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def images(self) -> tuple[StudyImage, ...]:
        return (StudyImage(self.image_id, self.image_path),)


def normalise_answer(text: object) -> str:
    """`str(x).strip().lower()` with inner white space collapsed: the normalisation of every count the kit reports."""
    return " ".join(str(text).split()).lower()


def close_punctuation(text: str) -> str:
    """The text without white space around punctuation and Chinese characters: `3. 4 cm, x - ray` -> `3.4 cm,x-ray`.

    A WordPiece decoder always puts blanks there, so generated and accepted answers are compared without them.
    """
    return re.sub(r"\s*([^\w\s]|[_\u3400-\u9fff])\s*", r"\1", text)


def article_id(pmcid: object = "", doi: object = "") -> str:
    """An article's id, equal in every set: `pmc:7654321`, else `doi:10.1000/x` (lower case), else empty.

    Takes PMCIDs and DOIs as they are written (`PMC7654321`, `7654321`, `https://doi.org/10.1000/X`).
    """
    if number := re.fullmatch(r"\s*(?:PMC)?0*(\d+)(?:\.\d+)?\s*", str(pmcid or ""), re.IGNORECASE):
        return f"pmc:{number[1]}"
    found = re.search(r"10\.\d{4,9}/\S+", str(doi or "").lower())
    return f"doi:{found[0].rstrip('.,;')}" if found else ""
