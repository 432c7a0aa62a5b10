"""What the paper audit reads: the printed numbers, and counts of questions.

Questions are counted in the annotation files, if `DATA_ROOT` has them, else in the manifests; lines state which.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.load import variant_settings
from amif_lib.data.records import Question
from amif_lib.experiments import stored
from amif_lib.scoring.protocols import DEFINITIONS

SETS = ("vqa_rad", "slake", "pathvqa", "vqa_med_2019")
TABLES = ("table1", "table2", "table3", "table4", "table5")
OURS = "AMiF"
FROM_FILES, FROM_MANIFEST = "annotation files", "manifest"


@cache
def cells() -> pd.DataFrame:
    """Every published accuracy: `table, row, label, dataset, split, value, hundredths` (printed value times 100)."""
    frame = pd.concat([stored.published(table).assign(table=table) for table in TABLES], ignore_index=True)
    frame["hundredths"] = (100 * frame["value"]).round().astype(int)
    return frame[["table", "row", "label", "dataset", "split", "value", "hundredths"]]


@cache
def _printed() -> dict[tuple[str, str, str], int]:
    return {(f"{c.table}:{c.row}", c.dataset, c.split): int(c.hundredths) for c in cells().itertuples()}


def hundredths(cell: str, dataset: str, split: str = "overall") -> int | None:
    """The printed value, times 100, of a cell such as `table4:6`; None where the paper prints none."""
    return _printed().get((cell, dataset, split))


def points(cell: str, dataset: str, split: str = "overall") -> float:
    """A cell in percent; for `avg`, the exact mean of the row's cells. InputError if the paper prints no such cell."""
    names = SETS if dataset == "avg" else (dataset,)
    values = [hundredths(cell, name, split) for name in names]
    if None in values:
        raise InputError(f"{paths.shown(paths.published())}: no cell {cell} of {dataset}, {split}; name a printed one")
    return sum(values) / 100 / len(names)


# --- the annotation files ---


@cache
def questions(name: str, variant: str = "default") -> tuple[Question, ...] | str:
    """A set's questions from `$DATA_ROOT/<folder>/` or `<folder>_annotations/`, or a text that says why there are none.

    `variant` is one that the manifest lists.
    """
    manifest = manifests.load(name)
    folder = manifests.folder_of(manifest)
    if not folder.is_dir():  # a folder that holds the annotation files alone
        folder = folder.with_name(f"{manifest.folder}_annotations")
    if not folder.is_dir():
        return f"no folder {manifest.folder}/ in DATA_ROOT"
    settings = {} if variant == "default" else variant_settings(manifest.reader, variant)
    reader = import_module(f"amif_lib.data.readers.{manifest.reader}")
    try:
        return tuple(reader.read(folder, manifest.layout, **settings))
    except InputError as error:
        return str(error)


@cache
def test_counts() -> pd.DataFrame:
    """Test questions per set and definition of closed: `data_set, variant, definition, total, open, closed, source`.

    The variant `all` is the set's default; others are those with another number of test questions.
    """
    rows = []
    for name in SETS:
        manifest = manifests.load(name)
        recorded = next(split for split in manifest.splits if split.name == "test")
        closed = {definition: getattr(recorded, field) for definition, field in DEFINITIONS.items()}
        others = [v for v in manifest.variants if v.test not in (None, recorded.questions) and name != "slake"]
        known = {"all": (recorded.questions, closed)} | {v.name: (v.test, {"": None}) for v in others}
        for variant, (total, closed_by) in known.items():
            found = questions(name, "default" if variant == "all" else variant)
            source = f"{FROM_MANIFEST} ({found})"
            if not isinstance(found, str):
                test = [q for q in found if q.split == "test"]
                counted = {d: sum(getattr(q, field) for q in test) for d, field in DEFINITIONS.items()}
                unlike = variant == "all" and (len(test), counted) != (total, closed_by)
                source = FROM_FILES + ", unlike the manifest's counts" * unlike
                total, closed_by = len(test), counted
            for definition, number in closed_by.items():
                opened = None if number is None else total - number
                rows.append((name, variant, definition, total, opened, number, source))
    frame = pd.DataFrame(rows, columns=["data_set", "variant", "definition", "total", "open", "closed", "source"])
    return frame.astype({"total": "Int64", "open": "Int64", "closed": "Int64"})


@cache
def test_size(name: str, split: str = "overall", definition: str = "yes_no") -> int:
    """Test questions of a set (default files), all or by one definition of open and closed."""
    line = test_counts().query("variant == 'all' and data_set == @name and definition == @definition")
    return int(line["total" if split == "overall" else split].iloc[0])
