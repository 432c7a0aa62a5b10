"""Lists of records in text files, read line by line, and the image files that they name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError

log = logging.getLogger(__name__)


def numbered(path: Path, hint: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not blank, numbered from 1, without their line ends.

    Only a line feed ends a line: captions may hold other characters that Python's `splitlines` would split at.

    Raises:
        InputError: no such file (`hint` says where to get it), nothing in it, or a line that is not UTF-8.
    """
    found = False
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    found = True
                    yield number, text
    except FileNotFoundError:
        raise InputError(f"{paths.shown(path)}: no such file; {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{paths.shown(path)}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); fetch the file again"
        ) from None
    except OSError as error:
        raise InputError(f"{paths.shown(path)}: cannot be read ({error.strerror}); fetch the file again") from None
    if not found:
        raise InputError(f"{paths.shown(path)}: no records; fetch the file again")


def json_lines(path: Path, hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with `<file>, line <n>` for messages; bad lines raise an InputError."""
    for number, line in numbered(path, hint):
        where = f"{paths.shown(path)}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON ({error.msg}); mend or remove the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: a record must be a JSON object; mend or remove the line")
        yield where, record


def file_names(folder: Path) -> set[str]:
    """Names of the entries of a folder; none where there is no such folder. One listing is faster than many look-ups."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


class Absent:
    """Counts listed images that do not exist: left out while they are few, an InputError where too many are gone."""

    def __init__(self, source: Path, limit: float):
        self.source, self.limit, self.listed, self.missing = source, limit, 0, 0
        self.first: Path | None = None

    def __call__(self, path: Path, present: bool) -> bool:
        """Count one listed image; whether it is absent."""
        self.listed += 1
        if not present:
            self.missing += 1
            self.first = self.first or path
        return not present

    def settle(self) -> None:
        """Log what was left out; raises an InputError where more than the limit's share is absent."""
        if self.missing and self.missing > self.limit * self.listed:
            raise InputError(
                f"{paths.shown(self.source)}: {self.missing} of the {self.listed} listed images are absent, first "
                f"{paths.shown(self.first)}; fetch them or raise data.max_missing_images ({self.limit:g})"
            )
        if self.missing:
            log.info("%s: %d of %d listed images absent, left out", self.source.name, self.missing, self.listed)
