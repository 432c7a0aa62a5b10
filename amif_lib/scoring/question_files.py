"""Anyone's question-answer file as questions.

Understood are the field names of VQA-RAD and MEVF, SLAKE, PathVQA and VQA v2, and LXMERT's layouts (`img_id` with
`labelf` and `sentf`, or with `label` and `sent`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.records import Question, normalise_answer
from amif_lib.scoring import leaks, user_files

# What a field may be called, most telling name first.
COLUMNS = {
    "question": ("question", "questions", "sent", "query"),
    "answer": ("answer", "answers", "label", "gt_answer"),
    "image": ("image_name", "img_name", "image", "img", "image_id", "img_id", "imageid", "image_path", "file_name"),
    "split": ("split", "phrase_type", "subset"),
    "question_id": ("qid", "question_id", "qid_unique", "id"),
    "linked_id": ("qid_linked_id", "qid_para"),
    "rephrase": ("question_rephrase", "q_rephase"),
    "frame": ("question_frame", "q_framed"),
    "closed": ("answer_type",),
    "language": ("q_lang", "language", "lang"),
}
REQUIRED = ("question", "answer", "image")
CLOSED = {"closed": True, "yes/no": True, "open": False, "number": False, "other": False}
NULLS = ("", "null", "none", "nan")  # how a missing wording or link is written
EXTENSION = re.compile(r"\.(jpe?g|png|gif|bmp|tiff?|webp|dcm)$", re.IGNORECASE)


def read(path: Path | str, split: str = "") -> tuple[list[Question], str]:
    """The questions of a file (`user_files.read`), and a line that says which field was read as what.

    `split` (train, val or test), where given, holds for all of them; else it is a record's own field, or what the
    file's name says. Raises InputError, naming file, record and field: missing, empty or not understood.
    """
    table, shown = user_files.read(path), paths.shown(Path(path))
    if "sentf" in table:
        table = _one_question_per_record(table)
    names = user_files.name_columns(table, COLUMNS, REQUIRED, path)
    notes = []
    if not split and "split" not in names:
        split = _split_of_name(Path(path))
        notes.append(f"every record is {split}, by the file's name")
    if split:
        names.pop("split", None)
    questions = user_files.each(table.assign(number=range(len(table))), lambda record: _question(record, names, split))
    if empty := sum(not any(q.answers) for q in questions):
        notes.append(f"{empty} of {len(questions)} answers are empty")
    if "closed" not in names:
        notes.append("no answer_type, so closed means that the answer is yes or no")
    counts = {name: sum(q.split == name for q in questions) for name in user_files.SPLITS}
    found = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    fields = ", ".join(kind if kind == name else f"{kind} = {name}" for kind, name in names.items())
    return questions, "; ".join([f"{shown}: {found}; fields: {fields}", *notes])


def compare(
    files: Sequence[str], train: Sequence[str] = (), test: Sequence[str] = (), say: Callable[[str], object] = str
) -> pd.DataFrame:
    """`leaks.lines` of all the files together; `say` is told of each file what was recognised in it.

    The files under `train` (`test`) take the place of the training (test) questions in `files`.
    """
    given = {split for split, names in (("train", train), ("test", test)) if names}
    questions: list[Question] = []
    for split, names in (("", files), ("train", train), ("test", test)):
        for name in names:
            found, said = read(name, split)
            say(said)
            questions += [q for q in found if split or q.split not in given]
    return leaks.lines(questions)


def is_data_set(given: Sequence[str]) -> bool:
    """Whether what was given is the name of a data set with a manifest rather than files."""
    return len(given) == 1 and not Path(given[0]).exists() and given[0] in manifests.names()


def _one_question_per_record(table: pd.DataFrame) -> pd.DataFrame:
    """LXMERT's `{labelf: {set: [answers]}, sentf: {set: [questions]}}` as a row per question, in `label` and `sent`."""

    def flat(record: Mapping[str, Any]) -> dict[str, list[Any]]:
        out = {}
        for one, several in (("sent", "sentf"), ("label", "labelf")):
            parts = record[several].values() if isinstance(record.get(several), dict) else [record.get(one)]
            out[one] = [item for part in parts for item in (part if isinstance(part, list) else [part])]
        if len(out["sent"]) != len(out["label"]):
            raise ValueError(f"sentf has {len(out['sent'])} questions and labelf {len(out['label'])} answers; mend it")
        return out

    return table.assign(**pd.DataFrame(user_files.each(table, flat), index=table.index)).explode(["sent", "label"])


def _question(record: Mapping[str, Any], names: Mapping[str, str], split: str) -> Question:
    """A record's question. ValueError says what is wrong with it."""
    for kind in REQUIRED:
        value = record[names[kind]]
        if value is None or value != value:
            raise ValueError(f"{names[kind]} is missing; mend or remove the record")
        if kind != "answer" and not (user_files.is_text(value) and str(value).strip()):
            raise ValueError(f"{names[kind]} is empty or not text; mend or remove the record")
    text = {kind: str(record[name]).strip() for kind, name in names.items() if kind != "answer"}
    optional = {kind: value for kind, value in text.items() if value.lower() not in NULLS}
    answers = _answers(record[names["answer"]])
    if not answers:
        raise ValueError(f"{names['answer']} is empty or not text; give a text or a list of texts")
    if not (split := split or user_files.split_of(text["split"])):
        raise ValueError(f"{names['split']} is {text['split']!r}; use train, val or test")
    if "closed" in text and text["closed"].lower() not in CLOSED:
        raise ValueError(f"{names['closed']} is {text['closed']!r}; use OPEN or CLOSED")
    yes_no = answers[0] in ("yes", "no")
    return Question(
        question_id=optional.get("question_id", str(record["number"])),
        image_id=EXTENSION.sub("", text["image"]),
        image_path=Path(text["image"]),
        question=" ".join(text["question"].split()),
        answers=answers,
        split=split,
        closed_field=CLOSED[text["closed"].lower()] if "closed" in text else yes_no,
        closed_yes_no=yes_no,
        language=optional.get("language", "en"),
        extra={kind: optional[kind] for kind in ("linked_id", *leaks.WORDINGS) if kind in optional},
    )


def _answers(value: Any) -> tuple[str, ...]:
    """Accepted answers of a text or number, a list of them or of `{"answer": ...}`, or LXMERT's `{answer: score}`."""
    if isinstance(value, dict):
        value = [value["answer"]] if "answer" in value else list(value)
    given = value if isinstance(value, list) else [value]
    given = [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in given]
    return tuple(map(normalise_answer, given)) if all(map(user_files.is_text, given)) else ()


def _split_of_name(path: Path) -> str:
    found = {split for word in re.split(r"[^a-z]+", path.stem.lower()) if (split := user_files.split_of(word))}
    if len(found) != 1:
        raise InputError(
            f"{paths.shown(path)}: neither a field nor its name says which split it is; use --train or --test FILE"
        )
    return found.pop()
