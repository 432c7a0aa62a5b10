"""Reader for PathVQA: the official pickle files or their JSON form, and a folder of images per split."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.annotations import YES_NO, check_keys, check_list, choose, read_json, require_image, text
from amif_lib.data.records import Question, normalise_answer

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
REQUIRED = ("image", "question", "answer")
TRAINING_FILES = ("official", "deduplicated")
KINDS = ("what", "where", "when", "whose", "how")  # the paper's kinds of open question, told by the first word


class _PlainUnpickler(pickle.Unpickler):
    """Reads a pickle of lists, dicts, texts and numbers, and refuses one that names anything to import.

    A pickle can only run code by naming a class or function, and those built-in types need no name. The official release
    has its questions in no other form, so that refusing pickle altogether would send users to an unsafe conversion.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise _Refused(f"{module}.{name}")


class _Refused(Exception):
    pass


def _read_pickle(path: Path) -> list[dict[str, Any]]:
    """The records of an official file: a list of dicts `image, question, answer`."""
    name = paths.shown(path)
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="utf-8").load()
    except _Refused as refused:
        raise InputError(
            f"{name}: names {refused}, which plain questions never need: such a file can run code; it was not opened, "
            "fetch it from the official place"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        detail = text(error)[:100] or type(error).__name__
        raise InputError(f"{name}: not a readable pickle of questions ({detail}); fetch the file again") from None
    return check_list(content, name)


def _read_lxmert(path: Path) -> list[dict[str, Any]]:
    """The records of the JSON form: per image, parallel lists of questions and of `{answer: 1}`."""
    name, out = paths.shown(path), []
    for number, record in enumerate(read_json(path, "pathvqa")):
        where = f"{name}: record {record.get('img_id', f'number {number}')}"
        check_keys(record, ("img_id",), where)
        asked, answered = (
            record[key].get("pvqa") if isinstance(record.get(key), dict) else None for key in ("sentf", "labelf")
        )
        if not isinstance(asked, list) or not isinstance(answered, list):
            raise InputError(f"{where}: key sentf.pvqa or labelf.pvqa is missing or not a list; mend or remove it")
        if len(asked) != len(answered):
            raise InputError(f"{where}: {len(asked)} questions but {len(answered)} answers; mend or remove it")
        for question, label in zip(asked, answered, strict=True):
            if not isinstance(label, dict) or len(label) != 1:
                raise InputError(f"{where}: an answer is not of the form {{answer: 1}}; mend or remove it")
            out.append({"image": record["img_id"], "question": question, "answer": next(iter(label))})
    return out


def records(root: Path, layout: Mapping[str, str], split: str) -> list[dict[str, Any]]:
    """The records `image, question, answer` of a split as the file has them, checked; an `id` is added.

    The official pickle is read where it lies there, else the JSON form. The release has no ids: `id` is the image's name
    and the question's number on that image. Raises InputError that names the file and the record.
    """
    official, other = (root / layout[key].format(split=split) for key in ("questions", "questions_json"))
    path = other if other.is_file() and not official.is_file() else official
    if not path.is_file():
        raise InputError(
            f"{paths.shown(official)}: no such file (nor {paths.shown(other)}); see data_manifests/pathvqa.md for where "
            "to get it"
        )
    content = _read_lxmert(path) if path == other else _read_pickle(path)
    numbers: Counter[str] = Counter()
    out = []
    for number, record in enumerate(content):
        check_keys(record, REQUIRED, f"{paths.shown(path)}: record number {number} ({record.get('image', '?')})")
        image = str(record["image"]).removesuffix(".jpg")
        numbers[image] += 1
        out.append({**record, "image": image, "id": f"{image}-{numbers[image]}"})
    return out


def _without_duplicates(content: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Without the later ones of equal (image, question, answer), compared as the file has them.

    The hub's deduplicated set has 42 test questions fewer than the official 6,761. Normalised texts have 44 duplicates, so
    that rule cannot be the hub's; whether plain equality is could not be checked on the official files.
    """
    seen: set[tuple[str, str, str]] = set()
    for record in content:
        key = (record["image"], str(record["question"]), str(record["answer"]))
        if key not in seen:
            seen.add(key)
            yield record


def read(
    root: Path, layout: Mapping[str, str], training_file: str = "default", *, images: bool = True
) -> list[Question]:
    """The questions of all three splits, in the files' order.

    A question is closed when its answer is yes or no: the set has no field for it. `question_type` is `yes/no` or the
    first word of an open question (`what, where, when, whose, how`, else `other`). Questions' double blanks and answers'
    blanks and capitals are evened out. Images without a question are not read.

    Args:
        root: folder that holds the set.
        layout: `questions` (pickle) and `questions_json` (its JSON form), `images` (folder), each with `{split}` in it.
        training_file: `official` (also `default`), or `deduplicated`, which drops duplicates from every split.
        images: whether every question's image must be there; without, the annotations alone can be read and counted.

    Raises:
        InputError: unknown training file; pickle that is not plain data; malformed record or missing image, naming file
            and record.
    """
    chosen = choose(training_file, TRAINING_FILES, "PathVQA")
    questions = []
    for split in SPLITS:
        folder, content = root / layout["images"].format(split=split), records(root, layout, split)
        present = {path.name for path in folder.glob("*")} if images else set()
        kept = list(_without_duplicates(content)) if chosen == "deduplicated" else content
        if len(kept) < len(content):
            log.info("PathVQA, %s: %d duplicates dropped", split, len(content) - len(kept))
        for record in kept:
            name = f"{record['image']}.jpg"
            if images:
                require_image(folder / name, present, name, f"record {record['id']}")
            questions.append(_question(record, split, folder / name))
    return questions


def _question(record: dict[str, Any], split: str, path: Path) -> Question:
    question, answer = text(record["question"]), normalise_answer(record["answer"])
    first = question.split()[0].lower()
    closed = answer in YES_NO
    return Question(
        question_id=record["id"],
        image_id=record["image"],
        image_path=path,
        question=question,
        answers=(answer,),
        split=split,
        closed_field=closed,
        closed_yes_no=closed,
        question_type="yes/no" if closed else first if first in KINDS else "other",
    )
