"""Files that others find whole or not at all, locks between processes, and reading of YAML and JSON."""

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

RESULTS = "set AMIF_RESULTS to a folder with room that you may write to"
PREPARED = "set AMIF_PREPARED to a folder with room that can be written"


def temporary_file(path: Path) -> Path:
    """Where `atomic_write` has a file written first: hidden, in the same folder, one per process."""
    return path.with_name(f".{path.name}.{os.getpid()}")


@contextlib.contextmanager
def writing(target: Path, remedy: str = RESULTS, folder: Path | None = None) -> Iterator[None]:
    """Make a folder (`target` itself if none is given) and write `target`; no permission or room is an InputError that
    names `target` and ends in `remedy`."""
    try:
        (folder or target).mkdir(parents=True, exist_ok=True)
        yield
    except BrokenPipeError:  # of whoever reads what is printed
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(f"{paths.shown(target)}: cannot be written ({reason}); {remedy}") from None


@contextlib.contextmanager
def atomic_write(path: Path, remedy: str = RESULTS) -> Iterator[Path]:
    """Make the folder of `path` and give a file to write to, renamed to `path` at the end and removed on any error.

    Raises InputError, which ends in `remedy`, where the file or its folder cannot be written or the disk is full.
    """
    if path.is_dir():
        raise InputError(f"{paths.shown(path)}: cannot be written (it is a folder); give the name of a file")
    temporary = temporary_file(path)
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
def exclusive(path: Path, what: str, wait: bool = True) -> Iterator[int | None]:
    """Hold the lock file `path`; yields its descriptor, which a child process inherits to hold the lock too.

    The operating system drops the lock when its last holder ends, so a stale lock cannot exist. Where another process
    holds it, a line names that process; with `wait` false BlockingIOError does. Yields None, with a note, on a file
    system without locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
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
            print(f"note: no file locks in {paths.shown(path.parent)}; do not start a second job on it", flush=True)
            yield None
            return
        name_holder(file.fileno(), os.getpid())
        yield file.fileno()


def name_holder(lock: int, process: int) -> None:
    """Write into a held lock file which process others wait for."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {process} on {socket.gethostname()}".encode(), 0)


def read_yaml(path: Path) -> Any:
    """Content of a YAML or JSON file. Raises InputError with the file's name and the line where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)  # YAML reads JSON's 5e-05 as text
    except FileNotFoundError:
        raise InputError(f"{paths.shown(path)}: no such file") from None
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{paths.shown(path)}: not valid YAML or JSON: {detail}") from None


def digest(content: Any) -> str:
    """Twelve hexadecimal digits of a JSON-serialisable value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def sha256(path: Path) -> str:
    """Of a file's content, 64 hexadecimal digits; read again only where size or time of change is another."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_lines(path: Path) -> list[str]:
    """Lines of an append-only text file; a last line without line end, as a killed writer leaves it, is left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [line for line in text.rpartition("\n")[0].split("\n") if line]
