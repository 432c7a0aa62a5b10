"""Data sets by name: readers turn each set's own layout into studies (pre-training) or questions (fine-tuning)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from amif_lib import manifests
from amif_lib.datasets.records import Question, Study
from amif_lib.errors import InputError

__all__ = ["count_table", "counts", "image_paths", "load_questions", "load_studies"]

log = logging.getLogger(__name__)


def load_studies(
    name: str,
    *,
    decontaminate_against: tuple[str, ...] = (),
    report_sections: str = "findings+impression",
    stored_side: int = 0,
    most_bad_images: float = 0.01,
) -> list[Study]:
    """The pre-training studies of a data set; a phantom set is generated first where it is absent.

    That is the official train split of MIMIC-CXR; of MedPix-2.0, which serves for pre-training only, all splits.

    Args:
        name: manifest name of a pre-training set.
        decontaminate_against: manifest names of sets whose images must not be pre-trained on. A whole case
            (study, article) is dropped when one of its images shares a MedPix image id with a protected image, or is
            within 4 bits of it by difference hash and by perceptual hash (`decontaminate`); the counts are logged.
        report_sections: `findings+impression`, `findings` or `impression`, where the set has sections.

        stored_side: prepare the images at this short side, pixels, and leave out those that cannot be decoded
            (`prepared.usable`); 0: records only.
        most_bad_images: share of the images that may be left out.

    Raises:
        InputError: unknown set, folder absent, malformed record, missing file; names the file and the fix.
    """
    studies = _read_studies(name, report_sections)
    if stored_side:
        from amif_lib.datasets import prepared

        studies = prepared.usable(name, stored_side, studies, most_bad_images)
    if decontaminate_against:
        from amif_lib.datasets import decontaminate

        studies, _ = decontaminate.apply(name, studies, tuple(decontaminate_against))
    return studies


def _read_studies(name: str, report_sections: str = "findings+impression") -> list[Study]:
    manifest = manifests.load(name)
    if manifest.role != "pretraining":
        raise InputError(
            f"data set {name!r} is not for pre-training but for {manifest.role}; correct the spec's data.pretrain"
        )
    folder = manifests.location(name)
    if manifest.reader == "mimic_cxr":
        from amif_lib.datasets import mimic_cxr

        return mimic_cxr.read(folder, manifest.layout, report_sections=report_sections)
    from amif_lib.datasets import medpix2

    return medpix2.read(folder, manifest.layout)


def load_questions(name: str, training_file: str = "default") -> list[Question]:
    """The training and test questions of a question set (`Question.split` is `train` or `test`).

    Args:
        name: manifest name of a question set.
        training_file: which training questions; VQA-RAD: `official1797` (also `default`), `published3064` (leaks test
            answers) or `clean2772`.

    Raises:
        InputError: unknown set or training file, folder absent, malformed record, question without an image; names the
            file, the record's qid and the fix.
    """
    manifest = manifests.load(name)
    if manifest.role != "questions":
        raise InputError(
            f"data set {name!r} holds no questions but is for {manifest.role}; correct the spec's data.questions"
        )
    from amif_lib.datasets import vqa_rad

    return vqa_rad.read(manifests.location(name), manifest.layout, training_file)


def image_paths(name: str) -> list[Path]:
    """Every image file that a record of the set names, each once."""
    if manifests.load(name).role == "questions":
        return sorted({question.image_path for question in load_questions(name)})
    return sorted({image.path for study in _read_studies(name) for image in study.images})


def counts(name: str) -> dict[str, dict[str, int]]:
    """Counts per split and over all (`all`), under the names that a manifest's `splits` use."""
    out: dict[str, dict[str, int]] = {}
    if manifests.load(name).role == "questions":
        questions = load_questions(name)
        for split in ("train", "test", "all"):
            part = [question for question in questions if split in (question.split, "all")]
            out[split] = {
                "questions": len(part),
                "images": len({question.image_id for question in part}),
                "closed_field": sum(question.closed_field for question in part),
                "closed_yes_no": sum(question.closed_yes_no for question in part),
                "distinct_answers": len({question.answer for question in part}),
            }
        return out
    studies = _read_studies(name)
    for split in ("train", "val", "test", "all"):
        part = [study for study in studies if split in (study.split, "all")]
        if part:
            out[split] = {"studies": len(part), "images": sum(len(study.images) for study in part)}
    return out


def count_table(names: Iterable[str]) -> pd.DataFrame:
    """`counts` of several sets, one line per set and split; a set has counts of studies or of questions."""
    rows = [{"data_set": name, "split": split, **found} for name in names for split, found in counts(name).items()]
    order = ["data_set", "split", "studies", "questions", "images", "closed_field", "closed_yes_no", "distinct_answers"]
    return pd.DataFrame(rows).reindex(columns=order).astype(dict.fromkeys(order[2:], "Int64"))
