"""Atomic writing of files, locks between processes, and reading of YAML and JSON."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from amif_lib.core import paths
from amif_lib.core.errors import InputError

RESULTS = "set AMIF_RESULTS to a writable folder with enough space"
PREPARED = "set AMIF_PREPARED to a writable folder with enough space"
LOCK = "its folder must be writable"


@contextlib.contextmanager
def writing(target: Path, remedy: str = RESULTS, folder: Path | None = None) -> Iterator[None]:
    """Make `folder` (by default `target` itself) for what the block writes. Raises InputError, which names `target` and
    ends in `remedy`, if the system refuses (no permission, disk full)."""
    try:
        (folder or target).mkdir(parents=True, exist_ok=True)
        yield
    except BrokenPipeError:  # the reader of our output has closed it: no file is at fault
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(f"{paths.shown(target)}: cannot be written ({reason}); {remedy}") from None


@contextlib.contextmanager
def atomic_write(path: Path, remedy: str = RESULTS) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`, renamed to `path` when the block ends, removed if it fails.

    Raises InputError, which ends in `remedy`, if the file or its folder cannot be written or the disk is full.
    """
    if path.is_dir():
        raise InputError(f"{paths.shown(path)}: cannot be written (it is a folder); give the name of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # hidden, one per process
    with writing(path, remedy, path.parent):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, remedy: str = RESULTS) -> None:
    """Write UTF-8 text with `atomic_write`; line ends stay as they are, so that equal text gives equal bytes."""
    with atomic_write(path, remedy) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file with `atomic_write`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def exclusive(path: Path, what: str, wait: bool = True, remedy: str = LOCK) -> Iterator[int | None]:
    """Hold the lock file `path`; yields its descriptor, which a child process inherits to hold the lock too.

    The operating system drops the lock when its last holder ends, so a stale lock cannot exist. If another process
    holds it, print which one and wait; with `wait=False` raise BlockingIOError instead. On a file system without locks,
    print a note and yield None. Raises InputError, which ends in `remedy`, if the lock file cannot be made.
    """
    with writing(path, remedy, path.parent):
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            held = f"{what} is in use by {file.read().strip() or 'another process'}"
            if not wait:
                raise BlockingIOError(held) from None
            print(f"{held}; waiting for it to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            print(f"note: no file locks in {paths.shown(path.parent)}; do not start a second job there", flush=True)
            yield None
            return
        name_holder(file.fileno(), os.getpid())
        yield file.fileno()


def name_holder(lock: int, process: int) -> None:
    """Write into a lock file which process holds it, for the message of processes that wait."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {process} on {socket.gethostname()}".encode(), 0)


def read_yaml(path: Path) -> Any:
    """Content of a YAML or JSON file. Raises InputError, with the file's name and the line, if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)  # YAML reads JSON's 5e-05 as text
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{paths.shown(path)}: {reason}") from None
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{paths.shown(path)}: not valid YAML or JSON: {detail}") from None


def digest(content: Any) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a JSON-serialisable value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; computed again only if its size or modification time has changed."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_lines(path: Path) -> list[str]:
    """Lines of an append-only text file, without a last line that a killed writer has left incomplete."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [line for line in text.rpartition("\n")[0].split("\n") if line]
