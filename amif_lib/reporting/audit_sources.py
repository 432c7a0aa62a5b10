"""What the paper audit reads: the printed numbers, and the annotation files or what the manifests record of them.

Questions are counted in the annotation files where `DATA_ROOT` has them, without images; every line says its source.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.load import variant_settings
from amif_lib.data.records import Question
from amif_lib.experiments import stored
from amif_lib.scoring.protocols import DEFINITIONS

SETS = ("vqa_rad", "slake", "pathvqa", "vqa_med_2019")
SIZES = {"table1": (15, 100), "table2": (8, 40), "table3": (5, 25), "table4": (6, 30), "table5": (6, 30)}  # rows, cells
OURS = "AMiF"
FROM_FILES, FROM_MANIFEST = "annotation files", "manifest"


def cells() -> pd.DataFrame:
    """Every published accuracy: `table, row, label, dataset, split, value, hundredths` (printed value times 100).

    Raises InputError, naming the file, for a number that is no percentage with two decimals at most, a cell that is
    unknown or occurs twice, and a table with other numbers of rows and cells than the paper's.
    """
    return _read(published_files()).copy()


def hundredths(cell: str, dataset: str, split: str = "overall") -> int | None:
    """The printed value, times 100, of a cell such as `table4:6`; None where the paper prints none."""
    return _by_cell(published_files()).get((cell, dataset, split))


def points(cell: str, dataset: str, split: str = "overall") -> float:
    """A cell in percent; of the Avg column the exact mean, so that a wrong printed average cannot pass on."""
    return float(sum(hundredths(cell, name, split) for name in _sets(dataset)) / 100 / len(_sets(dataset)))


def _sets(dataset: str) -> Iterable[str]:
    return SETS if dataset == "avg" else (dataset,)


def published_files() -> tuple[tuple[Path, int], ...]:
    """The published tables with their times of change: equal where a result computed before still holds."""
    files = [paths.published() / f"{table}.csv" for table in SIZES]
    return tuple((file, file.stat().st_mtime_ns if file.is_file() else 0) for file in files)


@lru_cache(maxsize=4)
def _read(files: tuple[tuple[Path, int], ...]) -> pd.DataFrame:
    frames = []
    for path, _ in files:
        frame = stored.published(path.stem)
        value = (100 * frame["value"]).round()
        odd = (100 * frame["value"] - value).abs() > 1e-6
        odd |= frame.duplicated(["row", "dataset", "split"])
        odd |= ~frame["dataset"].isin([*SETS, "avg"]) | ~frame["split"].isin(["open", "closed", "overall"])
        if odd.any():
            line = int(odd.idxmax())
            said = ", ".join(map(str, frame.loc[line, ["row", "dataset", "split", "value"]]))
            raise InputError(
                f"{paths.shown(path)}: line {line + 2} ({said}) is unknown, doubled or too exact; restore it"
            )
        if (size := (frame["row"].nunique(), len(frame))) != SIZES[path.stem]:
            wanted = SIZES[path.stem]
            raise InputError(f"{paths.shown(path)}: {size} rows and numbers, the paper has {wanted}; restore the file")
        frames.append(frame.assign(table=path.stem, hundredths=value.astype(int)))
    return pd.concat(frames, ignore_index=True)[["table", "row", "label", "dataset", "split", "value", "hundredths"]]


@lru_cache(maxsize=4)
def _by_cell(files: tuple[tuple[Path, int], ...]) -> dict[tuple[str, str, str], int]:
    return {(f"{c.table}:{c.row}", c.dataset, c.split): int(c.hundredths) for c in _read(files).itertuples()}


# --- the annotation files ---


def questions(name: str, variant: str = "default") -> tuple[Question, ...] | str:
    """A set's questions, read without images from `$DATA_ROOT/<folder>/` or `<folder>_annotations/`, or why not.

    `variant` is one that the manifest lists.
    """
    return _questions(name, str(paths.data_root()), variant)


@cache
def _questions(name: str, root: str, variant: str) -> tuple[Question, ...] | str:
    manifest = manifests.load(name)
    folder = manifests.folder_of(manifest)
    if not folder.is_dir():  # a folder that holds the annotation files alone
        folder = folder.with_name(f"{manifest.folder}_annotations")
    if not folder.is_dir():
        return f"no folder {manifest.folder}/ in DATA_ROOT"
    settings = {} if variant == "default" else variant_settings(manifest.reader, variant)
    reader = import_module(f"amif_lib.data.readers.{manifest.reader}")
    try:
        return tuple(reader.read(folder, manifest.layout, images=False, **settings))
    except InputError as error:
        return str(error)


def test_counts() -> pd.DataFrame:
    """Test questions per set and definition of closed: `data_set, variant, definition, total, open, closed, source`."""
    return _test_counts(str(paths.data_root())).copy()


@cache
def _test_counts(root: str) -> pd.DataFrame:
    rows = []
    for name in SETS:
        manifest = manifests.load(name)
        recorded = next(split for split in manifest.splits if split.name == "test")
        others = [v for v in manifest.variants if v.test not in (None, recorded.questions) and name != "slake"]
        for variant, total in [("all", recorded.questions), *((v.name, v.test) for v in others)]:
            found = questions(name, "default" if variant == "all" else variant)
            if isinstance(found, str):
                known = (
                    {d: getattr(recorded, field) for d, field in DEFINITIONS.items()}
                    if variant == "all"
                    else {"": None}
                )
                source = f"{FROM_MANIFEST} ({found})"
            else:
                test, source = [q for q in found if q.split == "test"], FROM_FILES
                known = {d: sum(getattr(q, field) for q in test) for d, field in DEFINITIONS.items()}
                total = len(test)
            for definition, closed in known.items():
                recorded_closed = getattr(recorded, DEFINITIONS.get(definition, "questions"))
                if variant == "all" and (total, closed) != (recorded.questions, recorded_closed):
                    source = f"{FROM_FILES}, unlike the manifest's {recorded_closed} closed of {recorded.questions}"
                rows.append(
                    (name, variant, definition, total, total - closed if closed is not None else None, closed, source)
                )
    frame = pd.DataFrame(rows, columns=["data_set", "variant", "definition", "total", "open", "closed", "source"])
    return frame.astype({"total": "Int64", "open": "Int64", "closed": "Int64"})


def test_size(name: str, split: str = "overall", definition: str = "yes_no") -> int:
    """Test questions of a set (default files), all or by one definition of open and closed."""
    return _sizes(str(paths.data_root()))[name, "total" if split == "overall" else split, definition]


@cache
def _sizes(root: str) -> dict[tuple[str, str, str], int]:
    whole = _test_counts(root).query("variant == 'all'").to_dict("records")
    return {(r["data_set"], k, r["definition"]): int(r[k]) for r in whole for k in ("total", "open", "closed")}
