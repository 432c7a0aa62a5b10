"""One file per data set: `read(root, layout, ...)` turns its official layout into records.

`root` is the set's folder, `layout` the manifest's paths under it; readers of question sets also take `training_file`
(one of the module's `TRAINING_FILES`, or `default` for the first) and `images` (whether every image must be there).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.records import Question, Study


def studies(name: str) -> list[Study]:
    """A pre-training set's studies as its files have them; a generated set is generated first.

    Readers raise InputError, naming file and line or record, for what is malformed or missing.
    """
    return _read(name, "pretraining")


def questions(
    name: str, training_file: str = "default", language: str = "en", *, images: bool = True
) -> list[Question]:
    """A question set's questions, see `load.load_questions`."""
    slake = manifests.load(name).reader == "slake"
    if language != "en" and not slake:
        raise InputError(f"data set {name!r} has English questions only; set data.language: en")
    options = {"language": language} if slake else {}
    return _read(name, "questions", training_file=training_file, images=images, **options)


def image_paths(name: str) -> list[Path]:
    """Every image file that a record of the set names, each once."""
    if manifests.load(name).role == "questions":
        return sorted({question.image_path for question in questions(name)})
    return sorted({image.path for study in studies(name) for image in study.images})


def _read(name: str, role: str, **options: Any) -> list[Any]:
    manifest = manifests.load(name)
    if manifest.role != role:
        raise InputError(f"data set {name!r} is for {manifest.role}, not for {role}; name another set")
    reader = import_module(f"amif_lib.data.readers.{manifest.reader}")
    return reader.read(manifests.location(name), manifests.form_on_disk(manifest).layout, **options)
