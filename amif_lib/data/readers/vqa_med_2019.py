"""Reader for VQA-Med-2019 (ImageCLEF): text files whose fields are separated by `|`, and a folder of images per split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import YES_NO, Images, choose, one_line, read_lines
from amif_lib.data.records import Question, normalise_answer

TRAINING_FILES = ("all", "without_abnormality")
# Categories C1 to C4. The test file writes them in every line; training and validation questions have a file each.
CATEGORIES = {"C1_Modality": "modality", "C2_Plane": "plane", "C3_Organ": "organ", "C4_Abnormality": "abnormality"}
FIELDS = {False: ("image", "question", "answer"), True: ("image", "category", "question", "answer")}  # True: test


def read(
    root: Path, layout: Mapping[str, str], training_file: str = "default", *, images: bool = True
) -> list[Question]:
    """The questions of all three splits, in the files' order.

    A question is closed when its (first) answer is yes or no: the set has no field for it. `question_type` is the
    category, empty for a training or validation question that no file by category has (they may be absent). Several
    answers are accepted only for test questions (`accepted`). The release has no ids: a question's id is its image's
    name and its number on that image.

    Args:
        root: folder that holds the set.
        layout: `train`, `val`, `test` (text files, the last with reference answers), `train_images`, `val_images`,
            `test_images` (folders) and `categories` (the files by category, with `{folder}`, `{category}` and `{split}`).
        training_file: `all` (also `default`), or `without_abnormality`, which leaves that category out of every split:
            500 or 375 test questions.
        images: whether every question's image must be there; without, the annotations alone can be read and counted.

    Raises:
        InputError: unknown training file; `without_abnormality` where a question's category is not known; malformed line
            or missing image, naming file and line.
    """
    chosen = choose(training_file, TRAINING_FILES, "VQA-Med-2019")
    present, questions = Images(), []
    for split in ("train", "val", "test"):
        numbers: Counter[str] = Counter()
        for where, record in _records(root, layout, split):
            numbers[record["image"]] += 1
            if chosen == "without_abnormality" and not record["category"]:
                raise InputError(
                    f"{where}: the question is in no file by category, which training_file without_abnormality needs; "
                    f"fetch {layout['categories']} or choose all"
                )
            if chosen == "without_abnormality" and record["category"] == "abnormality":
                continue
            path = root / layout[f"{split}_images"] / f"{record['image']}.jpg"
            if images:
                present.require(path, where)
            answers = accepted(record["answer"]) if split == "test" else (normalise_answer(record["answer"]),)
            closed = answers[0] in YES_NO
            questions.append(
                Question(
                    question_id=f"{record['image']}-{numbers[record['image']]}",
                    image_id=record["image"],
                    image_path=path,
                    question=one_line(record["question"]),
                    answers=answers,
                    split=split,
                    closed_field=closed,
                    closed_yes_no=closed,
                    question_type=record["category"],
                )
            )
    return questions


def accepted(reference: str) -> tuple[str, ...]:
    """The accepted answers of a test reference, normalised; the first as it is written.

    By the release's readme `#` separates several right answers and parentheses hold a part that may be left out. An
    alternative with parentheses is accepted as written (`ct w/contrast (iv)` is a class of the training set), without the
    parentheses, and without what they hold.
    """
    out: list[str] = []
    for alternative in reference.split("#"):
        out += [alternative, re.sub(r"[()]", "", alternative), re.sub(r"\([^()]*\)", " ", alternative)]
    return tuple(dict.fromkeys(answer for answer in map(normalise_answer, out) if answer.strip("() ")))


def _lines(path: Path, fields: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """The records of a file, one a line, each with its place in it; a wrong number of fields is an InputError."""
    out = []
    for where, line in read_lines(path, "vqa_med_2019"):
        found = [part.strip() for part in line.split("|")]
        if len(found) != len(fields):
            raise InputError(
                f"{where}: {len(found)} fields, expected {len(fields)} ({'|'.join(fields)}); mend the line"
            )
        record = dict(zip(fields, found, strict=True))
        if empty := [key for key in fields if not record[key]]:
            raise InputError(f"{where}: {empty[0]} is empty; mend or remove the line")
        out.append((where, record))
    return out


def _records(root: Path, layout: Mapping[str, str], split: str) -> list[tuple[str, dict[str, str]]]:
    """The records `image, category, question, answer` of a split as the files have them, each with its place, checked."""
    path, fields = root / layout[split], FIELDS[split == "test"]
    records = _lines(path, fields)
    if split != "test":
        categories: dict[tuple[str, ...], str] = {}
        for stem, category in CATEGORIES.items():
            part = root / layout["categories"].format(category=stem, split=split, folder=path.parent.name)
            if part.is_file():
                categories |= {_key(record): category for _, record in _lines(part, fields)}
        return [(where, {**record, "category": categories.get(_key(record), "")}) for where, record in records]
    seen: set[str] = set()
    for where, record in records:
        if record["category"] not in CATEGORIES.values():
            known = ", ".join(CATEGORIES.values())
            raise InputError(f"{where}: category {record['category']!r} is not one of {known}; mend the line")
        if not accepted(record["answer"]):
            raise InputError(f"{where}: answer is empty; mend or remove the line")
        if record["image"] in seen:
            raise InputError(
                f"{where}: image {record['image']} is asked about twice; the test set asks once: remove a line"
            )
        seen.add(record["image"])
    return records


def _key(record: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(one_line(record[field]) for field in FIELDS[False])
