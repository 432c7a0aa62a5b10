"""The questions made from MedPix-2.0's metadata, against the metadata file itself: counts, answers, splits, priors."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from amif_lib.core.errors import InputError
from amif_lib.data import decontaminate, manifests
from amif_lib.data import load as datasets
from amif_lib.data.readers import medpix2_questions
from amif_lib.data.records import Question
from amif_lib.scoring import leaks, score

NAME = "medpix2_questions"
KEYS = {"modality": "modality", "plane": "plane", "organ": "location"}
OPEN_WORDS = {"what", "how", "which", "in"}


@pytest.fixture
def rows(real_data: Path) -> dict[str, dict[str, str]]:
    """The metadata file's records by image id."""
    lines = (real_data / "medpix2" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["image_id"]: row for row in map(json.loads, lines)}


@pytest.fixture
def questions(rows: dict[str, dict[str, str]]) -> list[Question]:
    return datasets.load_questions(NAME)


def test_every_answer_is_what_the_metadata_says(rows, questions: list[Question]) -> None:
    known = {kind: {str(row[key]).lower() for row in rows.values()} for kind, key in KEYS.items()}
    for question in questions:
        value = rows[question.image_id][KEYS[question.question_type]].lower()
        if not question.closed_field:
            assert question.answers == (value,) and question.question.split()[0] in OPEN_WORDS
            continue
        named = [v for v in known[question.question_type] if question.question.removesuffix("?").endswith(f" {v}")
                 or f" {v} plane" in question.question]  # fmt: skip
        asked = max(named, key=len)  # "ct w/contrast (iv)" is no part of another value's end
        assert question.answer == ("yes" if asked == value else "no"), question
    assert len({question.question_id for question in questions}) == len(questions)
    assert all(q.image_path.name == Path(rows[q.image_id]["file"]).name for q in questions)


def test_case_of_each_image_and_what_is_resampled(rows, questions: list[Question], monkeypatch, tmp_path: Path) -> None:
    """By its id alone, as tables know an image; and an image that names another case is refused."""
    images = [question.image_id for question in questions]
    cases = [rows[image]["case_id"] for image in images]
    assert datasets.clusters(NAME, images) == cases == [question.extra["case_id"] for question in questions]
    assert datasets.clusters("vqa_rad", images) == images and len({*cases}) < len({*images})
    test = {q.question_id: rows[q.image_id]["case_id"] for q in questions if q.split == "test"}
    (tmp_path / "answers.json").write_text(json.dumps(dict.fromkeys(test, "yes")), encoding="utf-8")
    line = score.score_file(tmp_path / "answers.json", NAME).table.iloc[0]
    right = {q.question_id: q.answer == "yes" for q in questions if q.split == "test"}
    by_case = defaultdict(list)
    for question, case in test.items():
        by_case[case].append(right[question])
    rng, names = np.random.default_rng(7), sorted(by_case)
    draws = [np.concatenate([by_case[names[i]] for i in rng.integers(0, 153, 153)]).mean() for _ in range(4000)]
    assert len(names) == 153 and line["accuracy"] == pytest.approx(100 * np.mean([*right.values()]))
    assert [line["ci_low"], line["ci_high"]] == pytest.approx(100 * np.percentile(draws, [2.5, 97.5]), abs=0.3)
    wrong = {"case_id": "MPX1", "image_id": "MPX2_synpic3", "file": "x.png", "split": "train", "caption": "a lung"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(InputError, match=r"captions\.jsonl: image MPX2_synpic3: case_id 'MPX1' is not one of MPX2"):
        medpix2_questions.read(tmp_path, {"annotations": "captions.jsonl", "images": "images"})


def test_counts_by_brute_force(rows, questions: list[Question]) -> None:
    """One image of each case, modality, plane and organ system; of the most frequent answer as many as of the next."""
    values = {q.answer for q in questions if not q.closed_field}
    chosen = {}
    for image in sorted(rows, key=lambda image: (rows[image]["case_id"], image)):
        row = rows[image]
        chosen.setdefault((row["case_id"], row["modality"], row["plane"], row["location"]), image)
    splits = {rows[q.image_id]["case_id"]: q.split for q in questions}
    for split in ("train", "val", "test"):
        for kind, key in KEYS.items():
            images = [image for image in chosen.values() if splits.get(rows[image]["case_id"]) == split]
            counts = Counter(v for image in images if (v := str(rows[image][key]).lower()) in values)
            second = sorted(counts.values())[-2]
            expected = {value: min(n, second) for value, n in counts.items()}
            part = [q for q in questions if (q.split, q.question_type) == (split, kind)]
            assert Counter(q.answer for q in part if not q.closed_field) == expected
            assert 0 <= sum(expected.values()) - sum(q.closed_field for q in part) < 0.1 * len(part)
    assert datasets.counts(NAME) == {split.name: split.counts() for split in manifests.load(NAME).splits}


def test_no_case_is_in_two_splits_and_text_alone_says_nothing(rows, questions: list[Question]) -> None:
    splits, answers, images = defaultdict(set), defaultdict(Counter), Counter()
    for question in questions:
        splits[rows[question.image_id]["case_id"]].add(question.split)
        if question.closed_field:
            answers[question.split, question.question][question.answer] += 1
            images[question.image_id, question.question_type] += 1
    assert {len(found) for found in splits.values()} == {1}
    shares = Counter(next(iter(found)) for found in splits.values())
    assert 0.15 < shares["test"] / len(splits) < 0.25 and 0.05 < shares["val"] / len(splits) < 0.15
    assert all(found["yes"] == found["no"] for found in answers.values())
    assert set(images.values()) == {1}  # an image is asked once, so that one answer does not give the other
    majority = {}
    for kind in KEYS:
        train, test = ([q.answer for q in questions if (q.split, q.question_type) == (split, kind)
                        and not q.closed_field] for split in ("train", "test"))  # fmt: skip
        answer = min(set(train), key=lambda answer: (-train.count(answer), answer))  # of equals the first by name
        majority[kind] = (len(test), round(100 * test.count(answer) / len(test), 1))
    assert majority == {"modality": (268, 18.7), "plane": (131, 33.6), "organ": (226, 23.0)}
    card = (Path(__file__).parents[1] / "data_manifests" / f"{NAME}.md").read_text(encoding="utf-8")
    assert all(f"| {n} | {share} % (" in card for n, share in majority.values())


def test_leak_report_and_decontamination(rows, questions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No question leaks; no pictures of two splits are alike; pre-training keeps no case of validation or test."""
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_PREPARED", str(tmp_path / "amif"))
    found = leaks.report(NAME).iloc[0]
    assert (found["on_train_image"], found["repeated_in_train"], found["unseen_answer"]) == (0, 0, 0)
    assert (found["n_train"], found["n_test"], found["ceiling_overall"]) == (3687, 1249, 100)
    held_out = {rows[q.image_id]["case_id"] for q in questions if q.split != "train"}
    images = {split: sorted({q.image_path for q in questions if (q.split == "train") == (split == "train")})
              for split in ("train", "held out")}  # fmt: skip
    hashed = [decontaminate.hashes(images[split], NAME) for split in ("train", "held out")]
    assert not list(decontaminate.alike_pairs(*hashed))
    studies, _ = decontaminate.apply("medpix2", datasets.load_studies("medpix2"), (NAME,))
    assert not held_out & {study.group_id for study in studies}
    assert len({study.group_id for study in studies}) == 671 - len(held_out) == 464
