"""What the readers share: files and records read with errors that name file, line and field, and images looked for."""

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

YES_NO = ("yes", "no")
NUMBERS = ("qid", "img_id", "answer")  # the keys whose values may be whole numbers
MOST_MISSING = 0.1  # share of the images that ROCO and MedICaT list but that may be absent: articles lose theirs
log = logging.getLogger(__name__)
Record = dict[str, Any]


def one_line(value: object) -> str:
    """A text as it is shown: tabs, line ends and runs of blanks (all occur in the releases) become one blank."""
    return " ".join(str(value).split())


def question(
    question_id: object, image: Path, text: str, answers: Sequence[object], split: str, **more: Any
) -> Question:
    """A question of a release, its text and answers evened out; `more`: further fields.

    The image's id is the file's name where `image_id` names no other. Without `closed_field`, the set has no such
    field.
    """
    accepted = tuple(map(normalise_answer, answers))
    closed = accepted[0] in YES_NO
    more = {"image_id": image.stem, "closed_field": closed, "closed_yes_no": closed} | more
    return Question(str(question_id), image_path=image, question=one_line(text), answers=accepted, split=split, **more)


def read_text(path: Path) -> str:
    """A text that people bring: UTF-8 with or without a byte-order mark. Line ends stay, but for `\\r\\n`."""
    return decode(read_bytes(path), paths.shown(path))


def read_bytes(path: Path, get: str = "the set's card in data_manifests/ says how to get it") -> bytes:
    """A file's content. Raises InputError where it cannot be read; `get` says what to do then."""
    try:
        return path.read_bytes()
    except OSError as error:  # also where a folder has that name
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{paths.shown(path)}: {reason}; {get}") from None


def decode(raw: bytes, where: str) -> str:
    """The text of `read_text`. Raises InputError, beginning with `where`, for any other encoding."""
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        if "\0" in text[:200]:
            raise ValueError("UTF-16, or no text")
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(f"{where}: not UTF-8 ({error}); save it as UTF-8 or fetch the file again") from None
    return text


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, without line ends, each with `<file>, line <n>` for messages.

    Only a line feed ends a line: captions hold other characters that Python's `splitlines` would split at.
    """
    found = False
    for number, raw in enumerate(read_bytes(path).split(b"\n"), start=1):
        where = f"{paths.shown(path)}, line {number}"
        line = decode(raw, where).rstrip("\r")
        if line.strip():
            found = True
            yield where, line
    if not found:
        raise InputError(f"{paths.shown(path)}: no records; fetch the file again")


def parse_json(written: str, where: str, once: bool = False) -> Any:
    """JSON, in which NaN and Infinity are null. `once`: a name that an object has twice is an error."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:  # json keeps the last of equal names, and says nothing
        if once and len(dict(found)) < len(found):
            name = Counter(name for name, _ in found).most_common(1)[0][0]
            raise InputError(f"{where}: {name!r} occurs twice in an object; keep one")
        return dict(found)

    try:
        return json.loads(written, object_pairs_hook=pairs, parse_constant=lambda name: None)
    except InputError:
        raise
    except (RecursionError, ValueError) as error:
        line = f", line {error.lineno}" if hasattr(error, "lineno") and ", line " not in where else ""
        raise InputError(f"{where}{line}: not valid JSON ({error}); mend it or fetch it again") from None


def read_json(path: Path) -> list[Record]:
    """The records of a JSON file that holds a list of objects."""
    return check_list(parse_json(read_text(path), paths.shown(path)), paths.shown(path))


def check_list(content: Any, name: str) -> list[Record]:
    """`content` if it is a list of objects with something in it, else an InputError that begins with `name`."""
    if not isinstance(content, list) or not content or not all(isinstance(record, dict) for record in content):
        raise InputError(f"{name}: must hold a list of records, each a JSON object; is it the official file?")
    return content


def read_json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON Lines file, each with `<file>, line <n>` for messages."""
    for where, line in read_lines(path):
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise InputError(f"{where}: a record must be a JSON object; mend or remove the line")
        yield where, record


def check_keys(record: Record, keys: Iterable[str], where: str) -> None:
    """Raise InputError, beginning with `where`, for a key that is missing, empty or not text (`NUMBERS`: a number)."""
    for key in keys:
        value = record.get(key)
        is_text = isinstance(value, str) or (key in NUMBERS and type(value) is int)
        if not is_text or not str(value).strip():
            raise InputError(f"{where}: {key} is missing, empty or not text; mend or remove the record")


def check_one_of(value: str, known: Iterable[str], where: str) -> None:
    """Raise InputError, beginning with `where`, which says what `value` is, for a value that is not known."""
    if value not in known:
        raise InputError(f"{where} {value!r} is not one of {', '.join(known)}")


def check_once(key: str, seen: dict[str, str], where: str) -> None:
    """Note in `seen` where a key stands. Raises InputError where it stood somewhere before."""
    if key in seen:
        raise InputError(f"{where}: {key} occurs twice (first: {seen[key]}); remove one of them")
    seen[key] = where


def images_of(record: Question | Study) -> list[Path]:
    return [image.path for image in record.images] if isinstance(record, Study) else [record.image_path]


def absent_of(images: Iterable[Path]) -> set[Path]:
    """Those that do not exist, by one listing of each folder: faster than many look-ups on a network disk."""
    wanted = set(images)
    there = {path for folder in {path.parent for path in wanted} if folder.is_dir() for path in folder.iterdir()}
    return wanted - there


def require_images(records: list[Question] | list[Study], root: Path) -> list[Any]:
    """The records. Raises InputError, naming the first and the number of images found, where an image is absent."""
    wanted = {path: record for record in records for path in images_of(record)}
    if absent := absent_of(wanted):
        path, record = next((path, record) for path, record in wanted.items() if path in absent)
        of = f"study {record.study_id}" if isinstance(record, Study) else f"question {record.question_id}"
        number = f"{len(wanted) - len(absent)} of {len(wanted)} images found under {paths.shown(root)}"
        raise InputError(f"{paths.shown(path)}: image of {of} is missing; {number}: fetch the others")
    return records


def without_absent(studies: list[Study], source: Path) -> list[Study]:
    """The studies of one image each whose image exists; how many were left out is logged.

    Raises:
        InputError: more than `MOST_MISSING` of the images are absent; names the list `source` and the first of them.
    """
    absent = absent_of(study.images[0].path for study in studies)
    said = f"{paths.shown(source)}: {len(absent)} of the {len(studies)} listed images are absent"
    if len(absent) > MOST_MISSING * len(studies):
        raise InputError(f"{said}, first {paths.shown(min(absent))}; fetch them")
    if absent:
        log.info("%s, left out", said)
    return [study for study in studies if study.images[0].path not in absent]
