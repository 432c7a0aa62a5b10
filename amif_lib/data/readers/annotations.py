"""What the readers of question sets share: files read as text or JSON with errors that name the place, and checks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError

YES_NO = ("yes", "no")
NUMBERS = ("qid", "img_id", "answer")  # the keys whose values may be whole numbers


def text(value: object) -> str:
    """A question as it is shown: tabs and runs of blanks (both occur in the releases) become one blank."""
    return " ".join(str(value).split())


def read_text(path: Path, data_set: str) -> str:
    """A file's text, UTF-8. Raises InputError where it is absent or not UTF-8; `data_set` names the card to look into."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{paths.shown(path)}: no such file; see data_manifests/{data_set}.md for where to get it"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{paths.shown(path)}: not UTF-8 ({error}); fetch the file again") from None
    except OSError as error:  # such as a folder of that name
        raise InputError(
            f"{paths.shown(path)}: cannot be read ({error.strerror}); put the file there that data_manifests/{data_set}.md "
            "names"
        ) from None


def read_json(path: Path, data_set: str) -> list[dict[str, Any]]:
    """The records of a JSON file that holds a list of objects. Raises InputError that names file and line or record."""
    name, written = paths.shown(path), read_text(path, data_set)
    try:
        content = json.loads(written)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {error.lineno}: not valid JSON ({error.msg}); fetch the file again") from None
    except (RecursionError, ValueError):  # a number of thousands of digits is a plain ValueError
        raise InputError(f"{name}: nested too deeply or a number too long; is it the official file?") from None
    return check_list(content, name)


def check_list(content: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not content:
        raise InputError(f"{name}: must hold a list of records; is it the official file?")
    for number, record in enumerate(content):
        if not isinstance(record, dict):
            raise InputError(f"{name}: record number {number} is not a JSON object; mend or remove it")
    return content


def check_keys(record: dict[str, Any], keys: Iterable[str], where: str, may_be_empty: tuple[str, ...] = ()) -> None:
    """Raise InputError, beginning with `where`, for a key that is missing, empty or not text (`NUMBERS`: or a number)."""
    for key in keys:
        if key not in record:
            raise InputError(f"{where}: key {key} is missing; mend or remove the record")
        value = record[key]
        plain = isinstance(value, str) or (key in NUMBERS and isinstance(value, int) and not isinstance(value, bool))
        if not plain or (not str(value).strip() and key not in may_be_empty):
            raise InputError(f"{where}: {key} is empty or not text; mend or remove the record")


def choose(training_file: str, known: Iterable[str], title: str) -> str:
    """The training file that is meant, the first of `known` being the default. Raises InputError listing them."""
    known = tuple(known)
    if training_file not in ("default", *known):
        listed = ", ".join(("default", *known))
        raise InputError(f"training_file: {training_file!r} is not known for {title}; choose one of {listed}")
    return known[0] if training_file == "default" else training_file


def require_image(path: Path, present: set[str], name: str, record: str) -> None:
    """Raise InputError where the image `name` of a record is not among those present."""
    if name not in present:
        raise InputError(f"{paths.shown(path)}: image of {record} is missing; fetch it or remove the record")
