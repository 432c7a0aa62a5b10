"""Teacher embeddings as a file, for models with code of their own: write it there, read it here.

One Parquet file, one row per sample: `kind` (`image` or `text`), `id` (image id, or study id of a text) and `vector` (a list
of floats, equally many in every row). Vectors need not have unit length; they are normalised when read. Another code base
writes it with `write`, or with pyarrow or pandas alone; `teacher.source: file:PATH` reads it, a relative PATH under DATA_ROOT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError

KINDS = ("image", "text")
PREFIX = "file:"


def located(source: str) -> Path:
    """The file that `file:PATH` names; a relative PATH lies under DATA_ROOT, so that a specification names no machine."""
    return paths.data_root() / Path(source.removeprefix(PREFIX)).expanduser()


def write(path: Path, images: Mapping[str, Any], texts: Mapping[str, Any]) -> None:
    """Write embeddings of images (by image id) and of texts (by study id), each a vector (e,), as one Parquet file.

    Raises InputError, which names the id, for a vector of another length than the first, or one that is zero or not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [*images, *texts]
    kinds = ["image"] * len(images) + ["text"] * len(texts)
    vectors = [np.asarray(vector, np.float32) for vector in (*images.values(), *texts.values())]
    for name, vector in zip(ids, vectors, strict=True):
        if vector.shape != vectors[0].shape or vector.ndim != 1:
            raise InputError(
                f"{paths.shown(path)}: {name!r}: {vector.shape}, not {vectors[0].shape}; give vectors of one length"
            )
    _refuse_degenerate(Path(path), kinds, ids, np.stack(vectors) if vectors else np.zeros((0, 1), np.float32))
    table = pa.table({"kind": kinds, "id": ids, "vector": pa.array(vectors, pa.list_(pa.float32()))})
    with files.write_aside(Path(path), "give a file in a folder that you may write to") as aside:
        pq.write_table(table, aside)


def read(path: Path, images: Iterable[str], texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Unit-length vectors (images, e) and (texts, e), float32, in the order of the ids asked for; others are left.

    Raises InputError for a file that is absent or of another form, a vector that is missing, doubled, of another length,
    zero or not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = paths.shown(path)
    if not path.is_file():
        raise InputError(
            f"{where}: no such file of embeddings; write it with amif_lib.methods.amif.embedding_files.write, or set DATA_ROOT to the "
            "folder that a relative path starts from"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{where}: not a Parquet file ({' '.join(str(error).split())[:100]}); write it again"
        ) from None
    if lacking := [name for name in ("kind", "id", "vector") if name not in table.column_names]:
        raise InputError(
            f"{where}: no column {lacking[0]!r}; it needs kind, id and vector (amif_lib.methods.amif.embedding_files.write)"
        )
    column = table.column("vector").combine_chunks()
    if not (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    ):
        raise InputError(f"{where}: column vector holds {column.type}; it must hold lists of floats")
    kinds, ids = (table.column(name).to_pylist() for name in ("kind", "id"))
    lengths = np.asarray(column.value_lengths().fill_null(0), np.int64)
    rows: dict[tuple[str, str], int] = {}
    for row, (kind, name) in enumerate(zip(kinds, ids, strict=True)):
        if kind not in KINDS:
            raise InputError(f"{where}: row {row + 1} ({name!r}): kind {kind!r}; write image or text")
        if not isinstance(name, str):
            raise InputError(f"{where}: row {row + 1}: id {name!r} is no text; write ids as text")
        if rows.setdefault((kind, name), row) != row:
            raise InputError(
                f"{where}: {kind} {name!r} occurs twice (rows {rows[kind, name] + 1} and {row + 1}); keep one"
            )
        if lengths[row] != lengths[0] or not lengths[row]:
            raise InputError(
                f"{where}: {kind} {name!r} has {lengths[row]} numbers, the first row {lengths[0]}; write vectors of one length"
            )
    try:
        flat = np.asarray(column.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False), np.float32)
    except (pa.ArrowException, ValueError):
        raise InputError(f"{where}: column vector holds {column.type}; it must hold lists of floats") from None
    vectors = flat.reshape(len(ids), -1) if ids else np.zeros((0, 1), np.float32)
    _refuse_degenerate(path, kinds, ids, vectors)
    out = []
    for kind, wanted in (("image", list(images)), ("text", list(texts))):
        if missing := [name for name in wanted if (kind, name) not in rows]:
            raise InputError(
                f"{where}: no vector of {kind} {missing[0]!r} ({len(missing)} of the {len(wanted)} {kind}s that the run needs are "
                "missing); write one for every sample"
            )
        chosen = vectors[[rows[kind, name] for name in wanted]].astype(np.float64)
        out.append((chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).astype(np.float32))
    return out[0], out[1]


def _refuse_degenerate(path: Path, kinds: list[str], ids: list[str], vectors: np.ndarray) -> None:
    """Raise InputError for the first vector that has no direction."""
    finite = np.isfinite(vectors).all(1)
    for bad, what in ((~finite, "a number that is not finite"), (finite & ~vectors.any(1), "zeros alone")):
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                f"{paths.shown(path)}: {kinds[row]} {ids[row]!r} holds {what}; embed the sample again or leave it out"
            )


def with_noise(ids: Iterable[str], vectors: np.ndarray, noise: float, seed: int, kind: str) -> np.ndarray:
    """Unit vectors (n, e) with Gaussian noise of standard deviation noise / sqrt(e) per number, unit length again.

    The noise vector's own length is about `noise`, so the cosine to the clean vector is about 1 / sqrt(1 + noise^2). It
    depends on seed, kind and id alone: not on the order of the samples, nor on which others there are.
    """
    import hashlib

    out = np.empty_like(vectors)
    for row, name in enumerate(ids):
        key = hashlib.sha256(f"{seed} {kind} {name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(key[:16], "big"))
        noisy = vectors[row] + rng.standard_normal(vectors.shape[1]) * noise / vectors.shape[1] ** 0.5
        out[row] = noisy / np.linalg.norm(noisy)
    return out
