"""Parquet shards of encoded images: written as a stream, read back, and indexed for a memory map.

The layout is that of Hugging Face `datasets`, which opens the files as they are. Image columns are stored plain (no
compression, no dictionary), so each image's file content lies in one piece in the shard and is found by its offset.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import encoding, images, sources

VERSION = 1  # of what is stored and how; raised with every change of it
SIZE, GROUP = 4096, 128  # images per file, and per row group: what is held in memory while writing
PLAIN = ("image.bytes", "mask.bytes")
COLUMNS = {
    "image_id": "string",
    "view": "string",
    "image": "image",
    "mask": "image",
    "grey": "bool",
    "width": "int32",
    "height": "int32",
    "original_width": "int32",
    "original_height": "int32",
    "sha256": "string",  # of the source file
    "mask_sha256": "string",
}


@dataclass(frozen=True)
class Entry:
    """An image to prepare, with its region mask where the set has one."""

    image_id: str
    path: Path
    view: str
    mask: Path | None

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.path, self.mask) if path]


def schema() -> pa.Schema:
    """Columns of a shard, with the metadata that tells `datasets` which of them are images."""
    import datasets

    kinds = {key: datasets.Image() if kind == "image" else datasets.Value(kind) for key, kind in COLUMNS.items()}
    return datasets.Features(kinds).arrow_schema


def write(path: Path, layout: pa.Schema, root: Path, short_side: int, entries: Sequence[Entry], bar: Any) -> None:
    """Encode images into one shard, which appears when it is whole; one that is there for these very files is kept.

    Args:
        path: of the shard.
        layout: `schema()`.
        root: the data set's folder, to which the file names of bad images are relative.
        short_side: of the stored images, pixels.
        entries: the images, in order.
        bar: a progress bar that is moved on by one an image.
    """
    key = _key(root, short_side, entries)
    if path.is_file() and notes(path).get("key") == key:
        bar.step(len(entries))
        return
    part = path.with_suffix(".part")
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    others = [column for column, kind in COLUMNS.items() if kind != "image"]
    try:
        with pq.ParquetWriter(
            part,
            layout,
            compression=dict.fromkeys(others, "zstd") | dict.fromkeys(PLAIN, "none"),
            use_dictionary=others,
            write_statistics=others,
        ) as writer:
            for row in sources.in_order(lambda entry: _row(entry, root, short_side), entries):
                (left_out if "reason" in row else rows).append(row)
                if len(rows) == GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, layout))
                    rows.clear()
                bar.step()
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, layout))
            writer.add_key_value_metadata({"amif": json.dumps({"key": key, "left_out": left_out})})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _row(entry: Entry, root: Path, short_side: int) -> dict[str, Any]:
    """A row of a shard, or, with the key `reason`, of the quarantine."""
    row: dict[str, Any] = {"image_id": entry.image_id, "sha256": "", "mask_sha256": ""}
    try:
        data = entry.path.read_bytes()
        row["sha256"] = sources.sha256(data)
        mask = entry.mask.read_bytes() if entry.mask else None
        row["mask_sha256"] = sources.sha256(mask) if mask is not None else ""
        made = encoding.encode(data, short_side)
        row["mask"] = {"bytes": encoding.encode_mask(mask, made.size)} if mask is not None else None
    except (OSError, images.UnreadableImage) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        return row | {"file": Path(os.path.relpath(entry.path, root)).as_posix(), "reason": reason}
    (width, height), (before, high) = made.size, made.original
    sizes = {"width": width, "height": height, "original_width": before, "original_height": high}
    return row | {"view": entry.view, "image": {"bytes": made.data}, "grey": made.grey, **sizes}


def _key(root: Path, short_side: int, entries: Sequence[Entry]) -> str:
    """What an unfinished preparation goes by: settings, and name, size and time of change of every file."""
    lines = [f"{VERSION} {short_side} {encoding.QUALITY} {root}"]
    for entry in entries:
        lines.append(f"{entry.image_id} {entry.view}")
        for path in entry.files:
            stat = path.stat() if path.exists() else None
            lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns}" if stat else f"{path} missing")
    return sources.sha256("\n".join(lines).encode())


def notes(path: Path) -> dict[str, Any]:
    """What a shard says of itself: `key`, and `left_out`, the images that could not be decoded; {} if it is no shard."""
    try:
        return json.loads(pq.read_metadata(path).metadata[b"amif"])
    except (OSError, KeyError, TypeError, ValueError):  # not one of ours, or cut off
        return {}


def hashes(files: Sequence[Path]) -> Iterator[dict[str, str]]:
    """`image_id, sha256, mask_sha256` of every image in the shards."""
    for path in files:
        yield from pq.read_table(path, columns=["image_id", "sha256", "mask_sha256"]).to_pylist()


def index(path: Path, number: int) -> pa.Table:
    """Where in the shard each image's bytes lie: `image_id, shard, start, bytes, grey`.

    Every image is read back and compared with what lies there; a difference raises InputError.
    """
    found: dict[str, list[Any]] = {"image_id": [], "start": [], "bytes": [], "grey": []}
    with pq.ParquetFile(path) as shard, path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        leaves = [shard.schema.column(i).path for i in range(len(shard.schema))]
        for group in range(shard.num_row_groups):
            chunk = shard.metadata.row_group(group).column(leaves.index(PLAIN[0]))
            at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
            table = shard.read_row_group(group, columns=["image_id", "image", "grey"])
            for image in table["image"]:
                data = image["bytes"].as_py()
                prefix = len(data).to_bytes(4, "little")  # Parquet's plain encoding: the length, then the bytes
                at = content.find(prefix + data, at, end) + len(prefix)
                if at < len(prefix):
                    raise InputError(f"{paths.shown(path)}: was not written as it should be; delete it and try again")
                found["start"].append(at)
                found["bytes"].append(len(data))
                at += len(data)
            found["image_id"] += table["image_id"].to_pylist()
            found["grey"] += table["grey"].to_pylist()
        content.close()
    kinds = {"image_id": pa.string(), "start": pa.int64(), "bytes": pa.int64(), "grey": pa.bool_()}
    columns = {key: pa.array(values, kinds[key]) for key, values in found.items()}
    return pa.table(columns | {"shard": pa.array([number] * len(found["start"]), pa.int64())})
