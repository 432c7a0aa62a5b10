"""Unpack what others packed: zip and tar archives, with every member looked at before it is written.

The standard library's own extraction cleans up bad member names on its way (an absolute path becomes a relative one); here
an archive with such a member is refused as a whole, since it is not what the manifest's author saw. Files are
written by this module, never by `tarfile`: without links, devices, owners or modes.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError

KINDS = (".zip", ".tar", ".tar.gz", ".tgz")
CHUNK = 1 << 20
MAC = ("__MACOSX", ".DS_Store", "._")  # what macOS adds to an archive; no data set means it


def unpack(archive: Path, folder: Path, limit: int, shown: str = "") -> list[tuple[str, int]]:
    """Unpack into a new folder and return the members' paths (with slashes) and sizes.

    Args:
        archive: a file whose name ends in one of `KINDS`.
        folder: must not exist; removed again if anything goes wrong, so that there is no half-unpacked archive.
        limit: the most bytes that may come out; a small archive that becomes a very large folder stops there.
        shown: what messages call the archive; its path where it is left out.

    Raises:
        InputError: unknown kind, cut or damaged archive, unsafe member, more than `limit` bytes; names archive and member.
        OSError: the disk is full or the folder cannot be written.
    """
    shown = shown or paths.shown(archive)
    folder.mkdir(parents=True)
    written: list[tuple[str, int]] = []
    total, skipped = 0, 0
    bar = progress.bar(max(1, archive.stat().st_size >> 20), f"unpacking {archive.name} (MiB read)")
    try:
        with _reading(archive, shown) as packed:
            seen = 0
            for name, content in _members(shown, packed):
                if name.parts[0] == MAC[0] or name.name == MAC[1] or name.name.startswith(MAC[2]):
                    skipped += 1
                    continue
                target = folder / name
                size = 0
                try:
                    if content is None:
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content() as source, target.open("xb") as file:
                        while block := source.read(CHUNK):
                            size += len(block)
                            if total + size > limit:
                                raise InputError(
                                    f"{shown}: {name} takes it past {limit} bytes unpacked, far more than "
                                    "expected; refused. Fetch it again, or mend the sizes in the manifest"
                                )
                            file.write(block)
                except (FileExistsError, NotADirectoryError, IsADirectoryError):
                    raise _refused(shown, name, "is in it twice") from None
                total += size
                written.append((name.as_posix(), size))
                now = _position(packed) >> 20
                bar.step(max(0, now - seen))
                seen = max(seen, now)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        bar.close()
    if skipped:
        print(f"  {archive.name}: {skipped} members that macOS added left out")
    return written


def unpack_nested(
    folder: Path, members: list[tuple[str, int]], wanted: set[str], limit: int, outer: str = ""
) -> list[tuple[str, int]]:
    """Unpack `a/images.zip` among unpacked members where a folder `a/images` is wanted and absent; returns the new members.

    Whether the inner archive has that folder inside or only its files, they end up in `a/images/`. `limit` and errors as in
    `unpack`; messages say `<outer>, <path> in it`, for the folder may be gone when they are read. The inner archive is
    removed.
    """
    out = []
    for path, size in members:
        ending = next((kind for kind in KINDS if path.lower().endswith(kind)), "")
        home = path.removesuffix(path[len(path) - len(ending) :]) if ending else ""
        if home not in wanted or (folder / home).exists():
            out.append((path, size))
            continue
        aside = folder / f"{path}.inner"
        inner = unpack(folder / path, aside, limit, f"{outer}, {path} in it" if outer else "")
        wrapped = {name.split("/")[0] for name, _ in inner} == {PurePosixPath(home).name}
        (aside / PurePosixPath(home).name if wrapped else aside).rename(folder / home)
        if wrapped:
            shutil.rmtree(aside)
        (folder / path).unlink()
        out += [
            (f"{PurePosixPath(home).parent if wrapped else home}/{name}".removeprefix("./"), n) for name, n in inner
        ]
    return out


@contextmanager
def _reading(archive: Path, shown: str) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """Open the archive; what goes wrong in reading it becomes one line."""
    name = archive.name.lower()
    if not name.endswith(KINDS):
        raise InputError(f"{shown}: not an archive that can be unpacked ({', '.join(KINDS)})")
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(archive) as packed:
                yield packed
        else:
            with tarfile.open(archive, "r:" if name.endswith(".tar") else "r:gz") as packed:
                yield packed
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,  # a compression that zipfile does not know
        RuntimeError,  # an encrypted member
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
    ) as error:
        raise InputError(
            f"{shown}: cut or damaged ({' '.join(str(error).split()) or type(error).__name__}); fetch it again"
        ) from None


def _members(
    shown: str, packed: zipfile.ZipFile | tarfile.TarFile
) -> Iterator[tuple[PurePosixPath, Callable[[], IO[bytes]] | None]]:
    """Path of each member and what opens it, None for a folder. Raises InputError for one that is unsafe."""
    if isinstance(packed, zipfile.ZipFile):
        for info in packed.infolist():
            name = _safe(shown, info.filename)
            kind = (info.external_attr >> 16) & 0o170000  # the Unix file type, 0 where it was packed elsewhere
            if kind not in (0, 0o100000, 0o040000):
                raise _refused(shown, info.filename, "is a link or a device")
            if name.parts:
                yield name, None if info.is_dir() else partial(packed.open, info)
        return
    for member in packed:
        name = _safe(shown, member.name)
        if not (member.isreg() or member.isdir()):
            raise _refused(shown, member.name, "is a link or a device")
        if name.parts:
            yield name, None if member.isdir() else partial(packed.extractfile, member)


def _safe(shown: str, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or "\0" in name or (path.parts and ":" in path.parts[0]):
        raise _refused(shown, name, "has an absolute path, a drive or a backslash")
    if ".." in path.parts:
        raise _refused(shown, name, "leads out of the folder")
    return path


def _refused(shown: str, name: object, why: str) -> InputError:
    return InputError(f"{shown}: member {str(name)!r} {why}; nothing was unpacked. Do not use this file")


def _position(packed: zipfile.ZipFile | tarfile.TarFile) -> int:
    """How far reading has come in the archive file, 0 where that cannot be told."""
    file = packed.fp if isinstance(packed, zipfile.ZipFile) else packed.fileobj
    raw = getattr(file, "fileobj", file)  # under gzip lies the file itself
    try:
        return raw.tell()
    except (AttributeError, OSError, ValueError):
        return 0
