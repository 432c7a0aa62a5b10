"""Reads a user's file as a table, whatever tool wrote it.

Known names of columns are listed in `COLUMNS` of prediction_files and question_files.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import decode, parse_json, read_bytes


def read(path: Path | str) -> pd.DataFrame:
    """One row per record, column names in lower case, cells as they stand in the file.

    CSV (commas, semicolons or tabs), JSON, JSON lines, parquet and xlsx are recognised by their content. JSON may hold
    a list of records, an object with one such list, pandas' column-wise form, or an object from question id to answer
    or record. The index is a record's place: `x.csv, line 8` or `x.json, record 2`. A field that a record lacks is NaN,
    one that is null (or NaN) in the file is None. Raises InputError, naming file and line, for a file that cannot be
    read or is cut off, has no records, unequal rows or a column twice, or is a pickle.
    """
    path, shown = Path(path), paths.shown(Path(path))
    raw = read_bytes(path, "name a file that is there")
    if path.suffix.lower() in (".pkl", ".pickle", ".pt") or raw[:1] == b"\x80":
        raise InputError(f"{shown}: a pickle may run code when it is opened; save it as CSV, JSON or parquet")
    if raw[:4] == b"PAR1" or raw[:2] == b"PK":
        records = _numbered(_binary(raw, shown), shown)
    else:
        text = decode(raw, shown)
        as_json = text.lstrip()[:1] in ("{", "[") or path.suffix.lower() in (".json", ".jsonl")
        records = _json(text, shown) if as_json else _rows(text, shown)
    if not records:
        raise InputError(f"{shown}: no records; give a file with one record per question")
    for place, record in records.items():
        if not isinstance(record, dict):
            raise InputError(f"{place}: not an object with named fields; write each record as one")
    table = pd.DataFrame([_flat(record) for record in records.values()], index=list(records), dtype=object)
    return table.drop(columns=[name for name in table if not name or name.startswith("unnamed: ")])  # pandas' index


def each(table: pd.DataFrame, function: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """`function` of every record; a ValueError becomes an InputError with the record's place."""
    out = []
    for place, record in zip(table.index, table.to_dict("records"), strict=True):
        try:
            out.append(function(record))
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
    return out


