"""Files of embeddings by sample id: a teacher's vectors, or vectors from other code that replace them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError

Key = tuple[str, str]  # `image` or `text`, and the image's id or the text's study id


def write(path: Path, keys: Sequence[Key], vectors: np.ndarray) -> None:
    """Write vectors (n, e) as a Parquet file, one row per sample: `kind` (`image` or `text`), `id`, `vector` (a list).

    `teacher.source: file:PATH` reads such files, from this function or from pandas, with vectors of any length.
    """
    kinds, ids = zip(*keys, strict=True)
    frame = pd.DataFrame({"kind": kinds, "id": ids, "vector": list(np.asarray(vectors, np.float32))})
    with files.atomic_write(Path(path), files.PREPARED) as temporary:
        frame.to_parquet(temporary)


def read(path: Path, keys: Sequence[Key]) -> np.ndarray:
    """Unit-length vectors (n, e), float32, of the n `keys`; other rows of the file are ignored.

    Raises InputError, with the id, for a file of another form or a vector that is missing, twice there, zero or not
    finite.
    """
    where, form = paths.shown(path), "a Parquet file with columns kind, id and vector (lists of equally many numbers)"
    try:
        frame = pd.read_parquet(path, columns=["kind", "id", "vector"])
        found = dict(zip(zip(frame["kind"], frame["id"], strict=True), frame["vector"], strict=True))
        missing = [key for key in keys if key not in found]
        vectors = np.stack([found[key] for key in keys if key in found] or [[0.0]]).astype(np.float64)  # (n, e)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; write {form}, or set DATA_ROOT to its folder") from None
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not {form}: {' '.join(str(error).split())[:100]}") from None
    if missing:
        what = f"no vector of {' '.join(map(repr, missing[0]))} ({len(missing)} of {len(keys)} are missing)"
        raise InputError(f"{where}: {what}; write one for every sample (if the kit wrote it, delete the file's folder)")
    if len(twice := frame[frame.duplicated(["kind", "id"])]):
        raise InputError(f"{where}: {twice['kind'].iloc[0]} {twice['id'].iloc[0]!r} occurs twice; keep one")
    lengths = np.linalg.norm(vectors, axis=1)
    if len(wrong := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
        said = f"the vector of {' '.join(map(repr, keys[wrong[0]]))} is zero or not finite"
        raise InputError(f"{where}: {said}; embed it again")
    return (vectors / lengths[:, None]).astype(np.float32)
