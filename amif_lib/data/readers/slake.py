"""Reader for SLAKE 1.0: three JSON files, English and Chinese questions mixed, and one folder per image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.annotations import YES_NO, check_keys, choose, read_json, require_image, text
from amif_lib.data.records import Question, normalise_answer

log = logging.getLogger(__name__)

REQUIRED = ("qid", "img_name", "question", "answer", "q_lang", "answer_type", "content_type")
LANGUAGES = {"en": ("en",), "zh": ("zh",), "en+zh": ("en", "zh")}
UNANSWERED = ("1622",)  # an English training question whose answer the release leaves empty
LEAK = (
    "the two languages split the images differently: 781 of the 1,061 English test questions are on images of Chinese "
    "training questions"
)


def records(path: Path, seen: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The records of one split's JSON file, both languages, checked: keys, known language and type, each qid once.

    Nothing may be empty but the answers of `UNANSWERED`. `seen` maps the qids of files read before to the files' names,
    and is added to. Raises InputError that names the file and the record's qid.
    """
    name, content = paths.shown(path), read_json(path, "slake")
    seen = {} if seen is None else seen
    for number, record in enumerate(content):
        qid = str(record.get("qid", f"? (number {number})"))
        where = f"{name}: record qid {qid}"
        check_keys(record, REQUIRED, where, may_be_empty=("answer",) if qid in UNANSWERED else ())
        if record["q_lang"] not in ("en", "zh"):
            raise InputError(f"{where}: q_lang {record['q_lang']!r} is neither en nor zh")
        if str(record["answer_type"]).strip().upper() not in ("OPEN", "CLOSED"):
            raise InputError(f"{where}: answer_type {record['answer_type']!r} is neither OPEN nor CLOSED")
        if qid in seen:
            raise InputError(f"{where}: this qid occurs twice ({seen[qid]}); make it unique")
        seen[qid] = name
    return content


def read(
    root: Path,
    layout: Mapping[str, str],
    training_file: str = "default",
    *,
    language: str = "en",
    allow_cross_language: bool = False,
    images: bool = True,
) -> list[Question]:
    """The questions of all three splits in one language, or in both, in the files' order.

    Answers that list several things (`Lung, Heart`) are kept whole: the order counts, as in the field's exact match. The
    one question without an answer (`UNANSWERED`) is left out and logged. `closed_field` is `answer_type`. For English,
    `closed_yes_no` asks for yes or no; Chinese has no such pair (是/否, 有/没有, 包含/不包含, ...), so there
    `closed_yes_no` is `answer_type` too. `question_type` is the release's `content_type`.

    Args:
        root: folder that holds the set.
        layout: `train`, `val`, `test` (JSON files) and `images` (folder of `xmlab<n>/source.jpg`), under `root`.
        training_file: `official`, or `default`, the same.
        language: `en`, `zh` or `en+zh`.
        allow_cross_language: permits `en+zh`, where training questions are on test images.
        images: whether every question's image must be there; without, the annotations alone can be read and counted.

    Raises:
        InputError: unknown language, `en+zh` without permission; malformed record or missing image, naming file and qid.
    """
    choose(training_file, ("official",), "SLAKE")
    if language not in LANGUAGES:
        raise InputError(f"language: {language!r} is not known for SLAKE; choose one of {', '.join(LANGUAGES)}")
    if language == "en+zh" and not allow_cross_language:
        raise InputError(
            f"language: en+zh trains on test images, for {LEAK}; choose en or zh, or set allow_cross_language: true"
        )
    folder, seen, questions, left_out = root / layout["images"], {}, [], []
    present = {path.relative_to(folder).as_posix() for path in folder.glob("*/*")} if images else set()
    for split in ("train", "val", "test"):
        for record in records(root / layout[split], seen):
            if record["q_lang"] not in LANGUAGES[language]:
                continue
            if not str(record["answer"]).strip():
                left_out.append(str(record["qid"]))
                continue
            if images:
                name = str(record["img_name"])
                require_image(folder / name, present, name, f"qid {record['qid']}")
            questions.append(_question(record, split, folder))
    if left_out:
        log.info("SLAKE: %d question without an answer left out (qid %s)", len(left_out), ", ".join(left_out))
    return questions


def _question(record: dict[str, Any], split: str, folder: Path) -> Question:
    answer = normalise_answer(record["answer"])
    closed = str(record["answer_type"]).strip().upper() == "CLOSED"
    return Question(
        question_id=str(record["qid"]),
        image_id=Path(record["img_name"]).parent.name,
        image_path=folder / record["img_name"],
        question=text(record["question"]),
        answers=(answer,),
        split=split,
        closed_field=closed,
        closed_yes_no=answer in YES_NO if record["q_lang"] == "en" else closed,
        question_type=str(record["content_type"]).strip(),
        language=record["q_lang"],
        extra={key: str(record.get(key, "")) for key in ("base_type", "modality", "location")},
    )
