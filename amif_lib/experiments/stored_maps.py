"""Patch maps of a trained run, with the regions that they should point at, stored beside it for figures."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError

MAPS = "maps.npz"


@dataclass
class Maps:
    """Patch maps of n questions or reports of a data set, each about one label and the word that names it."""

    data_set: str
    ids: np.ndarray  # (n,): of the question or study
    image_ids: np.ndarray  # (n,)
    labels: np.ndarray  # (n,): what the region shows
    words: np.ndarray  # (n,): how the text names it
    texts: np.ndarray  # (n,): the question, or the sentence of the report
    coverage: np.ndarray  # (n, s, s): share of each cell that the region covers; all 0 where no region is known
    values: dict[str, np.ndarray]  # name of the map -> (n, s, s)
    examples: np.ndarray  # (k,): rows that have a picture
    pictures: np.ndarray  # (k, side, side), grey
    outlines: np.ndarray  # (k, side, side): whether the region covers the pixel

    def __len__(self) -> int:
        return len(self.ids)


def write(path: Path, maps: Maps) -> Path:
    """Write maps as a compressed `.npz`."""
    content = asdict(maps)
    content |= {f"map_{name}": values.astype(np.float32) for name, values in content.pop("values").items()}
    with files.atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **content)
    return path


def read(path: Path) -> Maps:
    """Maps that `write` has written. Raises InputError for a file that holds none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = dict(file)
        maps = {name.removeprefix("map_"): content.pop(name) for name in list(content) if name.startswith("map_")}
        return Maps(**content | {"data_set": str(content["data_set"]), "values": maps})
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, EOFError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{paths.shown(path)}: {said}; delete it and run notebooks 04 and 05 again") from None
