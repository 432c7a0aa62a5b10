"""A file that a user brings, as a table: CSV, TSV, JSON or JSON lines, whose columns are told by names in common use.

A layout is a row of names (`prediction_files.COLUMNS`, `question_files.COLUMNS`); what was read as what is reported.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError

SPLITS = {
    "train": ("train", "training", "trainset", "freeform", "para", "frame"),
    "val": ("val", "valid", "validate", "validation", "valset", "dev"),
    "test": ("test", "testing", "testset", "test_freeform", "test_para", "test_frame"),
}


def read(path: Path | str) -> pd.DataFrame:
    """One row per record, column names in lower case, cells as they stand in the file.

    The index says where a record is: `x.csv, line 8` or `x.json, record 2`. A field that a record lacks is NaN, one
    that is null (or NaN) in the file is None. JSON may hold a list of records, an object with one such list, one list
    per split (which becomes the column `split`), or an object from question id to answer.
    Raises InputError, naming file and line: unreadable, cut off, no records, ragged or doubled columns.
    """
    path, shown = Path(path), paths.shown(Path(path))
    kind = path.suffix.lower()
    if path.is_file() and kind not in (".csv", ".tsv", ".json", ".jsonl"):
        raise InputError(f"{shown}: give a .csv, .tsv, .json or .jsonl file")
    text = read_text(path)
    if kind == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        records = {f"{shown}, line {n}": read_json(line, path, n) for n, line in lines if line.strip()}
    elif kind == ".json":
        records = {f"{shown}, record {n}": record for n, record in enumerate(_records(read_json(text, path), shown), 1)}
    else:
        records = dict(_rows(text, "\t" if kind == ".tsv" else ",", shown))
    if not records:
        raise InputError(f"{shown}: no records; give a file with one record per question")
    for place, record in records.items():
        if not isinstance(record, dict):
            raise InputError(f"{place}: not an object with named fields; bring it into that form")
    plain = [{str(name).strip().lower(): cell for name, cell in record.items()} for record in records.values()]
    return pd.DataFrame(plain, index=list(records), dtype=object)


def each(table: pd.DataFrame, function: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """`function` of every record; a ValueError becomes an InputError with the record's place."""
    out = []
    for place, record in zip(table.index, table.to_dict("records"), strict=True):
        try:
            out.append(function(record))
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
    return out


def name_columns(
    table: pd.DataFrame, known: Mapping[str, tuple[str, ...]], required: tuple[str, ...], path: Path | str
) -> dict[str, str]:
    """Which column holds what: of each field's known names the first that is there. InputError if a required is not."""
    found = {field: name for field, names in known.items() if (name := next((n for n in names if n in table), ""))}
    for field in required:
        if field not in found:
            raise InputError(
                f"{paths.shown(Path(path))}: no column for the {field} (known names: {', '.join(known[field])}); its "
                f"columns are {', '.join(sorted(table))}; rename one"
            )
    return found


def is_text(value: object) -> bool:
    """Whether a cell is a text or a number (NaN and truth values excepted)."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


def split_of(text: object) -> str:
    """`train`, `val` or `test` of what files call them, else an empty text."""
    word = str(text).strip().lower()
    return next((split for split, known in SPLITS.items() if word in known), "")


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{paths.shown(path)}: not UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{paths.shown(path)}: cannot be read ({error.strerror}); name a file that is there") from None


def read_json(text: str, path: Path, line: int = 0) -> Any:
    """JSON whose objects have no name twice; NaN and Infinity are null. `line` is that of JSON lines."""
    where = f"{paths.shown(path)}, line {line}" if line else paths.shown(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # json keeps the last of equal names, and says nothing
        names = pd.Index([name for name, _ in pairs])
        if names.has_duplicates:
            raise InputError(f"{where}: {names[names.duplicated()][0]!r} occurs twice in an object; keep one")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=lambda name: None)
    except json.JSONDecodeError as error:
        where = where if line else f"{where}, line {error.lineno}"
        raise InputError(
            f"{where}: not valid JSON ({error.msg}), perhaps cut off; mend it (JSON lines: .jsonl)"
        ) from None
    except InputError:
        raise
    except (RecursionError, ValueError):  # a number of thousands of digits is a plain ValueError
        raise InputError(f"{where}: nested too deeply or a number too long; mend the file") from None


def _records(content: Any, shown: str) -> list[Any]:
    """The records of a JSON file."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise InputError(f"{shown}: must hold a list of records, or an object from question id to answer")
    lists = {
        key: part for key, part in content.items() if isinstance(part, list) and part and isinstance(part[0], dict)
    }
    if lists and all(map(split_of, lists)):
        return [{"split": key} | record for key, part in lists.items() for record in part]
    if len(lists) > 1:
        raise InputError(
            f"{shown}: holds the lists {', '.join(lists)}; give one list of records, or one list per split"
        )
    return next(iter(lists.values()), None) or [{"question_id": key, "answer": value} for key, value in content.items()]


def _rows(text: str, delimiter: str, shown: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Place and cells by name of each line of a CSV file, in which a cell may hold line ends."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            place = f"{shown}, line {reader.line_num}"
            if not header:
                header = [name.strip().lower() for name in cells]
                if doubled := [name for n, name in enumerate(header) if name in header[:n]]:
                    raise InputError(f"{place}: the header names {doubled[0]!r} twice; rename one column")
            elif cells and len(cells) != len(header):
                raise InputError(
                    f"{place}: not {len(header)} cells as in the header; put answers with commas in quotes"
                )
            elif cells:  # else a blank line
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        place = f"{shown}, line {reader.line_num}"
        raise InputError(f"{place}: not valid CSV ({error}), perhaps cut off; mend it") from None
