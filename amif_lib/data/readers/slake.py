"""Reader for SLAKE 1.0: three JSON files, English and Chinese questions mixed, and one folder per image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from amif_lib.core import paths
from amif_lib.data.readers import files
from amif_lib.data.records import Question

REQUIRED = ("qid", "img_name", "question", "answer", "q_lang", "answer_type", "content_type")
TRAINING_FILES = ("official",)
LANGUAGES = {"en": ("en",), "zh": ("zh",), "en+zh": ("en", "zh")}
UNANSWERED = "1622"  # an English training question whose answer the release leaves empty
log = logging.getLogger(__name__)


def read(
    root: Path, layout: Mapping[str, str], training_file: str = "official", *, language: str = "en"
) -> list[Question]:
    """The questions of all three splits in one language, or in both, in the files' order.

    Answers that list several things (`Lung, Heart`) are kept whole: their order counts, as usual with exact match. The
    one question without an answer (`UNANSWERED`) is left out and logged. `closed_field` is `answer_type`. Of English
    questions `closed_yes_no` means that the answer is yes or no; Chinese has no single such pair (是/否, 有/没有, ...),
    so there it is `answer_type` too. `question_type` is the release's `content_type`.

    `language` is `en`, `zh`, or `en+zh`, which no run may learn from: the languages split the images differently, so
    that 781 of the 1,061 English test questions are on images of Chinese training questions. `layout`: `train`, `val`,
    `test` (JSON files) and `images` (folder of `xmlab<n>/source.jpg`).
    """
    seen, questions = {}, []
    for split in ("train", "val", "test"):
        path = root / layout[split]
        for number, record in enumerate(files.read_json(path)):
            qid = str(record.get("qid", f"? (number {number})"))
            where = f"{paths.shown(path)}: record qid {qid}"
            if qid == UNANSWERED and not str(record.get("answer", "")).strip():
                log.info("SLAKE: the question without an answer is left out (qid %s)", qid)
                continue
            files.check_keys(record, REQUIRED, where)
            files.check_one_of(record["q_lang"], LANGUAGES["en+zh"], f"{where}: q_lang")
            files.check_one_of(record["answer_type"].strip().upper(), ("OPEN", "CLOSED"), f"{where}: answer_type")
            files.check_once(f"qid {qid}", seen, where)
            if record["q_lang"] not in LANGUAGES[language]:
                continue
            image = root / layout["images"] / record["img_name"]
            closed = record["answer_type"].strip().upper() == "CLOSED"
            more = {
                "image_id": image.parent.name,
                "closed_field": closed,
                "question_type": record["content_type"].strip(),
                "language": record["q_lang"],
                "extra": {key: str(record.get(key, "")) for key in ("base_type", "modality", "location")},
            }
            if record["q_lang"] == "zh":
                more["closed_yes_no"] = closed
            questions.append(files.question(qid, image, record["question"], [record["answer"]], split, **more))
    return questions
