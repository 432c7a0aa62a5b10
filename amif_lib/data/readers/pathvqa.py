"""Reader for PathVQA: the official pickle files, and a folder of images per split."""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers import files
from amif_lib.data.readers.files import Record, one_line
from amif_lib.data.records import Question

TRAINING_FILES = ("official", "deduplicated")
KINDS = ("what", "where", "when", "whose", "how")  # first words: PathVQA's own kinds of open question
SIZES = ("PUT", "BINPUT", "LONG_BINPUT", "FRAME")  # pickle opcodes that reserve as much memory as they declare
log = logging.getLogger(__name__)


def read(root: Path, layout: Mapping[str, str], training_file: str = "official") -> list[Question]:
    """The questions of all three splits, in the files' order.

    A question is closed when its answer is yes or no: the set has no field for it. `question_type` is `yes/no` or the
    first word of an open question (`KINDS`, else `other`). Questions and answers are normalised (`files.question`).
    Images without a question are not read. The release has no ids: a question's id is its image's name and its number
    on that image.

    `deduplicated` drops records from every split whose image, question and answer equal an earlier one's as the file
    has them. (The hub's deduplicated set has 42 test questions fewer than the official 6,761; normalised texts have 44
    duplicates.) `layout`: `questions` (pickle) and `images` (folder), with `{split}`.
    """
    questions = []
    for split in ("train", "val", "test"):
        numbers, seen = Counter(), set()
        for record in read_pickle(root / layout["questions"].format(split=split)):
            name = record["image"].removesuffix(".jpg")
            numbers[name] += 1
            whole = (name, record["question"], str(record["answer"]))
            if training_file == "deduplicated" and whole in seen:
                continue
            seen.add(whole)
            image = root / layout["images"].format(split=split) / f"{name}.jpg"
            made = files.question(f"{name}-{numbers[name]}", image, record["question"], [record["answer"]], split)
            first = made.question.split()[0].lower()
            kind = "yes/no" if made.closed_yes_no else first if first in KINDS else "other"
            questions.append(replace(made, question_type=kind))
        if training_file == "deduplicated":
            log.info("PathVQA, %s: %d duplicates dropped", split, numbers.total() - len(seen))
    return questions


class _PlainUnpickler(pickle.Unpickler):
    """Reads a pickle of lists, dicts, texts and numbers, and refuses one that imports anything, without which a pickle
    cannot run code. The official release has its questions in no other form."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}, which can run code and plain questions never need")


def read_pickle(path: Path) -> list[Record]:
    """The records `image, question, answer` of an official file, checked; InputError names file and record."""
    name, content = paths.shown(path), files.read_bytes(path)
    try:
        for code, argument, _ in pickletools.genops(content):  # raises if a text is shorter than declared
            if code.name in SIZES and argument > len(content):
                raise ValueError(f"{code.name} of {argument} in a file of {len(content)} bytes")
        found = _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        detail = one_line(error)[:100] or type(error).__name__
        raise InputError(f"{name}: not a readable pickle of questions ({detail}); fetch the file again") from None
    for number, record in enumerate(files.check_list(found, name)):
        where = f"{name}: record number {number} ({record.get('image', '?')})"
        files.check_keys(record, ("image", "question", "answer"), where)
    return found
