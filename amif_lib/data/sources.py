"""SHA-256 of a data set's files, each read again only when its size or time of change is another than last time.

Reading half a terabyte before every training would cost more than the training's data feed. What was found is kept in
`.amif/hashes/<set>.files.parquet` beside the data (`paths.prepared_root`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pandas as pd

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError
from amif_lib.core.files import write_aside
from amif_lib.data import manifests

Item, Made = TypeVar("Item"), TypeVar("Made")
REMEDY = "set AMIF_PREPARED to a folder with room that can be written"
NOT_WRITABLE = {
    getattr(errno, name, 0)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "ENOTDIR", "EEXIST", "ENOENT", "EIO")
}
SETTLED_S = 2.0  # a file changed more recently may change again without a new time stamp


def digests(name: str, files: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, hexadecimal; those not known from earlier are read now, on all cores, and remembered.

    Empty for a file that is missing or cannot be read. Raises InputError where the hashes cannot be stored.
    """
    found = known(name, files)
    unknown = [i for i, digest in enumerate(found) if not digest]
    if unknown:
        bar = progress.bar(len(unknown), f"{name}: reading files", show=len(unknown) >= 500)
        for i, digest in zip(unknown, in_order(lambda i: _digest(files[i]), unknown), strict=True):
            found[i] = digest
            bar.step()
        bar.close()
        remember(name, files, found)
    return found


def known(name: str, files: Sequence[Path]) -> list[str]:
    """SHA-256 of each file as far as it is known and the file has not changed since; else empty."""
    stored = _read(name)
    out = []
    for path in files:
        size, changed, digest = stored.get(str(path), (-1, -1, ""))
        try:
            stat = path.stat()
        except OSError:
            digest = ""
        else:
            digest = digest if (stat.st_size, stat.st_mtime_ns) == (size, changed) else ""
        out.append(digest)
    return out


def remember(name: str, files: Sequence[Path], found: Sequence[str]) -> None:
    """Keep the digests of those files that can be read and have been at rest for a while."""
    stored, latest = _read(name), time.time() - SETTLED_S
    for path, digest in zip(files, found, strict=True):
        if digest and (stat := path.stat()).st_mtime < latest:
            stored[str(path)] = (stat.st_size, stat.st_mtime_ns, digest)
    rows = [(path, *values) for path, values in sorted(stored.items())]
    target = _file(name)
    with write_aside(target, REMEDY) as aside:
        pd.DataFrame(rows, columns=["path", "bytes", "changed_ns", "sha256"]).to_parquet(aside, index=False)


def _file(name: str) -> Path:
    return manifests.derived_folder(name) / "hashes" / f"{name}.files.parquet"


def _read(name: str) -> dict[str, tuple[int, int, str]]:
    try:
        table = pd.read_parquet(_file(name))
        rows = zip(table["path"], table["bytes"], table["changed_ns"], table["sha256"], strict=True)
    except (OSError, ValueError, KeyError):  # absent or damaged: the files are read again
        return {}
    return {path: (int(size), int(changed), digest) for path, size, changed, digest in rows}


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes())
    except OSError:
        return ""


def sha256(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder and turn a failure to write into it (no permission, disk full) into an InputError that names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise InputError(f"{paths.shown(folder)}: cannot be written ({error.strerror or error}); {REMEDY}") from None


def in_order(function: Callable[[Item], Made], items: Iterable[Item], ahead: int = 4) -> Iterator[Made]:
    """`function` of each item on all cores, in the items' order.

    Threads, since reading, decoding and hashing leave the interpreter free. At most `ahead` results a core are under way,
    so memory does not grow with the number of items.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: list[Future[Made]] = []
    with ThreadPoolExecutor(cores) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead * cores:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
