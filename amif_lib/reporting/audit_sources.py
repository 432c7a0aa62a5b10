"""What the paper audit reads: the published numbers, and the annotation files or what the manifests record of them.

Published numbers lie in `results/paper/` and nowhere else. Questions are counted in the annotation files where
`DATA_ROOT` has them (no image is needed), else the manifests' counts are used, and every line says which.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.load import variant_settings
from amif_lib.data.records import Question
from amif_lib.scoring import leaks

SETS = ("vqa_rad", "slake", "pathvqa", "vqa_med_2019")
TABLES = ("table1", "table2", "table3", "table4", "table5")
OURS = "AMiF"
SIZES = {"table1": (15, 100), "table2": (8, 40), "table3": (5, 25), "table4": (6, 30), "table5": (6, 30)}  # rows, cells
CELL_COLUMNS = ("row", "label", "dataset", "split", "value")
DEFINITIONS = {"answer_type": "closed_field", "yes_no": "closed_yes_no"}  # definition -> field of a question
FROM_FILES, FROM_MANIFEST = "annotation files", "manifest"


# --- the published numbers ---


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The records of a CSV file as texts, each with its `line` in the file. Raises InputError naming file and line."""
    name = paths.shown(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            if lacking := [column for column in columns if column not in head]:
                raise InputError(f"{name}: line 1: column {lacking[0]} is missing; restore the file")
            out = []
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(head):
                    raise InputError(
                        f"{name}: line {reader.line_num}: {len(fields)} fields, expected {len(head)}; restore the file"
                    )
                out.append({**dict(zip(head, fields, strict=True)), "line": str(reader.line_num)})
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; restore it with git checkout") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 ({error.reason}); restore the file") from None
    except csv.Error as error:
        raise InputError(f"{name}: line {reader.line_num}: {error}; restore the file") from None
    return out


def cells() -> pd.DataFrame:
    """Every published accuracy: `table, row, label, dataset, split, value, hundredths` (printed value times 100).

    Raises InputError, naming file and line, for a cell that is not a percentage with two decimals at most, a line that
    occurs twice, a number that a row lacks, and a table with too few rows.
    """
    return _cells()[0].copy()


def version() -> tuple[tuple[Path, int], ...]:
    """The files of published numbers with their times of change: equal where a result computed before still holds."""
    files = [paths.published() / f"{table}.csv" for table in TABLES]
    return tuple((file, file.stat().st_mtime_ns if file.is_file() else 0) for file in files)


def _cells() -> tuple[pd.DataFrame, dict[tuple[str, ...], int]]:
    """The cells as a table, and by (`table:row`, data set, split)."""
    return _read_cells(version())


@lru_cache(maxsize=4)
def _read_cells(files: tuple[tuple[Path, int], ...]) -> tuple[pd.DataFrame, dict[tuple[str, ...], int]]:
    rows: list[dict[str, object]] = []
    for table, (path, _) in zip(TABLES, files, strict=True):
        name, seen = paths.shown(path), {}
        for record in read_csv(path, CELL_COLUMNS):
            key, where = (record["row"], record["dataset"], record["split"]), f"{name}: line {record['line']}"
            if key[1] not in (*SETS, "avg") or key[2] not in ("open", "closed", "overall"):
                raise InputError(f"{where}: unknown dataset or split {key[1]!r}, {key[2]!r}; restore the file")
            if key in seen:
                raise InputError(f"{where}: repeats line {seen[key]}; restore the file")
            seen[key] = record["line"]
            rows.append(
                {"table": table, **dict(zip(CELL_COLUMNS, map(record.get, CELL_COLUMNS), strict=True))}
                | {"hundredths": _hundredths(record["value"], where)}
            )
        _check_complete(table, name, seen)
    frame = pd.DataFrame(rows)
    by_cell = {(f"{r.table}:{r.row}", r.dataset, r.split): int(r.hundredths) for r in frame.itertuples()}
    return frame.assign(value=frame["hundredths"] / 100), by_cell


def _hundredths(text: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,2})?", text.strip()) or float(text) > 100:
        raise InputError(f"{where}: value {text!r} is not a percentage with two decimals at most; restore the file")
    return round(100 * float(text))


