"""Predictions in the small form that is committed: what is equal for many runs once, log-likelihoods where they matter.

A run's `predictions.parquet` then holds, per question, the generated answer, the prediction and the log-likelihoods of
some candidates; the questions and the candidates lie once in `shared/` of the scale, named by the digest of their
content. Kept is every candidate that a protocol could choose: over test, training or validation answers or all of them, by
sum or mean, over yes and no alone; of runs whose probabilities are drawn (calibration) also those within `MARGIN` of the
best one, of all and of the test answers. Kept numbers are half precision,
or single precision for a question whose choice half precision would change. So every protocol chooses as before, and
with `MARGIN` probabilities over the candidates are exact to about 1%. `predictions.read_predictions` reads both forms.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import predictions

SHARED = "shared"
MARGIN = 10.0  # nats below the best candidate; what lies further below holds next to no probability
OWN = ("generated", "prediction", "log_likelihoods")  # columns that differ from run to run
REMEDY = "restore it: git checkout results/reference"


def is_compact(frame: pd.DataFrame) -> bool:
    """Whether a file of predictions is in the small form."""
    return {"questions_digest", "candidates_digest", "kept"} <= set(frame)


def write(
    folder: Path, frame: pd.DataFrame, candidates: pd.DataFrame, shared: Path, probabilities: bool = True
) -> None:
    """Write predictions, as `predictions.read_predictions` gives them, in the small form.

    Without `probabilities` only what can be chosen is kept, about a fifth of the size.
    `shared` is the folder for questions and candidates; what another run put there already is not written again.
    """
    scores = np.stack([np.asarray(row, dtype=np.float32) for row in frame["log_likelihoods"]])  # (n, K)
    sets = _choosable(candidates)
    kept = scores >= scores.max(1, keepdims=True) - (MARGIN if probabilities else 0)
    test = candidates["in_test"].to_numpy(dtype=bool)
    if probabilities and test.any():  # a protocol may leave the best candidate of all out
        kept |= test[None] & (scores >= scores[:, test].max(1, keepdims=True) - MARGIN)
    for row, column in ((np.arange(len(scores)), best) for best in _choices(scores, candidates, sets)):
        kept[row, column] = True
    kept |= np.isin(candidates["answer"], ("yes", "no"))[None]
    values = np.where(kept, scores.astype(np.float16).astype(np.float32), scores)
    changed = np.zeros(len(scores), dtype=bool)
    restored = _fill(values, kept, candidates)
    for before, after in zip(_choices(scores, candidates, sets), _choices(restored, candidates, sets), strict=True):
        changed |= before != after
    values[changed] = scores[changed]
    out = pd.DataFrame(
        {
            "questions_digest": _share(shared, frame.drop(columns=list(OWN))),
            "candidates_digest": _share(shared, candidates),
            "generated": frame["generated"],
            "prediction": frame["prediction"],
            "kept": [np.flatnonzero(row).astype(np.uint16) for row in kept],
            "log_likelihoods": [row[chosen] for row, chosen in zip(values, kept, strict=True)],
        }
    )
    write_parquet(folder / predictions.PREDICTIONS, out)


def expand(folder: Path, stored: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and candidates from the small form. A candidate that was not kept gets a number that cannot win."""
    where = paths.shown(folder / predictions.PREDICTIONS)
    found = []
    for column in ("questions_digest", "candidates_digest"):
        digests = set(stored[column])
        if len(digests) != 1:
            raise InputError(f"{where}: {column} names {len(digests)} files; {REMEDY}")
        found.append(_shared(folder, next(iter(digests))).copy())
    frame, candidates = found
    if len(frame) != len(stored):
        raise InputError(f"{where}: {len(stored)} predictions for {len(frame)} questions; {REMEDY}")
    kept = np.zeros((len(frame), len(candidates)), dtype=bool)
    values = np.zeros(kept.shape, dtype=np.float32)
    for row, (places, numbers) in enumerate(zip(stored["kept"], stored["log_likelihoods"], strict=True)):
        places = np.asarray(places, dtype=np.int64)
        if not len(places) or len(places) != len(numbers) or places.max() >= len(candidates):
            raise InputError(f"{where}: question {frame['question_id'][row]}: kept does not fit candidates; {REMEDY}")
        kept[row, places], values[row, places] = True, numbers
    frame["generated"], frame["prediction"] = stored["generated"].to_numpy(), stored["prediction"].to_numpy()
    frame["log_likelihoods"] = list(_fill(values, kept, candidates))
    return frame[list(predictions.COLUMNS)], candidates


def _choosable(candidates: pd.DataFrame) -> list[np.ndarray]:
    """The sets of candidates that protocols choose among, as masks (K,)."""
    train, val, test = (candidates[f"in_{split}"].to_numpy(dtype=bool) for split in ("train", "val", "test"))
    sets = [test, train, train | val, train | val | test]
    yes_no = candidates["answer"].isin(["yes", "no"]).to_numpy()
    return [one for one in (*sets, *(one & yes_no for one in sets)) if one.any()]


def _choices(scores: np.ndarray, candidates: pd.DataFrame, sets: list[np.ndarray]) -> list[np.ndarray]:
    """The best candidate per question (n,) for each set, by sum and by mean; ties go to the first listed."""
    tokens = candidates["tokens"].to_numpy(dtype=np.float32)
    kinds = (scores, scores / tokens)
    return [np.where(one, kind, -np.inf).argmax(1) for one in sets for kind in kinds]


def _fill(values: np.ndarray, kept: np.ndarray, candidates: pd.DataFrame) -> np.ndarray:
    """`values` with a number for candidates that were not kept: below every kept one by sum and by mean."""
    tokens = candidates["tokens"].to_numpy(dtype=np.float32)
    lowest = np.where(kept, values, np.inf).min(1, keepdims=True)
    return np.where(kept, values, (np.minimum(lowest, 0) - 50) * tokens).astype(np.float32)


def _digest(frame: pd.DataFrame) -> str:
    plain = frame.map(lambda value: list(value) if isinstance(value, np.ndarray) else value)
    return hashlib.sha256(plain.to_json(orient="split", index=False).encode()).hexdigest()[:12]


def _share(shared: Path, frame: pd.DataFrame) -> str:
    name = _digest(frame)
    if not (shared / f"{name}.parquet").is_file():
        write_parquet(shared / f"{name}.parquet", frame)
    return name


def _shared(folder: Path, name: str) -> pd.DataFrame:
    tried = [parent / SHARED / f"{name}.parquet" for parent in folder.resolve().parents[:3]]
    path = next((path for path in tried if path.is_file()), tried[1])  # <scale>/runs/<run_id>/[blank_test/]
    return _read_shared(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=64)
def _read_shared(path: Path, _changed: int) -> pd.DataFrame:
    frame = predictions.read_parquet(path, REMEDY)
    if _digest(frame) != path.stem:
        raise InputError(f"{paths.shown(path)}: its content does not fit its name, the file was edited; {REMEDY}")
    return frame


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as small as Parquet gets, without the writer's version and pandas' own notes, which take kilobytes per file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    with files.write_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd", compression_level=19, store_schema=False)
