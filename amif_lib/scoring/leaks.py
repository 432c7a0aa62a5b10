"""What the training questions of a set give away about its test questions, and what can be scored without any model.

`lines` takes any list of questions, `report` a set that has a manifest; accuracies are percentages.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests
from amif_lib.data.records import Question, close_punctuation, normalise_answer
from amif_lib.scoring import baselines, protocols

WORDINGS = ("rephrase", "frame")  # keys of `Question.extra` that hold the question in other words
SCORES = {"ceiling": "vocabulary_ceiling", "lookup": "nearest_question", "most_frequent": "most_frequent"}
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
    "paraphrase_in_train": "test questions with a paraphrase and their answer in training, on the same image "
    "(empty: no rephrased or framed wordings, so it cannot be told)",
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

    Without `training_file` all variants of the manifest are measured. Raises InputError as `load_questions` does.
    """
    manifest = manifests.load(name)
    choices = {variant.name: load.variant_settings(manifest.reader, variant.name) for variant in manifest.variants}
    choices = {training_file: {"training_file": training_file}} if training_file else choices or {"default": {}}
    frames: list[pd.DataFrame] = []
    for file, settings in choices.items():
        try:
            questions = load.load_questions(name, images=False, **settings)
        except InputError:
            if not frames:
                raise
            continue  # it needs files that the default does not
        frames.append(lines(questions, name, file))
    return pd.concat(frames, ignore_index=True)


def check(name: str) -> pd.DataFrame:
    """A question set's leaks against those that its manifest records: `data_set, item, status (ok|changed), detail`.

    Empty where the questions cannot be read, which the data check says.
    """
    recorded = {variant.name: variant.leaks_expected for variant in manifests.load(name).variants}
    try:
        measured = report(name) if any(recorded.values()) else pd.DataFrame(columns=list(COLUMNS))
    except InputError:
        measured = pd.DataFrame(columns=list(COLUMNS))
    rows, measured = [], measured.set_index(["training_file", "training", "test"])
    for variant, parts in recorded.items():
        for part in parts if variant in measured.index.get_level_values(0) else ():
            for key, value in part.model_dump(exclude={"training", "test"}, exclude_none=True).items():
                have = measured.at[(variant, part.training, part.test), key]
                same = abs(have - value) < 0.006  # percentages are recorded with two decimals
                detail = f"{have:.10g}" + ("" if same else f", expected {value:.10g}")
                item = f"{variant}: {key} ({part.training}, {part.test})"
                rows.append((name, item, "ok" if same else "changed", detail))
    return pd.DataFrame(rows, columns=["data_set", "item", "status", "detail"])


def lines(questions: Sequence[Question], data_set: str = "", training_file: str = "") -> pd.DataFrame:
    """One line per training part and test part, with the columns `COLUMNS`.

    The training part is `train` and, where there are validation questions, `train+val`. Where the questions are in
    several languages, each language's test questions are compared with each language's training questions and with all.
    """
    languages = list(dict.fromkeys(q.language for q in questions))
    rows = []
    for language in languages:
        test = [q for q in questions if q.split == "test" and q.language == language]
        label = f"{language} test" if len(languages) > 1 else "test"
        for training, train in _training_parts(questions, languages):
            if train and test:
                about = {"data_set": data_set, "training_file": training_file, "training": training, "test": label}
                rows.append(about | measure(train, test))
    if not rows:
        splits = ", ".join(sorted({q.split for q in questions})) or "none"
        raise InputError(f"leaks: need training and test questions, found only: {splits}; name files of both")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _training_parts(questions: Sequence[Question], languages: list[str]) -> Iterator[tuple[str, list[Question]]]:
    has_val = any(q.split == "val" for q in questions)
    together = {"+".join(languages): languages} if len(languages) > 1 else {"": languages}
    apart = {language: [language] for language in languages} if len(languages) > 1 else {}
    for name, chosen in (apart | together).items():
        for splits in [("train",), ("train", "val")] if has_val else [("train",)]:
            part = [q for q in questions if q.split in splits and q.language in chosen]
            yield f"{name} {'+'.join(splits)}".strip(), part