def name_columns(table: pd.DataFrame, known: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The column of each field: the first of its known names that the table has."""
    return {field: name for field, names in known.items() if (name := next((n for n in names if n in table), ""))}


def lacking(
    field: str, table: pd.DataFrame, known: Mapping[str, Sequence[str]], shown: str, fix: str = ""
) -> InputError:
    """The error for a field that no column holds; `fix` is what helps besides renaming one."""
    said = f"no column for the {field} (known names: {', '.join(known[field])}); its columns are "
    return InputError(f"{shown}: {said}{', '.join(sorted(table))}; rename one{fix}")


def is_text(value: object) -> bool:
    """Whether a cell is a text or a number (NaN and truth values excepted)."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


def whole(value: object) -> str:
    """A cell as text, whole numbers without the `.0` that pandas gives them: 2.0 and "2.0" are `2`."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())


def image_parts(name: str) -> tuple[str, ...]:
    """The parts of an image's path, without drive and extension: `C:\\a\\b.JPG` and `./a/b.jpg` -> (a, b)."""
    plain = re.sub(r"^[A-Za-z]:", "", name.strip().replace("\\", "/"))
    plain = re.sub(r"\.(jpe?g|png|gif|bmp|tiff?|webp|dcm)$", "", plain, flags=re.IGNORECASE)
    return tuple(part for part in plain.split("/") if part not in ("", ".")) or (plain,)


def image_names(*groups: Iterable[str]) -> tuple[list[list[str]], str]:
    """Names of images that can be compared between groups, and a note on how they were made ("" if unchanged).

    A name is the last parts of a path, without extension: as few as distinguish the images of each group.
    """
    parts = [list(map(image_parts, group)) for group in groups]
    most = max((len(name) for group in parts for name in group), default=1)
    k = max(range(1, most + 1), key=lambda k: sum(len({name[-k:] for name in group}) for group in parts))  # the first
    folders = sorted({"/".join(name[:-k]) or "none" for group in parts for name in group})
    said = f"images compared by the last {k} part(s) of their path, since folders differ ({', '.join(folders[:3])})"
    return [["/".join(name[-k:]) for name in group] for group in parts], said * (len(folders) > 1)


# --- formats ---------------------------------------------------------------------------------------------------------


def _numbered(records: Iterable[Any], shown: str) -> dict[str, Any]:
    return {f"{shown}, record {n}": record for n, record in enumerate(records, 1)}


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with names in lower case; what is nested in `doc`, `input` or `output` becomes `doc.answer` etc."""
    plain = {str(name).strip().lower(): cell for name, cell in record.items()}
    for name in ("doc", "input", "output"):
        if isinstance(plain.get(name), dict):
            plain |= {f"{name}.{key}".lower(): cell for key, cell in plain.pop(name).items()}
    return plain


def _binary(raw: bytes, shown: str) -> list[dict[str, Any]]:
    """The records of a parquet or Excel file."""
    try:
        if raw[:2] == b"PK":
            return pd.read_excel(io.BytesIO(raw), dtype=object, keep_default_na=False).to_dict("records")
        import pyarrow.parquet

        return pyarrow.parquet.read_table(io.BytesIO(raw)).to_pylist()
    except Exception as error:  # what the two libraries raise for a broken file has no common class
        raise InputError(f"{shown}: cannot be read ({str(error).splitlines()[0]}); save it again") from None


def _json(text: str, shown: str) -> dict[str, Any]:
    """The records of JSON or JSON lines by place; the content decides which of the two it is."""
    lines = {f"{shown}, line {n}": line for n, line in enumerate(text.split("\n"), start=1) if line.strip()}
    first = next(iter(lines.values()), "").strip()
    if (len(lines) > 1 or shown.lower().endswith(".jsonl")) and first.startswith("{") and first.endswith("}"):
        return {place: parse_json(line, place) for place, line in lines.items()}
    return _numbered(_records(parse_json(text, shown), shown), shown) if lines else {}


def _records(content: Any, shown: str) -> list[Any]:
    """The records of a JSON file."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise InputError(f"{shown}: must hold a list of records, or an object from question id to answer")
    lists = {key: part for key, part in content.items() if isinstance(part, list) and isinstance((*part, 0)[0], dict)}
    if len(lists) > 1:
        raise InputError(f"{shown}: holds the lists {', '.join(lists)}; give one list of records")
    if lists:
        return next(iter(lists.values()))
    nested = all(isinstance(value, dict) for value in content.values())
    if nested and {"answer", "prediction", "pred", "response", "question"} & {key.lower() for key in content}:
        return pd.DataFrame(content, dtype=object).to_dict("records")  # pandas' column-wise form
    return [{"question_id": key} | (value if nested else {"answer": value}) for key, value in content.items()]


def _rows(text: str, shown: str) -> dict[str, dict[str, str]]:
    """The cells of a CSV file by name, by the place of their line; a cell may contain line breaks."""
    first, _, rest = text.partition("\n")
    separator = re.fullmatch(r'"?sep=(.)"?\s*', first)  # a line that Excel writes
    delimiter = separator[1] if separator else max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(rest if separator else text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(f"{shown}, line {reader.line_num + bool(separator)}", cells) for cells in reader if cells]
    except csv.Error as error:
        place = f"{shown}, line {reader.line_num + bool(separator)}"
        raise InputError(f"{place}: not valid CSV ({error}), perhaps cut off; mend it") from None
    header = [name.strip().lower() for name in lines[0][1]] if lines else []
    if doubled := [name for n, name in enumerate(header) if name in header[:n]]:
        raise InputError(f"{shown}: the header names {doubled[0]!r} twice; rename one column")
    for place, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{place}: not {len(header)} cells as in the header; quote cells with {delimiter!r}")
    return {place: dict(zip(header, cells, strict=True)) for place, cells in lines[1:]}
