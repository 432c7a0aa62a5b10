"""Data sets by name: readers turn each set's own layout into studies (pre-training) or questions (fine-tuning)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.records import Question, Study

__all__ = ["count_table", "counts", "image_paths", "load_questions", "load_studies", "variant_counts"]

log = logging.getLogger(__name__)


def load_studies(
    name: str,
    *,
    decontaminate_against: tuple[str, ...] = (),
    decontaminate_absent: Literal["error", "skip"] = "error",
    report_sections: str = "findings+impression",
    medicat_figures: str = "radiology",
    max_missing_images: float = 0.1,
    stored_side: int = 0,
    most_bad_images: float = 0.01,
) -> list[Study]:
    """The pre-training studies of a data set; a phantom set is generated first where it is absent.

    That is the official train split of MIMIC-CXR and ROCO; of MedICaT, which has no splits, and of MedPix-2.0, which
    serves for pre-training only, everything.

    Args:
        name: manifest name of a pre-training set.
        decontaminate_against: manifest names of sets whose images must not be pre-trained on. A whole case
            (study, article) is dropped when one of its images shares a MedPix image id with a protected image, or is
            within 4 bits of it by difference hash and by perceptual hash (`decontaminate`); the counts are logged.
        decontaminate_absent: whether a protected set that is not on disk is an error, or skipped with a warning.
        report_sections: `findings+impression`, `findings` or `impression`, where the set has sections.
        medicat_figures: `radiology` or `all`.
        max_missing_images: share of the images that ROCO and MedICaT list but that may be absent and are left out.

        stored_side: prepare the images at this short side, pixels, and leave out those that cannot be decoded
            (`store.usable`); 0: records only.
        most_bad_images: share of the images that may be left out.

    Raises:
        InputError: unknown set, folder absent, malformed record, missing file; names the file and the fix.
    """
    studies = _read_studies(name, report_sections, medicat_figures, max_missing_images)
    if stored_side:
        from amif_lib.data import store

        studies = store.usable(name, stored_side, studies)
    if decontaminate_against:
        from amif_lib.data import decontaminate

        studies, _ = decontaminate.apply(name, studies, tuple(decontaminate_against), decontaminate_absent)
    return studies


def pretraining_studies(data: Any, stored_side: int) -> list[Study]:
    """The studies that a run pre-trains on: all sets of `RunSpec.data`, one after the other, decontaminated.

    Images are stored at the short side `stored_side`, pixels; what cannot be decoded is left out.
    """
    from amif_lib.data import decontaminate

    sets = {}
    for name in data.pretrain:
        studies = load_studies(
            name,
            decontaminate_against=data.decontaminate_against,
            decontaminate_absent=data.decontaminate_absent,
            stored_side=stored_side,
        )
        sets[name] = [replace(study, data_set=name) for study in studies]
    found = [study for studies in sets.values() for study in studies]
    if data.repeated_articles == "drop":
        found, _ = decontaminate.without_repeated_articles(sets)
    return found[: data.max_studies or None]


def _read_studies(
    name: str,
    report_sections: str = "findings+impression",
    medicat_figures: str = "radiology",
    max_missing_images: float = 0.1,
) -> list[Study]:
    manifest = manifests.load(name)
    if manifest.role != "pretraining":
        raise InputError(
            f"data set {name!r} is not for pre-training but for {manifest.role}; correct the spec's data.pretrain"
        )
    folder = manifests.location(name)
    layout = manifests.as_found(manifest).layout
    if manifest.reader == "mimic_cxr":
        from amif_lib.data.readers import mimic_cxr

        return mimic_cxr.read(folder, layout, report_sections=report_sections)
    if manifest.reader == "roco":
        from amif_lib.data.readers import roco

        return roco.read(folder, layout, max_missing_images=max_missing_images)
    if manifest.reader == "medicat":
        from amif_lib.data.readers import medicat

        return medicat.read(folder, layout, figures=medicat_figures, max_missing_images=max_missing_images)
    from amif_lib.data.readers import medpix2

    return medpix2.read(folder, layout)


def load_questions(
    name: str,
    training_file: str = "default",
    language: str = "en",
    allow_cross_language: bool = False,
    *,
    images: bool = True,
) -> list[Question]:
    """The questions of a question set (`Question.split` is `train`, `val` or `test`; VQA-RAD has no `val`).

    Args:
        name: manifest name of a question set.
        training_file: which questions, `default` being the first. VQA-RAD: `official1797`, `published3064` (leaks test
            answers), `clean2772` or `image_disjoint`; PathVQA: `official` or `deduplicated`; VQA-Med-2019: `all` or
            `without_abnormality`; SLAKE: `official`.
        language: SLAKE: `en`, `zh` or `en+zh`; the other sets are English.
        allow_cross_language: permits `en+zh`, which trains on test images.
        images: whether every question's image must be there; without, the annotations alone can be read and counted.

    Raises:
        InputError: unknown set, training file or language, folder absent, malformed record, question without an image;
            names the file, the record and the fix.
    """
    manifest = manifests.load(name)
    if manifest.role != "questions":
        raise InputError(
            f"data set {name!r} holds no questions but is for {manifest.role}; correct the spec's data.questions"
        )
    options: dict[str, Any] = {"images": images}
    if manifest.reader == "slake":
        options |= {"language": language, "allow_cross_language": allow_cross_language}
    elif language != "en":
        raise InputError(f"data set {name!r} has English questions only; set data.language: en")
    reader = import_module(f"amif_lib.data.readers.{manifest.reader}")
    return reader.read(manifests.location(name), manifest.layout, training_file, **options)


def image_paths(name: str) -> list[Path]:
    """Every image file that a record of the set names, each once."""
    if manifests.load(name).role == "questions":
        return sorted({question.image_path for question in load_questions(name)})
    return sorted({image.path for study in _read_studies(name) for image in study.images})


def counts(name: str, *, images: bool = True) -> dict[str, dict[str, int]]:
    """Counts per split and over all (`all`), under the names that a manifest's `splits` use.

    Of a question set the default questions are counted (`load_questions`); `images=False` counts them without any image.
    """
    out: dict[str, dict[str, int]] = {}
    if manifests.load(name).role == "questions":
        questions = load_questions(name, images=images)
        for split in ("train", "val", "test", "all"):
            part = [question for question in questions if split in (question.split, "all")]
            if not part:
                continue
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


def variant_settings(reader: str, variant: str) -> dict[str, Any]:
    """What `load_questions` takes for a variant of a set: SLAKE's are languages, the others' training files."""
    if reader == "slake":
        return {"language": variant, "allow_cross_language": True}
    return {"training_file": variant}


def variant_counts(
    name: str, variants: tuple[manifests.Variant, ...] | None = None, *, images: bool = True
) -> dict[str, dict[str, int]]:
    """Questions per split of the variants (default: all) that a question set's manifest lists."""
    manifest, out = manifests.load(name), {}
    for variant in manifest.variants if variants is None else variants:
        questions = load_questions(name, images=images, **variant_settings(manifest.reader, variant.name))
        out[variant.name] = dict(Counter(question.split for question in questions))
    return out


def count_table(names: Iterable[str]) -> pd.DataFrame:
    """`counts` of several sets, one line per set and split; a set has counts of studies or of questions."""
    rows = [{"data_set": name, "split": split, **found} for name in names for split, found in counts(name).items()]
    order = ["data_set", "split", "studies", "questions", "images", "closed_field", "closed_yes_no", "distinct_answers"]
    return pd.DataFrame(rows).reindex(columns=order).astype(dict.fromkeys(order[2:], "Int64"))
