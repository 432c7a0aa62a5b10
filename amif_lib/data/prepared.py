"""Data sets as training reads them: images at training size in Parquet shards, encoded once, beside the data.

    $DATA_ROOT/.amif/prepared/<set>/<digest>/
        images-00000.parquet …   per image: id, view, file content, region mask where the set has one, sizes
        index.parquet            where in its shard each image's bytes lie
        records-<digest>.parquet the reader's records (texts or questions, splits, groups), one file per reader's settings
        quarantine.csv           images that cannot be decoded, and why
        prepared.json            settings, counts, versions; written last

The digest covers the manifest, the settings and the content of every source file, so what is there is right and is made
again only when something changed. Image columns are stored plain: an image's bytes lie in one piece in the
memory-mapped file, any number of processes share them, and any Parquet reader opens them (`as_dataset`).
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import mmap
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from amif_lib.core import files, paths, progress
from amif_lib.core.errors import InputError
from amif_lib.core.files import exclusive
from amif_lib.data import encoding, images, manifests, shards, sources
from amif_lib.data.records import Question, Study
from amif_lib.data.shards import Entry

log = logging.getLogger(__name__)

BATCH = 10_000  # records written at a time
Records = TypeVar("Records", Study, Question)


@dataclass(frozen=True)
class PreparedSet:
    """A prepared data set: its folder, how many images it holds, and those left out with the reason, by image id."""

    name: str
    folder: Path
    count: int
    left_out: dict[str, str]


_made: dict[tuple[str, str, int], PreparedSet] = {}  # what this process has found or made


def usable(name: str, short_side: int, records: Sequence[Records], most_bad: float = 0.01) -> list[Records]:
    """The records whose images could be prepared (now, if need be); a study loses its bad images, or is left out.

    Raises:
        InputError: more than the share `most_bad` of the images is bad, or the image of a test question is; the folder
            cannot be written. Names the folder or the list of bad images, never an image.
    """
    found = ensure(name, short_side, records)
    bad = found.left_out
    if not bad:
        return list(records)
    total, listed = found.count + len(bad), paths.shown(found.folder / "quarantine.csv")
    said = f"data set {name}: {len(bad)} of {total} images cannot be decoded ({100 * len(bad) / total:.2g} %)"
    if len(bad) > most_bad * total:
        raise InputError(
            f"{said}, more than data.most_bad_images: {most_bad}; fetch the images that {listed} lists again, or raise it"
        )
    kept: list[Records] = []
    for record in records:
        if isinstance(record, Study):
            whole = tuple(picture for picture in record.images if picture.image_id not in bad)
            kept += [replace(record, images=whole)] if whole else []
        elif record.image_id not in bad:
            kept.append(record)
        elif record.split != "train":  # what is evaluated on is whole or not at all
            raise InputError(f"{said}, one of a {record.split} question; fetch the images that {listed} lists again")
    log.info("%s; %d records left out with them; see %s", said, len(records) - len(kept), listed)
    return kept


def ensure(name: str, short_side: int, records: Sequence[Study] | Sequence[Question] | None = None) -> PreparedSet:
    """The prepared data set, made now where it is absent or something changed.

    Args:
        name: manifest name.
        short_side: of the stored images, pixels.
        records: of the reader, with the images to prepare. None: what this process found last, or, the first time, the
            reader's records by its default settings.

    Raises:
        InputError: the set's records cannot be read, or the folder cannot be written; names it.
    """
    root = manifests.location(name)
    home = manifests.derived_folder(name) / "prepared" / name
    key = (str(home), str(root), short_side)
    if records is None:
        if key in _made:
            return _made[key]
        from amif_lib.data import load as datasets

        questions = manifests.load(name).role == "questions"
        records = datasets.load_questions(name) if questions else datasets.load_studies(name)
    entries = _entries(name, root, records)
    found = _find(home, name, short_side, entries) or _make(home, name, root, short_side, entries)
    _made[key] = PreparedSet(name, found, *_read_summary(found))
    _write_records(found, records, _made[key].left_out)
    return _made[key]


def pictures(names: Sequence[str], short_side: int) -> Pictures:
    """The prepared images of several data sets, by image id."""
    return Pictures([ensure(name, short_side).folder for name in names])


class Pictures:
    """Images of prepared sets by image id, decoded when asked for. Can be forked, and pickled for worker processes."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        tables = [pq.read_table(folder / "index.parquet") for folder in self.folders]
        self.files: list[Path] = []
        self._maps: dict[int, mmap.mmap] = {}
        number = []
        for folder, table in zip(self.folders, tables, strict=True):
            number.append(table["shard"].to_numpy() + len(self.files))
            self.files += sorted(folder.glob("images-*.parquet"))
        index = pa.concat_tables(tables)
        self.shard = np.concatenate(number)
        self.start, self.bytes, self.grey = (index[key].to_numpy() for key in ("start", "bytes", "grey"))
        self.row = {image_id: row for row, image_id in enumerate(index["image_id"].to_pylist())}
        if len(self.row) != len(index):
            names = ", ".join(folder.parent.name for folder in self.folders)
            raise InputError(
                f"data.pretrain: {len(index) - len(self.row)} image ids are in two of {names}; name one of them"
            )

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.folders,)

    def __len__(self) -> int:
        return len(self.row)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.row

    def __getitem__(self, image_id: str) -> Image.Image:
        """The stored image, in mode `L` where it is grey, else `RGB`."""
        return images.decode(self.content(image_id), grey=bool(self.grey[self.row[image_id]]))

    def content(self, image_id: str) -> bytes:
        """The stored file content (JPEG or PNG). Raises InputError for an image that was not prepared."""
        try:
            row = self.row[image_id]
        except KeyError:
            names = ", ".join(paths.shown(folder) for folder in self.folders)
            raise InputError(
                f"an image of a record is not among those prepared in {names}; use the set's own records"
            ) from None
        shard = int(self.shard[row])
        if shard not in self._maps:
            with self.files[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = int(self.start[row])
        return self._maps[shard][start : start + int(self.bytes[row])]


def as_dataset(prepared: PreparedSet) -> Any:
    """The images as a Hugging Face `datasets.Dataset`, decoded when a row is looked at. Its cache stays with the data."""
    import datasets

    files = sorted(str(path) for path in prepared.folder.glob("images-*.parquet"))
    with sources.writing(prepared.folder.parent / ".arrow"):
        return datasets.Dataset.from_parquet(files, cache_dir=str(prepared.folder.parent / ".arrow"))


# --- which images, and what identifies them --------------------------------------------------------------------------


def _entries(name: str, root: Path, records: Sequence[Study] | Sequence[Question]) -> list[Entry]:
    """Every image of the records once, by id."""
    found: dict[str, tuple[Path, str]] = {}
    for record in records:
        named = (
            [(p.image_id, p.path, p.view) for p in record.images]
            if isinstance(record, Study)
            else [(record.image_id, record.image_path, "")]
        )
        for image_id, path, view in named:
            if found.setdefault(image_id, (path, view))[0] != path:
                raise InputError(f"data set {name}: two files have the image id {path.stem}; make ids unique")
    masks = {path.stem: path for path in (root / "masks").glob("*.png")}  # the phantom's
    beside = manifests.load(name).reader == "slake"

    def mask(path: Path) -> Path | None:
        own = path.with_name("mask.png")
        return masks.get(path.stem) or (own if beside and own.is_file() else None)

    return [Entry(image_id, path, view, mask(path)) for image_id, (path, view) in sorted(found.items())]


def _digest(name: str, short_side: int, entries: Sequence[Entry], hashes: dict[Path, str]) -> str:
    lines = (f"{e.image_id} {e.view} {hashes[e.path]} {hashes[e.mask] if e.mask else ''}" for e in entries)
    content = {
        "version": shards.VERSION,
        "manifest": manifests.data_digest(name),
        "short_side": short_side,
        "quality": encoding.QUALITY,
        "images": sources.sha256("\n".join(lines).encode()),
    }
    return files.digest(content)


def _find(home: Path, name: str, short_side: int, entries: Sequence[Entry]) -> Path | None:
    """The folder of exactly these images, if it was made before."""
    if not any(home.glob("*/prepared.json")):
        return None
    files = [path for entry in entries for path in entry.files]
    hashes = dict(zip(files, sources.digests(name, files), strict=True))
    folder = home / _digest(name, short_side, entries, hashes)
    return folder if (folder / "prepared.json").is_file() else None


# --- making ----------------------------------------------------------------------------------------------------------


def _make(home: Path, name: str, root: Path, short_side: int, entries: list[Entry]) -> Path:
    """Prepare the images aside and rename; shards that an interrupted preparation finished are kept."""
    with sources.writing(home), exclusive(home / ".lock", f"the preparation of {name}") as lock:
        if found := _find(home, name, short_side, entries):  # by the process that was waited for
            return found
        aside = home / (f".building-{short_side}" + ("" if lock is not None else f"-{os.getpid()}"))
        aside.mkdir(exist_ok=True)
        if not home.is_relative_to(root.parent):
            log.info("%s: prepared images go to %s (AMIF_PREPARED names another folder)", name, paths.shown(home))
        layout = shards.schema()
        bar = progress.bar(len(entries), f"{name}: preparing images at {short_side} px")
        starts = range(0, len(entries), shards.SIZE)
        files = [aside / f"images-{number:05d}.parquet" for number in range(len(starts))]
        for path, start in zip(files, starts, strict=True):
            shards.write(path, layout, root, short_side, entries[start : start + shards.SIZE], bar)
        bar.close()
        for path in aside.iterdir():
            if path not in files:
                path.unlink()
        left_out = [row for path in files for row in shards.notes(path)["left_out"]]
        index = pa.concat_tables([shards.index(path, number) for number, path in enumerate(files)])
        pq.write_table(index, aside / "index.parquet")
        with (aside / "quarantine.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, ("image_id", "file", "reason"), extrasaction="ignore", lineterminator="\n")
            rows.writeheader()
            rows.writerows(left_out)
        hashes = {row["image_id"]: row for row in (*shards.hashes(files), *left_out)}
        known = {e.path: hashes[e.image_id]["sha256"] for e in entries}
        known |= {e.mask: hashes[e.image_id]["mask_sha256"] for e in entries if e.mask}
        folder = home / _digest(name, short_side, entries, known)
        about = {
            "data_set": name,
            "short_side": short_side,
            "quality": encoding.QUALITY,
            "images": len(index),
            "left_out": len(left_out),
            "bytes": sum(path.stat().st_size for path in files),
            "version": shards.VERSION,
            "made_with": {"pillow": PIL.__version__, "pyarrow": pa.__version__, "python": platform.python_version()},
        }
        (aside / "prepared.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if (folder / "prepared.json").is_file():
            shutil.rmtree(aside)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            aside.replace(folder)
        sources.remember(name, list(known), list(known.values()))
        log.info(
            "%s: %d images prepared at %d px, %d left out, %.1f MB",
            name,
            len(index),
            short_side,
            len(left_out),
            about["bytes"] / 1e6,
        )
        return folder


def _write_records(folder: Path, records: Sequence[Study] | Sequence[Question], left_out: dict[str, str]) -> None:
    """The reader's records as Parquet, for people and other programs; once for each setting of the reader."""
    content = hashlib.sha256()
    for row in _rows(records, left_out):
        content.update(json.dumps(row, sort_keys=True).encode())
    path = folder / f"records-{content.hexdigest()[:12]}.parquet"
    if path.is_file():
        return
    aside, rows = path.with_suffix(f".{os.getpid()}.part"), _rows(records, left_out)
    try:
        first = pa.Table.from_pylist(list(itertools.islice(rows, BATCH)))
        with pq.ParquetWriter(aside, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            while part := list(itertools.islice(rows, BATCH)):
                writer.write_table(pa.Table.from_pylist(part, first.schema))
        aside.replace(path)
    except OSError as error:
        log.info("%s: not written (%s); training does not need it", paths.shown(path), error.strerror or error)
        aside.unlink(missing_ok=True)


def _rows(records: Sequence[Study] | Sequence[Question], left_out: dict[str, str]) -> Iterator[dict[str, Any]]:
    for record in records:
        if isinstance(record, Study):
            kept = [picture for picture in record.images if picture.image_id not in left_out]
            if kept:
                row = {"study_id": record.study_id, "split": record.split, "group_id": record.group_id}
                pictures = {"image_ids": [p.image_id for p in kept], "views": [p.view for p in kept]}
                yield row | pictures | {"text": record.text}
        elif record.image_id not in left_out:
            row = {key: value for key, value in vars(record).items() if key not in ("image_path", "extra")}
            yield row | {"answers": list(record.answers), "extra": json.dumps(record.extra)}


def _read_summary(folder: Path) -> tuple[int, dict[str, str]]:
    count = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))["images"]
    with (folder / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        return count, {row["image_id"]: row["reason"] for row in csv.DictReader(file)}
