"""A data set's images at training size, encoded once into a memory-mapped Arrow file beside the data.

`$DATA_ROOT/.amif/store/<set>/<short side>-<digest>.arrow` is a Hugging Face `datasets.Dataset`; the digest covers size
and modification time of every source file, so a file that exists is up to date.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pandas as pd
from datasets.arrow_writer import ArrowWriter
from PIL import Image

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, atomic_write, exclusive, writing
from amif_lib.data import images, load, manifests
from amif_lib.data.records import Question, Study, StudyImage

log = logging.getLogger(__name__)

VERSION = 1  # raised whenever something else is stored, or stored differently
TEXTS = ("image_id", "view", "text", "reason")  # text: the study's; reason: why the image is left out, else empty
FEATURES = datasets.Features(dict.fromkeys(TEXTS, datasets.Value("string")) | {"image": datasets.Image()})
CaptionedImage = tuple[StudyImage, str]  # an image and its study's text
Records = TypeVar("Records", Study, Question)
_found: dict[tuple[Path, Path, int], Path] = {}  # what this process has found or made, by folders and short side


def usable(name: str, short_side: int, records: Sequence[Records]) -> list[Records]:
    """The records whose images are all stored; stores them first if necessary.

    Raises:
        InputError: more than `images.MOST_BAD` of the images, or the image of a test question, cannot be decoded; the
            folder cannot be written. Names the folder or the list of bad images, never an image.
    """
    file = ensure(name, short_side, records)
    reasons = listed(file)
    bad = {image_id for image_id, reason in reasons.items() if reason}
    said = f"data set {name}: {len(bad)} of {len(reasons)} images cannot be decoded"
    remedy = f"fetch again the images listed in {paths.shown(file.with_suffix('.bad.csv'))}"
    if len(bad) > images.MOST_BAD * len(reasons):
        raise InputError(f"{said}, more than {images.MOST_BAD:.0%}; {remedy}")
    kept = []
    for record in records:
        if bad.isdisjoint(image.image_id for image in record.images):
            kept.append(record)
        elif isinstance(record, Question) and record.split != "train":  # no score over a part of an evaluation set
            raise InputError(f"{said}, one of a {record.split} question; {remedy}")
    if bad:
        log.info("%s; %d records left out with them; %s", said, len(records) - len(kept), remedy)
    return kept


def ensure(name: str, short_side: int, records: Sequence[Study] | Sequence[Question] | None = None) -> Path:
    """The Arrow file of a data set's images at `short_side` pixels, made now if it is absent or a source file changed.

    `records` are the set's records whose images to store; None: the file that this process used last or, the first
    time, all records by the reader's default settings. Raises InputError, which names the folder, if the set's records
    cannot be read or the folder cannot be written.
    """
    root, home = manifests.location(name), manifests.derived_folder(name) / "store" / name
    if records is None:
        if (root, home, short_side) in _found:
            return _found[root, home, short_side]
        records = load.load(name)
    entries = _entries(name, records)
    file = home / f"{short_side}-{_digest(entries)}.arrow"
    if not file.is_file():
        with writing(home, PREPARED), exclusive(home / ".lock", f"the image store of {name}", remedy=PREPARED):
            if not file.is_file():  # else the process that held the lock has made it
                _write(name, file, short_side, entries, root)
    _found[root, home, short_side] = file
    return file


def listed(file: Path) -> dict[str, str]:
    """For each image id the reason why its image is not in the file; empty if it is."""
    table = datasets.Dataset.from_file(str(file)).data
    return dict(zip(*(table.column(key).to_pylist() for key in ("image_id", "reason")), strict=True))


def _entries(name: str, records: Sequence[Study] | Sequence[Question]) -> list[CaptionedImage]:
    """Every image of the records once, in the order of the ids, with its study's text."""
    found: dict[str, CaptionedImage] = {}
    for record in records:
        for image in record.images:
            known, _ = found.setdefault(image.image_id, (image, getattr(record, "text", "")))
            if known.path != image.path:
                raise InputError(f"data set {name}: two files have the image id {image.image_id}; make ids unique")
    return [found[image_id] for image_id in sorted(found)]


def _digest(entries: Sequence[CaptionedImage]) -> str:
    digest = hashlib.sha256(f"{VERSION} {images.QUALITY}".encode())
    for image, text in entries:
        stat = image.path.stat() if image.path.exists() else None
        state = (stat.st_size, stat.st_mtime_ns) if stat else None
        digest.update(f"{image} {text} {state}".encode())
    return digest.hexdigest()[:12]


def _write(name: str, file: Path, short_side: int, entries: Sequence[CaptionedImage], root: Path) -> None:
    """Encode the images into the file, and list the bad ones beside it."""
    bad = []
    rows = images.in_parallel(partial(_row, short_side), entries, f"{name}: preparing images at {short_side} px")
    with (
        atomic_write(file, PREPARED) as temporary,
        ArrowWriter(path=str(temporary), features=FEATURES, writer_batch_size=128) as writer,
    ):
        for (image, _), row in zip(entries, rows, strict=True):
            writer.write(row)
            if row["reason"]:
                bad.append((image.image_id, os.path.relpath(image.path, root), row["reason"]))
        writer.finalize()
        if bad:
            listing = pd.DataFrame(bad, columns=["image_id", "file", "reason"])
            listing.to_csv(file.with_suffix(".bad.csv"), index=False)
    stored, home = len(entries) - len(bad), paths.shown(file.parent)
    log.info("%s: %d images stored at %d px in %s, %d left out", name, stored, short_side, home, len(bad))


def _row(short_side: int, entry: CaptionedImage) -> dict[str, Any]:
    image, text = entry
    row = {"image_id": image.image_id, "view": image.view, "text": text, "reason": "", "image": None}
    try:
        return row | {"image": {"bytes": images.encode(image.path.read_bytes(), short_side), "path": None}}
    except (OSError, images.UnreadableImage) as error:
        return row | {"reason": images.reason(error)}


def pictures(names: Sequence[str], short_side: int) -> Pictures:
    """The stored images of several data sets, by image id."""
    return Pictures([ensure(name, short_side) for name in names])


class Pictures:
    """Stored images by id, decoded when asked for; can be forked and pickled, since the table stays in its file."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files]).data
        every = [entry for file in files for entry in listed(file).items()]
        self.row = {image_id: row for row, (image_id, reason) in enumerate(every) if not reason}
        if twice := len(every) - len({image_id for image_id, _ in every}):
            names = ", ".join(file.parent.name for file in self.files)
            raise InputError(f"data.pretrain: {twice} image ids are in two of {names}; remove one of these sets")

    def __getitem__(self, image_id: str) -> Image.Image:
        """The stored image, in mode `L` where it is grey, else `RGB`."""
        return images.decode(self.content(image_id))

    def content(self, image_id: str) -> bytes:
        """The stored file content (JPEG). Raises InputError for an image that is not stored."""
        if image_id not in self.row:
            names = ", ".join(paths.shown(file) for file in self.files)
            raise InputError(f"a record's image is not among those in {names}; use the set's own records")
        return self.table.fast_slice(self.row[image_id], 1)["image"][0]["bytes"].as_py()
