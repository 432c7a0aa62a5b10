"""Write a file beside its place and move it there when it is whole, so that nobody finds half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from amif_lib.core import paths
from amif_lib.core.errors import InputError

RESULTS = "set AMIF_RESULTS to a folder with room that you may write to"


def aside_of(path: Path) -> Path:
    """Where `write_aside` has a file written: hidden, beside it, one per process."""
    return path.with_name(f".{path.name}.{os.getpid()}")


@contextlib.contextmanager
def write_aside(path: Path, remedy: str = RESULTS) -> Iterator[Path]:
    """Make the folder of `path`, give the place to write to, and rename it to `path` at the end; on any error remove it.

    Raises InputError, which ends in `remedy`, where the file or its folder cannot be written or the disk is full.
    """
    if path.is_dir():
        raise InputError(f"{paths.shown(path)}: cannot be written (it is a folder); give the name of a file")
    aside = aside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(f"{paths.shown(path)}: cannot be written ({reason}); {remedy}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str, remedy: str = RESULTS) -> None:
    """Write UTF-8 text with `write_aside`; line ends stay as they are, so that equal text gives equal bytes."""
    with write_aside(path, remedy) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