def _check_complete(table: str, name: str, seen: dict[tuple[str, str, str], str]) -> None:
    rows = dict.fromkeys(row for row, _, _ in seen)
    for row in rows:
        last = max(int(line) for key, line in seen.items() if key[0] == row)
        have = {key[1:] for key in seen if key[0] == row}
        wanted = {(dataset, "overall") for dataset in ((*SETS, "avg") if table != "table1" else {d for d, _ in have})}
        halves = {d for d, split in have if split != "overall"}  # open and closed are printed together, or neither
        if row == OURS:
            wanted, halves = {(d, "overall") for d in SETS}, set(SETS[:3])
        wanted |= {(d, split) for d in halves for split in ("open", "closed")}
        if lacking := sorted(wanted - have):
            raise InputError(
                f"{name}: line {last}: row {row!r}, which ends here, lacks {' '.join(lacking[0])}; restore the file"
            )
    last = max(map(int, seen.values()), default=1)
    for found, wanted, what in zip((len(rows), len(seen)), SIZES[table], ("rows", "numbers"), strict=True):
        if found != wanted:
            raise InputError(
                f"{name}: line {last}: {found} {what} up to here, the paper has {wanted}; restore the file"
            )


def hundredths(cell: str, dataset: str, split: str = "overall") -> int | None:
    """The printed value, times 100, of a cell such as `table4:6`; None where the paper prints none."""
    return _cells()[1].get((cell, dataset, split))


# --- the annotation files ---


@cache
def _questions(name: str, root: str, variant: str = "default") -> tuple[Question, ...] | str:
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


def questions(name: str, variant: str = "default") -> tuple[Question, ...] | str:
    """A set's questions, read without images from `$DATA_ROOT/<folder>/` or `<folder>_annotations/`, or why there are none.

    `variant` is one that the manifest lists.
    """
    return _questions(name, str(paths.data_root()), variant)


def _tested(name: str, variant: str = "default") -> tuple[list[Question] | None, str]:
    found = questions(name, variant)
    if isinstance(found, str):
        return None, f"{FROM_MANIFEST} ({found})"
    return [q for q in found if q.split == "test"], FROM_FILES


def test_counts() -> pd.DataFrame:
    """Test questions per set and definition of closed: `data_set, variant, definition, total, open, closed, source`.

    `source` says whether the line was counted in the annotation files or comes from the manifest, and why.
    """
    return _test_counts(str(paths.data_root())).copy()


@cache
def _test_counts(root: str) -> pd.DataFrame:
    rows = []
    for name in SETS:
        manifest = manifests.load(name)
        recorded = next(split for split in manifest.splits if split.name == "test")
        test, source = _tested(name)
        total = recorded.questions if test is None else len(test)
        for definition, field in DEFINITIONS.items():
            expected = getattr(recorded, field)
            closed = expected if test is None else sum(getattr(q, field) for q in test)
            if (total, closed) != (recorded.questions, expected):
                source = f"{FROM_FILES}, unlike the manifest's {expected} closed of {recorded.questions}"
            rows.append((name, "all", definition, total, total - closed, closed, source))
        for variant in manifest.variants:  # other test sets from the same files
            if variant.test and variant.test != recorded.questions and name != "slake":
                part, where = _tested(name, variant.name)
                if part is None:
                    rows.append((name, variant.name, "", variant.test, None, None, where))
                    continue
                for definition, field in DEFINITIONS.items():
                    closed = sum(getattr(q, field) for q in part)
                    rows.append((name, variant.name, definition, len(part), len(part) - closed, closed, where))
    frame = pd.DataFrame(rows, columns=["data_set", "variant", "definition", "total", "open", "closed", "source"])
    return frame.astype({"total": "Int64", "open": "Int64", "closed": "Int64"})


def test_size(name: str, split: str = "overall", definition: str = "yes_no") -> int:
    """Test questions of a set (default files), all or by one definition of open and closed."""
    return _sizes(str(paths.data_root()))[name, "total" if split == "overall" else split, definition]


@cache
def _sizes(root: str) -> dict[tuple[str, str, str], int]:
    whole = _test_counts(root).query("variant == 'all'").to_dict("records")
    return {(r["data_set"], k, r["definition"]): int(r[k]) for r in whole for k in ("total", "open", "closed")}


def leak_report() -> tuple[pd.DataFrame, list[str]]:
    """`leaks.lines` for every set whose files are there, and a note, from the manifest, for each that is not."""
    table, notes = _leak_report(str(paths.data_root()))
    return table.copy(), list(notes)


@cache
def _leak_report(root: str) -> tuple[pd.DataFrame, list[str]]:
    frames, notes = [], []
    for name in SETS:
        manifest, found = manifests.load(name), questions(name)
        if isinstance(found, str):
            known = [line for line in manifest.evidence.verified if "test questions" in line]
            notes += [
                f"{manifest.title}, from the manifest ({found}): {line}." for line in known or ["nothing recorded"]
            ]
            continue
        for variant in [variant.name for variant in manifest.variants] or ["default"]:
            part = questions(name, variant)
            if isinstance(part, str):
                notes.append(f"{manifest.title}, {variant}: not measured ({part}).")
            else:
                frames.append(leaks.lines(part, name, variant))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(leaks.COLUMNS)), notes
