"""Leakage and ceilings of a question set: what its training questions give away about its test questions.

Counted per training file: test questions on an image that is in training, with a paraphrase there (same image, same
words as the question, its rephrasing or its template), repeated outright, or with an answer that no training question
has; and what can be scored without any model: by the most frequent answer, by the answer of the nearest question on the
same image, and at most by a method that answers with training answers (the ceiling). Accuracies are percentages under
both definitions of a closed question. `lines` takes any list of questions, `from_records` plain mappings, `report` a
set that has a manifest. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.data.records import Question, normalise_answer
from amif_lib.scoring import baselines, protocols

WORDINGS = ("rephrase", "frame")  # keys of `Question.extra` that hold the question in other words
SCORES = {  # column prefix -> baseline
    "ceiling": "vocabulary_ceiling",
    "lookup": "nearest_question",
    "most_frequent": "most_frequent",
}
PARTS = {  # column ending -> split and definition of `protocols.accuracy_table`
    "overall": ("overall", "answer_type"),
    "open": ("open", "answer_type"),
    "closed": ("closed", "answer_type"),
    "open_yes_no": ("open", "yes_no"),
    "closed_yes_no": ("closed", "yes_no"),
}
MEANINGS = {
    "n_train": "training questions",
    "n_test": "test questions",
    "train_images": "images with a training question",
    "test_images": "images with a test question",
    "test_images_in_train": "of these, images that have a training question too",
    "on_train_image": "test questions on such an image",
    "paraphrase_in_train": "test questions with a paraphrase and their answer in training, on the same image",
    "linked_in_train": "test questions that the set itself links with a training question (empty: it has no links)",
    "repeated_in_train": "test questions repeated in training: image, question and answer",
    "same_words_in_train": "test questions whose words occur in training, on whatever image",
    "unseen_answer": "test questions whose answer no training question has",
    "unseen_open": "of these, open (answer_type)",
    "unseen_closed": "of these, closed (answer_type)",
    "distinct_answers": "distinct test answers",
    "distinct_unseen": "of these, in no training question",
}
ABOUT = ("data_set", "training_file", "training", "test")
COLUMNS = (*ABOUT, *MEANINGS, *(f"{score}_{part}" for score in SCORES for part in PARTS))


def report(name: str, training_file: str = "") -> pd.DataFrame:
    """Leaks and ceilings of a question set, one line per training file (`lines` for a set with several languages).

    Without `training_file` all variants that the manifest lists are measured; of a set without variants also the
    image-disjoint part, the questions whose image has no test question. Raises InputError as `load_questions` does.
    """
    manifest = manifests.load(name)
    choices = {variant.name: datasets.variant_settings(manifest.reader, variant.name) for variant in manifest.variants}
    choices = {training_file: {"training_file": training_file}} if training_file else choices or {"default": {}}
    frames: list[pd.DataFrame] = []
    for file, settings in choices.items():
        try:
            questions = datasets.load_questions(name, images=False, **settings)
        except InputError:
            if not frames:
                raise
            continue  # it needs files that the default does not
        frames.append(lines(questions, name, file))
    if not training_file and not manifest.variants and (apart := image_disjoint(questions)):
        frames.append(lines(apart, name, f"{file}, images without a test question"))
    return pd.concat(frames, ignore_index=True)


def image_disjoint(questions: Sequence[Question]) -> list[Question]:
    """The questions without the training questions on an image of a test question; empty where that changes nothing
    or leaves no training question."""
    taken = {q.image_id for q in questions if q.split == "test"}
    kept = [q for q in questions if q.split != "train" or q.image_id not in taken]
    n_train = sum(q.split == "train" for q in kept)
    return kept if n_train > 0 and len(kept) < len(questions) else []


def lines(questions: Sequence[Question], data_set: str = "", training_file: str = "") -> pd.DataFrame:
    """One line per training part and test part, with the columns `COLUMNS`.

    The training part is `train` and, where there are validation questions, `train+val`. Where the questions are in
    several languages, each language's test questions are compared with each language's training questions and with all.
    """
    languages = list(dict.fromkeys(q.language for q in questions))
    rows = []
    for training, train, wanted in _training_parts(questions, languages):
        for language in languages:
            test = [q for q in questions if q.split == "test" and q.language == language]
            if train and test:
                label = f"{language} test" if len(languages) > 1 else "test"
                about = {"data_set": data_set, "training_file": training_file, "training": training, "test": label}
                rows.append((language, wanted, about | measure(train, test)))
    if not rows:
        splits = ", ".join(sorted({q.split for q in questions})) or "none"
        raise InputError(f"leaks: need training and test questions, found only: {splits}; name files of both")
    rows.sort(key=lambda row: languages.index(row[0]))  # by test language; stable
    return pd.DataFrame([row for _, _, row in rows], columns=list(COLUMNS))


def _training_parts(questions: Sequence[Question], languages: list[str]) -> Iterator[tuple[str, list[Question], str]]:
    has_val = any(q.split == "val" for q in questions)
    for language in [*languages, ""] if len(languages) > 1 else [""]:
        named = language or ("+".join(languages) if len(languages) > 1 else "")
        for splits in [("train",), ("train", "val")] if has_val else [("train",)]:
            part = [q for q in questions if q.split in splits and language in ("", q.language)]
            yield f"{named} {'+'.join(splits)}".strip(), part, named


def measure(training: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """The counts (`MEANINGS`) and percentages of test questions against training questions."""
    images = {q.image_id for q in training}
    on_image = {(q.image_id, normalise_answer(q.question), a) for q in training for a in q.answers}
    words = {normalise_answer(q.question) for q in training}
    linked = {q.extra.get("linked_id", "") for q in training} - {""}
    has_links = any(q.extra.get("linked_id") for q in test)
    vocabulary = {answer for q in training for answer in q.answers}
    unseen = [q for q in test if not vocabulary.intersection(q.answers)]

    def in_training(question: Question, wordings: Iterable[str]) -> bool:
        return any((question.image_id, w, a) in on_image for w in wordings for a in question.answers)

    found: dict[str, float] = {
        "n_train": len(training),
        "n_test": len(test),
        "train_images": len(images),
        "test_images": len({q.image_id for q in test}),
        "test_images_in_train": len({q.image_id for q in test} & images),
        "on_train_image": sum(q.image_id in images for q in test),
        "paraphrase_in_train": sum(in_training(q, wordings(q)) for q in test),
        "linked_in_train": sum(q.extra.get("linked_id", "") in linked for q in test) if has_links else float("nan"),
        "repeated_in_train": sum(in_training(q, [normalise_answer(q.question)]) for q in test),
        "same_words_in_train": sum(normalise_answer(q.question) in words for q in test),
        "unseen_answer": len(unseen),
        "unseen_open": sum(not q.closed_field for q in unseen),
        "unseen_closed": sum(q.closed_field for q in unseen),
        "distinct_answers": len({q.answer for q in test}),
        "distinct_unseen": len({q.answer for q in unseen}),
    }
    both = [*(replace(q, split="train") for q in training), *test]
    for name, baseline in SCORES.items():
        scored = protocols.score(baselines.BASELINES[baseline][1](both), None, protocols.PROTOCOLS["generate"])
        accuracy = protocols.accuracy_table(scored).set_index(["split", "definition"])["accuracy"]
        found |= {f"{name}_{part}": round(accuracy[key], 2) for part, key in PARTS.items()}
    return found


def wordings(question: Question) -> set[str]:
    """The question's words and those that the set gives in their place, normalised."""
    texts = (question.question, *(question.extra.get(key, "") for key in WORDINGS))
    return {normalise_answer(text) for text in texts} - {""}


