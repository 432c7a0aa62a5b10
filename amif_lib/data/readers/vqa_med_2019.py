"""Reader for VQA-Med-2019 (ImageCLEF): text files with fields separated by `|`, and a folder of images per split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from amif_lib.core.errors import InputError
from amif_lib.data.readers import files
from amif_lib.data.readers.files import one_line
from amif_lib.data.records import Question, normalise_answer

TRAINING_FILES = ("all", "without_abnormality")
# Categories C1 to C4. The test file writes them in every line; training and validation questions have a file each.
CATEGORIES = {"C1_Modality": "modality", "C2_Plane": "plane", "C3_Organ": "organ", "C4_Abnormality": "abnormality"}
FIELDS = ("image", "question", "answer")
TEST_FIELDS = ("image", "category", "question", "answer")


def read(root: Path, layout: Mapping[str, str], training_file: str = "all") -> list[Question]:
    """The questions of all three splits, in the files' order.

    A question is closed when its (first) answer is yes or no: the set has no field for it. `question_type` is the
    category; it is empty for a training or validation question that is in none of the files by category, which may be
    absent. Only test questions have several accepted answers (`accepted`). The release has no ids: a question's id is
    its image's name and its number on that image. `without_abnormality` leaves that category out of every split (375 of
    the 500 test questions stay) and needs the category of every question.

    `layout`: `train`, `val`, `test` (text files, the last with reference answers), `train_images`, `val_images`,
    `test_images` (folders) and `categories` (the files by category, with `{folder}`, `{category}` and `{split}`).
    """
    questions = []
    for split in ("train", "val", "test"):
        numbers = Counter()
        for where, record in _records(root, layout, split):
            numbers[record["image"]] += 1
            if training_file == "without_abnormality" and not record["category"]:
                said = f"{where}: the question is in no file by category, which {training_file} needs"
                raise InputError(f"{said}; fetch the folder QAPairsByCategory or choose all")
            if training_file == "without_abnormality" and record["category"] == "abnormality":
                continue
            answers = accepted(record["answer"]) if split == "test" else [record["answer"]]
            image = root / layout[f"{split}_images"] / f"{record['image']}.jpg"
            identity, kind = f"{record['image']}-{numbers[record['image']]}", record["category"]
            questions.append(files.question(identity, image, record["question"], answers, split, question_type=kind))
    return questions


def accepted(reference: str) -> tuple[str, ...]:
    """The accepted answers of a test reference, normalised; the first as it is written.

    By the release's readme `#` separates several right answers and parentheses hold a part that may be left out. An
    alternative with parentheses is accepted as written (`ct w/contrast (iv)` is a class of the training set), without
    the parentheses, and without what they hold.
    """
    out: list[str] = []
    for alternative in reference.split("#"):
        out += [alternative, re.sub(r"[()]", "", alternative), re.sub(r"\([^()]*\)", " ", alternative)]
    return tuple(dict.fromkeys(answer for answer in map(normalise_answer, out) if answer.strip("() ")))


def _lines(path: Path, fields: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """The records of a file, one a line, each with its place in it; a wrong number of fields is an InputError."""
    out = []
    for where, line in files.read_lines(path):
        found = [part.strip() for part in line.split("|")]
        if len(found) != len(fields):
            raise InputError(f"{where}: {len(found)} fields, expected {'|'.join(fields)}; correct the line")
        out.append((where, dict(zip(fields, found, strict=True))))
        files.check_keys(out[-1][1], fields, where)
    return out


def _records(root: Path, layout: Mapping[str, str], split: str) -> list[tuple[str, dict[str, str]]]:
    """The records of a split with the keys `TEST_FIELDS`, each with its place in the file, checked."""
    path = root / layout[split]
    if split == "test":
        records, seen = _lines(path, TEST_FIELDS), {}
        for where, record in records:
            files.check_one_of(record["category"], CATEGORIES.values(), f"{where}: category")
            files.check_once(f"a question about image {record['image']}", seen, where)  # one per test image
            if not accepted(record["answer"]):
                raise InputError(f"{where}: answer is empty; correct or remove the line")
        return records
    categories: dict[tuple[str, ...], str] = {}
    for stem, category in CATEGORIES.items():
        part = root / layout["categories"].format(category=stem, split=split, folder=path.parent.name)
        if part.is_file() and files.read_text(part).strip():
            categories |= {_key(record): category for _, record in _lines(part, FIELDS)}
    return [(where, {**r, "category": categories.get(_key(r), "")}) for where, r in _lines(path, FIELDS)]


def _key(record: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(one_line(record[field]) for field in FIELDS)
