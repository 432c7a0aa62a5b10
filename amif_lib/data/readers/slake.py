"""Reader for SLAKE 1.0: three JSON files, English and Chinese questions mixed, and one folder per image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import YES_NO, Images, Record, check_keys, check_once, choose, one_line, read_json
from amif_lib.data.records import Question, normalise_answer

REQUIRED = ("qid", "img_name", "question", "answer", "q_lang", "answer_type", "content_type")
LANGUAGES = {"en": ("en",), "zh": ("zh",), "en+zh": ("en", "zh")}
UNANSWERED = ("1622",)  # an English training question whose answer the release leaves empty
log = logging.getLogger(__name__)


def read(
    root: Path, layout: Mapping[str, str], training_file: str = "default", *, language: str = "en", images: bool = True
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
        language: `en`, `zh`, or `en+zh`, which no run may learn from: the languages split the images differently, so
            that 781 of the 1,061 English test questions are on images of Chinese training questions.
        images: whether every question's image must be there; without, the annotations alone can be read and counted.

    Raises:
        InputError: unknown language; malformed record or missing image, naming file and qid.
    """
    choose(training_file, ("official",), "SLAKE")
    if language not in LANGUAGES:
        raise InputError(f"language: {language!r} is not known for SLAKE; choose one of {', '.join(LANGUAGES)}")
    folder, present, seen, questions, unanswered = root / layout["images"], Images(), {}, [], []
    for split in ("train", "val", "test"):
        path = root / layout[split]
        for number, record in enumerate(read_json(path, "slake")):
            _check(record, f"{paths.shown(path)}: record qid {record.get('qid', f'? (number {number})')}", seen)
            if record["q_lang"] not in LANGUAGES[language]:
                continue
            if not str(record["answer"]).strip():
                unanswered.append(str(record["qid"]))
                continue
            questions.append(_question(record, split, folder))
            if images:
                present.require(questions[-1].image_path, f"qid {record['qid']}")
    if unanswered:
        log.info("SLAKE: %d question without an answer left out (qid %s)", len(unanswered), ", ".join(unanswered))
    return questions


def _check(record: Record, where: str, seen: dict[str, str]) -> None:
    empty = ("answer",) if str(record.get("qid")) in UNANSWERED else ()
    check_keys(record, REQUIRED, where, may_be_empty=empty)
    if record["q_lang"] not in LANGUAGES["en+zh"]:
        raise InputError(f"{where}: q_lang {record['q_lang']!r} is neither en nor zh")
    if record["answer_type"].strip().upper() not in ("OPEN", "CLOSED"):
        raise InputError(f"{where}: answer_type {record['answer_type']!r} is neither OPEN nor CLOSED")
    check_once(f"qid {record['qid']}", seen, where)


def _question(record: Record, split: str, folder: Path) -> Question:
    answer = normalise_answer(record["answer"])
    closed = record["answer_type"].strip().upper() == "CLOSED"
    return Question(
        question_id=str(record["qid"]),
        image_id=Path(record["img_name"]).parent.name,
        image_path=folder / record["img_name"],
        question=one_line(record["question"]),
        answers=(answer,),
        split=split,
        closed_field=closed,
        closed_yes_no=answer in YES_NO if record["q_lang"] == "en" else closed,
        question_type=record["content_type"].strip(),
        language=record["q_lang"],
        extra={key: str(record.get(key, "")) for key in ("base_type", "modality", "location")},
    )