def from_records(records: Iterable[Mapping[str, Any]], closed: Iterable[str] = ("yes", "no")) -> list[Question]:
    """Questions from plain records with `question`, `answer` (a text or a list of accepted ones), `image` and `split`.

    Optional: `question_id`, `closed` (true or false, the set's own field), `language`, `linked_id`, `rephrase`, `frame`.
    `closed` names the answers that make a question closed where a record does not say.
    """
    from pathlib import Path

    yes_no, out = set(closed), []
    for number, record in enumerate(records):
        given = record["answer"]
        answers = tuple(map(normalise_answer, given if isinstance(given, list | tuple) else [given]))
        is_yes_no = answers[0] in yes_no
        out.append(
            Question(
                question_id=str(record.get("question_id", number)),
                image_id=str(record["image"]),
                image_path=Path(str(record["image"])),
                question=" ".join(str(record["question"]).split()),
                answers=answers,
                split=record["split"],
                closed_field=record.get("closed", is_yes_no),
                closed_yes_no=is_yes_no,
                language=record.get("language", "en"),
                extra={key: str(record[key]) for key in ("linked_id", *WORDINGS) if record.get(key)},
            )
        )
    return out


def main_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Of `report`'s lines one per training file and test part: all its training questions, without validation ones."""
    plain = table[table["training"].str.endswith("train")]
    largest = plain.groupby(["data_set", "training_file", "test"], sort=False)["n_train"].idxmax()
    return plain.loc[largest].reset_index(drop=True)


def in_words(table: pd.DataFrame) -> list[str]:
    """What the lines of a table say, a sentence or two each."""
    out = []
    for line in table.itertuples():
        of = f"of {line.n_test} test questions"
        where = ", ".join(filter(None, (line.data_set, line.training_file)))
        pair = f"{line.training} ({line.n_train}) against {line.test}"
        text = f"{where + ': ' if where else ''}{pair}: {line.on_train_image} {of} are on an image of training"
        text += f", {line.paraphrase_in_train} have a paraphrase with their answer there."
        text += f" {line.unseen_answer} have an answer that training lacks: answering with training answers can reach"
        text += f" {line.ceiling_overall:.2f}% at most (open {line.ceiling_open:.2f}%). The most frequent answer scores"
        text += f" {line.most_frequent_overall:.2f}%"
        if line.on_train_image:
            text += f", that of the nearest question on the same image {line.lookup_overall:.2f}%"
        text += "."
        out.append(text)
    return out


def transposed(table: pd.DataFrame) -> pd.DataFrame:
    """The table for reading: one row per measure with its meaning, one column per line."""
    heads = [" / ".join(filter(None, (line.training_file, line.training, line.test))) for line in table.itertuples()]
    names = {
        **MEANINGS,
        **{
            f"{score}_{part}": f"{baselines.BASELINES[SCORES[score]][0]}: {part.replace('_yes_no', ', yes/no')}, %"
            for score in SCORES
            for part in PARTS
        },
    }
    body = [
        [names[column], *("" if pd.isna(value) else f"{value:.10g}" for value in table[column])] for column in names
    ]
    return pd.DataFrame(body, columns=["", *heads])
