"""What the readers share: reading and checking of records, with errors that name file, line and field."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import Question, Study, normalise_answer

NUMBERS = ("qid", "img_id", "answer")  # the keys whose values may be whole numbers
MOST_MISSING = 0.1  # share of the images listed by ROCO or MedICaT that may be absent: not all can still be downloaded
log = logging.getLogger(__name__)
Record = dict[str, Any]


def one_line(value: object) -> str:
    """A text in one line: tabs, line ends and runs of blanks (all occur in the releases) become one blank."""
    return " ".join(str(value).split())


def question(
    question_id: object, image: Path, text: str, answers: Sequence[object], split: str, **more: Any
) -> Question:
    """A question with normalised text and answers. `more` gives other fields of `Question`; the defaults are the
    image file's name without suffix as `image_id`, and `closed_field` equal to `closed_yes_no`."""
    accepted = tuple(map(normalise_answer, answers))
    closed = accepted[0] in ("yes", "no")
    more = {"image_id": image.stem, "closed_field": closed, "closed_yes_no": closed} | more
    return Question(str(question_id), image_path=image, question=one_line(text), answers=accepted, split=split, **more)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with or without byte-order mark; `\\r\\n` becomes `\\n`, other line ends stay."""
    return decode(read_bytes(path), paths.shown(path))


def read_bytes(path: Path, get: str = "the set's card in data_manifests/ says how to get it") -> bytes:
    """A file's content. Raises InputError, which ends in `get` (what to do), if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:  # among others if the path is a folder
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{paths.shown(path)}: {reason}; {get}") from None


def decode(raw: bytes, where: str) -> str:
    """Decode bytes as `read_text` does. Raises InputError, beginning with `where`, for any encoding but UTF-8."""
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        if "\0" not in text[:200]:
            return text
        said = f"{where}: not UTF-8 (UTF-16, or not a text)"
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        said = f"{where}, line {line}: not UTF-8 ({error})"
    raise InputError(f"{said}; save it as UTF-8 or fetch the file again")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, without line ends, each with `<file>, line <n>` for messages.

    Only a line feed ends a line: captions hold other characters that Python's `splitlines` would split at.
    """
    lines = read_text(path).split("\n")
    if not any(map(str.strip, lines)):
        raise InputError(f"{paths.shown(path)}: no records; fetch the file again")
    yield from ((f"{paths.shown(path)}, line {n}", line) for n, line in enumerate(lines, start=1) if line.strip())


def parse_json(written: str, where: str) -> Any:
    """Parse JSON; NaN and Infinity become None. Raises InputError, also if an object has a key twice."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:  # json would silently keep the last of equal keys
        if len(dict(found)) < len(found):
            name = Counter(name for name, _ in found).most_common(1)[0][0]
            raise InputError(f"{where}: {name!r} occurs twice in an object; keep one")
        return dict(found)

    try:
        return json.loads(written, object_pairs_hook=pairs, parse_constant=lambda name: None)
    except InputError:
        raise
    except (RecursionError, ValueError) as error:
        line = f", line {error.lineno}" if hasattr(error, "lineno") and ", line " not in where else ""
        raise InputError(f"{where}{line}: not valid JSON ({error}); correct it or fetch it again") from None


def read_json(path: Path) -> list[Record]:
    """The records of a JSON file that holds a list of objects."""
    return check_list(parse_json(read_text(path), paths.shown(path)), paths.shown(path))


def check_list(content: Any, name: str) -> list[Record]:
    """`content` if it is a non-empty list of objects. Raises InputError, beginning with `name`, if not."""
    if not isinstance(content, list) or not content or not all(isinstance(record, dict) for record in content):
        raise InputError(f"{name}: must hold a list of records, each a JSON object; is it the official file?")
    return content


def read_json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON Lines file, each with `<file>, line <n>` for messages."""
    for where, line in read_lines(path):
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise InputError(f"{where}: a record must be a JSON object; correct or remove the line")
        yield where, record


def check_keys(record: Record, keys: Iterable[str], where: str) -> None:
    """Raise InputError, beginning with `where`, if a key lacks a non-empty text (a key in `NUMBERS`: or an integer)."""
    for key in keys:
        value = record.get(key)
        is_text = isinstance(value, str) or (key in NUMBERS and type(value) is int)
        if not is_text or not str(value).strip():
            raise InputError(f"{where}: {key} is missing, empty or not text; correct or remove the record")


def check_one_of(value: str, known: Iterable[str], where: str) -> None:
    """Raise InputError if `value` is not among `known`; `where` names file, record and field."""
    if value not in known:
        raise InputError(f"{where} {value!r} is not one of {', '.join(known)}")


def check_once(key: str, seen: dict[str, str], where: str) -> None:
    """Note in `seen` that `key` occurs at `where`. Raises InputError if it has occurred before."""
    if key in seen:
        raise InputError(f"{where}: {key} occurs twice (first: {seen[key]}); remove one of them")
    seen[key] = where


def with_images(records: list[Question] | list[Study], root: Path, may_lack: float = 0) -> list[Any]:
    """The records whose images all exist; the log says how many do.

    Raises InputError, naming the first absent image, if more than the share `may_lack` of the images is absent.
    """
    wanted = {image.path: record for record in records for image in record.images}
    # one listing of each folder: faster than many look-ups on a network disk
    there = {path for folder in {path.parent for path in wanted} if folder.is_dir() for path in folder.iterdir()}
    absent = [path for path in wanted if path not in there]
    found = f"{len(wanted) - len(absent)} of {len(wanted)} images found under {paths.shown(root)}"
    if len(absent) > may_lack * len(wanted):
        record = wanted[absent[0]]
        of = f"study {record.study_id}" if isinstance(record, Study) else f"question {record.question_id}"
        raise InputError(f"{paths.shown(absent[0])}: image of {of} is missing; {found}: fetch the others")
    if absent:
        log.info("%s; records whose images are missing are left out", found)
    return [record for record in records if there.issuperset(image.path for image in record.images)]
