"""Load data sets by name: studies for pre-training, questions for fine-tuning, and their counts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.readers import files
from amif_lib.data.records import Question, Study

log = logging.getLogger(__name__)


def load_studies(name: str, *, stored_side: int = 0) -> list[Study]:
    """The pre-training studies of a data set; a phantom set is generated first where it is absent.

    These are the official train splits of MIMIC-CXR and ROCO, all of MedICaT, which has no splits, and all of
    MedPix-2.0, which is used for pre-training only.

    Args:
        name: manifest name of a pre-training set.
        stored_side: prepare the images with this short side, pixels, and leave out studies with an image that cannot
            be decoded (`store.usable`); 0: records only.

    Raises:
        InputError: unknown set, folder absent, malformed record, missing file; names the file and the fix.
    """
    studies: list[Study] = _read(name, "pretraining")
    if stored_side:
        from amif_lib.data import store  # needs Hugging Face's datasets, which the light environment lacks

        studies = store.usable(name, stored_side, studies)
    return studies


def pretraining_studies(data: Any, stored_side: int) -> list[Study]:
    """The studies that a run pre-trains on: all sets of `data`, a `DataSpec`, one after the other, decontaminated.

    Images are stored with a short side of `stored_side` pixels; studies with one that cannot be decoded are left out.
    Raises InputError as `load_studies` and `decontaminate.apply` do.
    """
    from amif_lib.data import decontaminate

    sets = {}
    for name in data.pretrain:
        studies = load_studies(name, stored_side=stored_side)
        if data.decontaminate_against:
            studies, _ = decontaminate.apply(name, studies, data.decontaminate_against)
        sets[name] = [replace(study, data_set=name) for study in studies]
    if data.repeated_articles == "drop":
        sets = without_repeated_articles(sets)
    found = [study for studies in sets.values() for study in studies]
    return found[: data.max_studies or None]


def without_repeated_articles(sets: Mapping[str, Sequence[Study]]) -> dict[str, list[Study]]:
    """The sets without studies whose article is in an earlier set; the log says how many were dropped.

    ROCO and MedICaT are both drawn from PubMed Central's open articles. Only group ids made by `records.article_id`
    are compared; a PMCID never equals a DOI of the same article, so readers give the PMCID if they know it.
    """
    seen: set[str] = set()
    out = {}
    for name, studies in sets.items():
        out[name] = [study for study in studies if study.group_id not in seen]
        seen |= {study.group_id for study in studies if study.group_id.startswith(("pmc:", "doi:"))}
        if repeated := len(studies) - len(out[name]):
            log.info("%s: %d studies of an earlier set's articles dropped", name, repeated)
    return out


def load_questions(
    name: str, training_file: str = "default", language: str = "en", *, images: bool = True
) -> list[Question]:
    """The questions of a question set (`Question.split` is `train`, `val` or `test`; VQA-RAD has no `val`).

    Args:
        name: manifest name of a question set.
        training_file: which questions, `default` being the first. VQA-RAD: `official1797`, `published3064` (leaks test
            answers), `clean2772` or `image_disjoint`; PathVQA: `official` or `deduplicated`; VQA-Med-2019: `all` or
            `without_abnormality`; SLAKE: `official`.
        language: SLAKE: `en`, `zh`, or `en+zh` to count and compare, not to learn from; the other sets are English.
        images: whether every question's image must be there; False reads the annotations alone.

    Raises:
        InputError: unknown set, training file or language, folder absent, malformed record, question without an image;
            names the file, the record and the fix.
    """
    reader, choices = _reader(name, "questions"), {}
    if training_file != "default":
        files.check_one_of(training_file, reader.TRAINING_FILES, "training_file:")
        choices["training_file"] = training_file
    if language != "en":
        files.check_one_of(language, getattr(reader, "LANGUAGES", ("en",)), f"data set {name}: language:")
        choices["language"] = language
    questions: list[Question] = _read(name, "questions", **choices)
    return files.with_images(questions, manifests.location(name)) if images else questions


def clusters(name: str, image_ids: Iterable[str]) -> list[str]:
    """For each image the unit that a bootstrap resamples: its case if the set has cases (`case_of`), else itself."""
    return list(map(getattr(_reader(name, "questions"), "case_of", str), image_ids))


def variant_settings(reader: str, variant: str) -> dict[str, Any]:
    """Arguments of `load_questions` for a variant of a set: a language for SLAKE, a training file for the others."""
    return {"language" if reader == "slake" else "training_file": variant}


def load(name: str, *, images: bool = True) -> list[Study] | list[Question]:
    """The records of any set with its reader's defaults; with `images=False` questions are read without images."""
    asked = manifests.load(name).role == "questions"
    return load_questions(name, images=images) if asked else load_studies(name)


def image_paths(name: str) -> list[Path]:
    """Every image file that a record of the set names, each once."""
    return sorted({image.path for record in load(name) for image in record.images})


def counts(name: str, *, images: bool = True) -> dict[str, dict[str, int]]:
    """Counts per split and over all (`all`), under the names that a manifest's `splits` use."""
    records, out = load(name, images=images), {}
    for split in ("train", "val", "test", "all"):
        part = [record for record in records if split in (record.split, "all")]
        if part and isinstance(part[0], Study):
            out[split] = {"studies": len(part), "images": sum(len(study.images) for study in part)}
        elif part:
            out[split] = {
                "questions": len(part),
                "images": len({question.image_id for question in part}),
                "closed_field": sum(question.closed_field for question in part),
                "closed_yes_no": sum(question.closed_yes_no for question in part),
                "distinct_answers": len({question.answer for question in part}),
            }
    return out


def _reader(name: str, role: str) -> Any:
    manifest = manifests.load(name)
    if manifest.role != role:
        raise InputError(f"data set {name!r} is for {manifest.role}, not for {role}; name another set")
    return import_module(f"amif_lib.data.readers.{manifest.reader}")


def _read(name: str, role: str, **choices: str) -> list[Any]:
    """A set's records, by its reader, from the form that is on disk; a generated set is generated first if absent."""
    reader, root = _reader(name, role), manifests.location(name)
    return reader.read(root, manifests.form_on_disk(manifests.load(name)).layout, **choices)
