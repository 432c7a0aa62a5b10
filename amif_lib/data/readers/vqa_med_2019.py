"""Reader for VQA-Med-2019 (ImageCLEF): text files whose fields are separated by `|`, and a folder of images per split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.annotations import YES_NO, choose, read_text, require_image, text
from amif_lib.data.records import Question, normalise_answer

SPLITS = ("train", "val", "test")
TRAINING_FILES = ("all", "without_abnormality")
# Categories C1 to C4. The test file writes them in every line; training and validation questions have a file each.
CATEGORIES = {"C1_Modality": "modality", "C2_Plane": "plane", "C3_Organ": "organ", "C4_Abnormality": "abnormality"}


def lines(path: Path, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """The records of a file, one a line; blank lines are passed over.

    Raises InputError, naming file and line, for a wrong number of fields or an empty field.
    """
    name, out = paths.shown(path), []
    for number, line in enumerate(read_text(path, "vqa_med_2019").split("\n"), 1):
        if not line.strip():
            continue
        found = [part.strip() for part in line.split("|")]
        if len(found) != len(fields):
            raise InputError(
                f"{name}, line {number}: {len(found)} fields, expected {len(fields)} ({'|'.join(fields)}); mend the line"
            )
        record = dict(zip(fields, found, strict=True))
        empty = [key for key in fields if not record[key]]
        if empty:
            raise InputError(f"{name}, line {number}: {empty[0]} is empty; mend or remove the line")
        out.append({**record, "where": f"{name}, line {number}"})
    if not out:
        raise InputError(f"{name}: has no questions; is it the official file?")
    return out


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


def records(root: Path, layout: Mapping[str, str], split: str) -> list[dict[str, str]]:
    """The records `image, category, question, answer` of a split as the files have them, checked; an `id` is added.

    `category` is `modality`, `plane`, `organ`, `abnormality`, or empty for a training or validation question that no file
    by category has (they may be absent). The release has no ids: `id` is the image's name and the question's number on
    that image. Raises InputError that names file and line.
    """
    path = root / layout[split]
    if split == "test":
        content = lines(path, ("image", "category", "question", "answer"))
        for record in content:
            if record["category"] not in CATEGORIES.values():
                known = ", ".join(CATEGORIES.values())
                raise InputError(f"{record['where']}: category {record['category']!r} is not one of {known}")
            if not accepted(record["answer"]):
                raise InputError(f"{record['where']}: answer is empty; mend or remove the line")
        doubled = [image for image, n in Counter(record["image"] for record in content).items() if n > 1]
        if doubled:
            raise InputError(f"{paths.shown(path)}: image {doubled[0]} is asked about twice; the test set asks once")
    else:
        fields = ("image", "question", "answer")
        content = lines(path, fields)
        by_category: dict[tuple[str, ...], str] = {}
        for stem, category in CATEGORIES.items():
            part = root / layout["categories"].format(category=stem, split=split, folder=path.parent.name)
            if part.is_file():
                by_category |= {tuple(text(record[key]) for key in fields): category for record in lines(part, fields)}
        for record in content:
            record["category"] = by_category.get(tuple(text(record[key]) for key in fields), "")
    numbers: Counter[str] = Counter()
    for record in content:
        numbers[record["image"]] += 1
        record["id"] = f"{record['image']}-{numbers[record['image']]}"
    return content


def read(
    root: Path, layout: Mapping[str, str], training_file: str = "default", *, images: bool = True
) -> list[Question]:
    """The questions of all three splits, in the files' order.

    A question is closed when its (first) answer is yes or no: the set has no field for it. `question_type` is the
    category. Several answers are accepted only for test questions (`accepted`).

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
    questions = []
    for split in SPLITS:
        folder = root / layout[f"{split}_images"]
        present = {path.name for path in folder.glob("*")} if images else set()
        for record in records(root, layout, split):
            if chosen == "without_abnormality":
                if not record["category"]:
                    raise InputError(
                        f"{record['where']}: the question is in no file by category, which training_file "
                        f"without_abnormality needs; fetch {layout['categories']} or choose all"
                    )
                if record["category"] == "abnormality":
                    continue
            name = f"{record['image']}.jpg"
            if images:
                require_image(folder / name, present, name, record["where"])
            questions.append(_question(record, split, folder / name))
    return questions


def _question(record: dict[str, str], split: str, path: Path) -> Question:
    answers = accepted(record["answer"]) if split == "test" else (normalise_answer(record["answer"]),)
    closed = answers[0] in YES_NO
    return Question(
        question_id=record["id"],
        image_id=record["image"],
        image_path=path,
        question=text(record["question"]),
        answers=answers,
        split=split,
        closed_field=closed,
        closed_yes_no=closed,
        question_type=record["category"],
    )
