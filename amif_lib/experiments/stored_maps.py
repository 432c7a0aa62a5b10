"""What figures need of a trained run, stored beside it: patch maps with regions, soft labels, mined negatives.

Of every map all cells are kept as 16-bit steps between its lowest and highest value, in the order that scoring goes by.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amif_lib import methods
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored

MAPS, SOFT_LABELS, HARD_NEGATIVES = "maps.npz", "soft_labels.npz", "hard_negatives.csv"
EXAMPLE_MAPS = "example_maps.npz"  # of images without known regions: nothing covers any cell
VERSION = 1  # of what the files hold; one of another version is made again
STEPS = 65535
PICTURE = 96  # side of an example's picture, pixels (of the method that makes it)
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


def ensure(run: Any, drawn: Callable[[int], Any] | None = None) -> list[Path]:
    """Store what figures need of a finished run, unless it is there; returns the files.

    `run` is a run, its specification or id; of a pre-training `drawn(step)` gives the batch that it drew at a step, and
    its studies (`training.prepare.drawn`). Raises InputError where the run is not finished.
    """
    run = run if isinstance(run, stored.Run) else stored.load_run(run)
    if not stored.is_finished(run.spec):
        raise InputError(f"{paths.shown(run.directory)}: the run is not finished; train it first")
    found = []
    for name, make in methods.load(run.spec.method).maps(run, drawn).items():
        shared = untrained_path(run.spec.scale, run.spec.stage, "").parent
        folder = shared if name.startswith("untrained") else run.directory
        if not _is_current(folder / name):
            content = make()
            if content is None:
                continue
            if isinstance(content, pd.DataFrame):
                table = content.to_csv(index=False, lineterminator="\n", float_format="%.6g")
                files.write_text(folder / name, table)
            elif "coverage" in content:
                write(folder / name, Maps(**content))
            else:
                write_arrays(folder / name, content)
        found.append(folder / name)
    return found


def _is_current(path: Path) -> bool:
    """Whether a table is there, or arrays of this version."""
    with contextlib.suppress(InputError):
        return path.is_file() and (path.suffix != ".npz" or bool(read_arrays(path)))
    return False


def untrained_path(scale: str, stage: str, data_set: str) -> Path:
    """Maps of a model of the same size with random weights: one file per scale, stage and data set."""
    return paths.scale_source(scale) / "maps" / f"untrained_{stage}_{data_set}.npz"


def write(path: Path, maps: Maps) -> Path:
    """Write `maps` to `path` (`.npz`), aside first."""
    content = {
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
    content = read_arrays(path)
    values = {}
    for name in (key.removeprefix("map_") for key in content if key.startswith("map_")):
        low, high = content[f"range_{name}"].T[:, :, None, None]
        values[name] = low + (high - low) * content[f"map_{name}"].astype(np.float32) / STEPS
    return Maps(
        str(content["data_set"]),
        *(content[name].tolist() for name in TEXTS),
        coverage=content["coverage"].astype(np.float32),
        values=values,
        examples=content["examples"].tolist(),
        pictures=content["pictures"],
        outlines=np.unpackbits(content["outlines"], axis=-1, count=PICTURE).astype(bool),
    )


def write_arrays(path: Path, content: dict[str, np.ndarray]) -> Path:
    """Write named arrays as a compressed `.npz`, aside first, with the version of what such files hold."""
    with files.write_aside(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, version=np.array(VERSION), **content)
    return path


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` of this kit's; none of them may be a pickled object."""
    remake = "delete it and run notebooks 03 to 05 again"
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{paths.shown(path)}: missing; notebooks 03 to 05 make it once the run is trained") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(
            f"{paths.shown(path)}: not readable ({' '.join(str(error).split())[:120]}); {remake}"
        ) from None
    if (version := int(content.get("version", 0))) != VERSION:
        raise InputError(f"{paths.shown(path)}: version {version} instead of {VERSION}; {remake}")
    return content