def measure(training: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """The counts (`MEANINGS`) and percentages of test questions against training questions."""
    images = {q.image_id for q in training}
    on_image = {(q.image_id, plain(q.question), a) for q in training for a in q.answers}
    words = {plain(q.question) for q in training}
    linked = {q.extra.get("linked_id", "") for q in training} - {""}
    has_wordings = any(q.extra.get(key) for q in test for key in WORDINGS)
    has_links = any(q.extra.get("linked_id") for q in test)
    vocabulary = {answer for q in training for answer in q.answers}
    unseen = [q for q in test if not vocabulary.intersection(q.answers)]

    def in_training(question: Question, texts: Iterable[str]) -> bool:
        return any((question.image_id, text, answer) in on_image for text in texts for answer in question.answers)

    found: dict[str, float] = {
        "n_train": len(training),
        "n_test": len(test),
        "train_images": len(images),
        "test_images": len({q.image_id for q in test}),
        "test_images_in_train": len({q.image_id for q in test} & images),
        "on_train_image": sum(q.image_id in images for q in test),
        "paraphrase_in_train": sum(in_training(q, _wordings(q)) for q in test) if has_wordings else float("nan"),
        "linked_in_train": sum(q.extra.get("linked_id", "") in linked for q in test) if has_links else float("nan"),
        "repeated_in_train": sum(in_training(q, [plain(q.question)]) for q in test),
        "same_words_in_train": sum(plain(q.question) in words for q in test),
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


def plain(text: str) -> str:
    """A question's words as they are compared: Unicode NFKC, lower case, no white space around punctuation."""
    return close_punctuation(normalise_answer(unicodedata.normalize("NFKC", text)))


def _wordings(question: Question) -> set[str]:
    """The question's words and those that the set gives in their place, normalised."""
    texts = (question.question, *(question.extra.get(key, "") for key in WORDINGS))
    return set(map(plain, texts)) - {""}


def in_words(table: pd.DataFrame) -> list[str]:
    """What the lines of a table say, a sentence or two each."""
    out = []
    for line in table.itertuples():
        where = ", ".join(filter(None, (line.data_set, line.training_file)))
        pair = f"{line.training} ({line.n_train}) against {line.test}"
        text = (
            f"{where + ': ' if where else ''}{pair}: {line.on_train_image} of {line.n_test} test questions are on an "
        )
        text += "image of training, "
        if pd.isna(line.paraphrase_in_train):
            text += f"{line.repeated_in_train} are repeated there; paraphrases cannot be told without other wordings."
        else:
            text += f"{line.paraphrase_in_train:.0f} have a paraphrase with their answer there."
        text += f" {line.unseen_answer} have an answer that training lacks: answering with training answers can reach"
        text += f" {line.ceiling_overall:.2f}% at most (open {line.ceiling_open:.2f}%). The most frequent answer scores"
        text += f" {line.most_frequent_overall:.2f}%"
        if line.on_train_image:
            text += f", that of the nearest question on the same image {line.lookup_overall:.2f}%"
        out.append(text + ".")
    return out


def transposed(table: pd.DataFrame) -> pd.DataFrame:
    """The table for reading: one row per measure with its meaning, one column per line."""
    names = dict(MEANINGS)
    for score, baseline in SCORES.items():
        label = baselines.BASELINES[baseline][0]
        names |= {f"{score}_{part}": f"{label}: {part.replace('_yes_no', ', yes/no')}, %" for part in PARTS}
    body = {"": list(names.values())}
    for line in table.to_dict("records"):
        head = " / ".join(filter(None, (line["training_file"], line["training"], line["test"])))
        body[head] = ["" if pd.isna(line[column]) else f"{line[column]:.10g}" for column in names]
    return pd.DataFrame(body)
