"""Stored patch maps of a run, with the regions they are scored against: `maps.npz`. Reading needs no torch and no data.

Of every map all cells are kept as 16-bit steps between the map's own lowest and highest value, so that the order of the
cells, which scoring goes by, survives in a small file. The first examples come with a small picture and the region in it.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError

MAPS, SOFT_LABELS, HARD_NEGATIVES = "maps.npz", "soft_labels.npz", "hard_negatives.csv"
EXAMPLE_MAPS = "example_maps.npz"  # of images without known regions: nothing covers any cell
VERSION = 1  # of what the three files hold; a run with an older one is done again
STEPS = 65535
PICTURE = 96  # side of an example's picture, pixels
TEXTS = ("ids", "image_ids", "labels", "words", "texts")


@dataclass
class Maps:
    """Patch maps of n questions or reports of a data set, each about one label and the word that names it."""

    data_set: str
    ids: list[str]  # of the question or study
    image_ids: list[str]
    labels: list[str]  # what the region shows
    words: list[str]  # as the text names it
    texts: list[str]  # the question, or the sentence of the report
    coverage: np.ndarray  # (n, s, s): share of each cell that the region covers
    values: dict[str, np.ndarray] = field(default_factory=dict)  # name of the map -> (n, s, s)
    examples: list[int] = field(default_factory=list)  # rows that have a picture
    pictures: np.ndarray = field(default_factory=lambda: np.zeros((0, PICTURE, PICTURE), np.uint8))
    outlines: np.ndarray = field(default_factory=lambda: np.zeros((0, PICTURE, PICTURE), bool))  # the region

    def __len__(self) -> int:
        return len(self.ids)


def write(path: Path, maps: Maps) -> Path:
    """Write `maps` to `path` (`.npz`), aside first."""
    content = {
        "version": np.array(VERSION),
        "data_set": np.array(maps.data_set),
        **{name: np.array(getattr(maps, name), dtype=str) for name in TEXTS},
        "coverage": maps.coverage.astype(np.float16),
        "examples": np.array(maps.examples, dtype=np.int32),
        "pictures": maps.pictures.astype(np.uint8),
        "outlines": np.packbits(maps.outlines.astype(bool), axis=-1),
    }
    for name, values in maps.values.items():
        low, high = (f(values, axis=(1, 2), keepdims=True).astype(np.float32) for f in (np.min, np.max))
        scale = np.where(high > low, high - low, 1)
        content[f"map_{name}"] = np.rint((values - low) / scale * STEPS).astype(np.uint16)
        content[f"range_{name}"] = np.stack([low[:, 0, 0], high[:, 0, 0]], axis=1)
    return write_arrays(path, content)


def read(path: Path) -> Maps:
    """Maps that `write` has written. Raises InputError where there are none or they are of another version."""
    stored = read_arrays(path)
    values = {}
    for name in (key.removeprefix("map_") for key in stored if key.startswith("map_")):
        low, high = stored[f"range_{name}"].T[:, :, None, None]
        values[name] = low + (high - low) * stored[f"map_{name}"].astype(np.float32) / STEPS
    return Maps(
        str(stored["data_set"]),
        *(stored[name].tolist() for name in ("ids", "image_ids", "labels", "words", "texts")),
        coverage=stored["coverage"].astype(np.float32),
        values=values,
        examples=stored["examples"].tolist(),
        pictures=stored["pictures"],
        outlines=np.unpackbits(stored["outlines"], axis=-1, count=PICTURE).astype(bool),
    )


def write_arrays(path: Path, content: dict[str, np.ndarray]) -> Path:
    """Write named arrays as a compressed `.npz`, aside first."""
    with files.write_aside(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **content)
    return path


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` of this kit's; none of them may be a pickled object."""
    if not path.is_file():
        raise InputError(f"{paths.shown(path)}: missing; notebooks 03 to 05 make it once the run is trained")
    try:
        with np.load(path, allow_pickle=False) as stored:
            content = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{paths.shown(path)}: not readable ({reason}); delete it and run the notebook again"
        ) from None
    if int(content.get("version", 0)) != VERSION:
        raise InputError(
            f"{paths.shown(path)}: version {int(content.get('version', 0))} instead of {VERSION}; run the notebook again"
        )
    return content


def is_current(path: Path) -> bool:
    """Whether `path` holds arrays of this version."""
    try:
        return bool(read_arrays(path))
    except InputError:
        return False
