"""The phantom: set by its seed, true to its cases, balanced, in the real layouts, not answerable without the images."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amif_lib.data import knowledge_graph, manifests
from amif_lib.data.records import Question, Study
from amif_lib.phantom import generate as phantom
from amif_lib.phantom.drawing import KINDS_OF, LABELS
from amif_lib.phantom.questions import WORDS_ZH

SIZE = 80
COUNTS = {
    "mimic_cxr": {"studies": 120},
    "roco": {"studies": 160},
    "medicat": {"studies": 160},
    "shapes": {"studies": 20},
    "vqa_rad": {"train_images": 160, "test_images": 60, "train_questions": 700, "test_questions": 240},
    "slake": {
        "train_images": 110, "val_images": 25, "test_images": 40, "train_questions": 420, "val_questions": 60,
        "test_questions": 130, "train_questions_zh": 200, "val_questions_zh": 40, "test_questions_zh": 80},
    "pathvqa": {
        "train_images": 110, "val_images": 25, "test_images": 40, "train_questions": 420, "val_questions": 60,
        "test_questions": 130},
    "vqa_med_2019": {
        "train_images": 110, "val_images": 30, "test_images": 110, "train_questions": 400, "val_questions": 100,
        "test_questions": 80},
}  # fmt: skip
QUESTIONS = ("vqa_rad", "slake", "pathvqa", "vqa_med_2019")
NAMES = sorted({kind for kinds in KINDS_OF.values() for kind in kinds}, key=len, reverse=True)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("phantom sets")
    for number, (kind, counts) in enumerate(COUNTS.items()):
        phantom.generate(folder / kind, kind, 40 + number, SIZE, counts)
    return {kind: folder / kind for kind in COUNTS}


def read(root: Path, kind: str, **options: object) -> list:
    kind = "roco" if kind == "shapes" else kind
    reader = importlib.import_module(f"amif_lib.data.readers.{kind}")
    return reader.read(root, manifests.load(f"phantom_{kind}").layout, **options)


def load(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


def by_image(root: Path) -> dict[str, dict]:
    """Cases by image id, for sets of single images."""
    return dict(zip(load(root / "masks.json")["images"], load(root / "latents.json"), strict=True))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pictures(found: dict[str, bytes]) -> set[bytes]:
    kept = (path for path in found if path.endswith((".jpg", ".png")) and not path.startswith("masks/"))
    return {found[path] for path in kept}


# --- what holds for every set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", COUNTS)
def test_same_seed_same_bytes_and_other_seed_other_patients(tmp_path: Path, kind: str) -> None:
    small = {key: 12 if key.endswith("images") else 20 for key in COUNTS[kind]}
    for name, seed in (("1", 3), ("2", 3), ("3", 4)):
        phantom.generate(tmp_path / name, kind, seed, 48, small)
    first, second, third = (files(tmp_path / name) for name in "123")
    assert first == second and len(pictures(first)) > 10 and not pictures(first) & pictures(third)


@pytest.mark.parametrize("kind", COUNTS)
def test_readers_see_only_what_the_real_set_ships(sets: dict[str, Path], tmp_path: Path, kind: str) -> None:
    bare = tmp_path / kind
    shutil.copytree(sets[kind], bare)
    shutil.rmtree(bare / "masks", ignore_errors=True)
    for name in ("latents.json", "masks.json", "question_regions.json", "generator.json"):
        (bare / name).unlink(missing_ok=True)
    plain = [[str(record).replace(str(root), "") for record in read(root, kind)] for root in (sets[kind], bare)]
    assert plain[0] == plain[1] != []


def test_generated_once_and_again_when_settings_change(tmp_path: Path) -> None:
    root = tmp_path / "set"
    phantom.generate(root, "mimic_cxr", 3, 64, {"studies": 2})
    (root / "left_by_user.txt").write_text("x", encoding="utf-8")
    phantom.generate(root, "mimic_cxr", 3, 64, {"studies": 2})
    assert (root / "left_by_user.txt").exists()
    phantom.generate(root, "mimic_cxr", 3, 64, {"studies": 3})
    assert not (root / "left_by_user.txt").exists() and len(read(root, "mimic_cxr")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", "set"]


def test_regions_lie_where_the_cases_say(sets: dict[str, Path]) -> None:
    """Radiological convention: the patient's left is on the image's right. Regions are marked and can be told apart."""
    root, seen = sets["vqa_rad"], Counter()
    for image_id, case in by_image(root).items():
        mask = np.asarray(Image.open(root / "masks" / f"{image_id}.png"))
        picture = Image.open(root / "VQA_RAD Image Folder" / f"{image_id}.jpg")
        pixels = np.asarray(picture, float)
        assert (picture.mode, picture.size, mask.shape) == ("L", (SIZE, SIZE), (SIZE, SIZE)) and pixels.std() > 25
        assert set(np.unique(mask)) <= {0, *LABELS.values()}
        for finding in case["findings"]:
            region = mask == LABELS[finding["kind"]]
            if case["views"][0] == "lateral" or not finding["side"] or region.sum() < 8:  # covered by another finding
                continue
            assert (np.nonzero(region)[1].mean() > SIZE / 2) == (finding["side"] == "left"), (image_id, finding)
            seen[finding["kind"]] += 1
            if finding["kind"] == "nodule" and len(case["findings"]) == 1:
                assert pixels[region].mean() > pixels[mask == LABELS["lungs"]].mean() + 20
    assert len(seen) >= 6


# --- pre-training sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mimic_cxr", "roco", "medicat"])
def test_texts_affirm_what_can_be_seen_and_nothing_else(sets: dict[str, Path], kind: str) -> None:
    """Findings as the linker of the knowledge graph reads them, negations included; side, view and modality."""
    cases, seen = load(sets[kind] / "latents.json"), Counter()
    images = list(load(sets[kind] / "masks.json")["images"])
    by_id = {} if kind == "mimic_cxr" else dict(zip(images, cases, strict=True))
    studies: list[Study] = read(sets[kind], kind)
    for number, study in enumerate(studies):
        case = by_id.get(study.study_id.removesuffix(".png")) or cases[number]
        text, views = study.text.lower(), case["views"]
        kinds = {f["kind"] for f in case["findings"]} - ({"pneumothorax"} if views == ["lateral"] else set())
        assert set(knowledge_graph.findings(text)) - {"edema"} == kinds, text  # edema surrounds a mass
        assert len(study.images) == len(views) and all(view in text for view in views[kind == "mimic_cxr" :])
        if kinds == {"pleural effusion"}:
            assert case["findings"][0]["side"] in text
        assert {"xr_chest": "chest", "ct_head": "head", "mr_brain": "mr"}[case["study"]] in text or not kinds
        assert not text.startswith("fig") and "_" not in text and "indication" not in text
        seen.update(kinds)
    assert set(seen) == set(NAMES) and len({study.text for study in studies}) > 90
    assert max(Counter(study.group_id for study in studies).values()) == (1 if kind == "mimic_cxr" else 2)


# --- question sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUESTIONS)
def test_question_sets_are_balanced_and_their_splits_share_no_image(sets: dict[str, Path], kind: str) -> None:
    root = sets[kind]
    questions: list[Question] = read(root, kind)
    regions = load(root / "question_regions.json")
    shown: dict[str, set[bytes]] = defaultdict(set)
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for q in questions:
        shown[q.split].add(q.image_path.read_bytes())
        if q.closed_yes_no:
            counts[q.split, q.question_type][q.answer] += 1
        assert set(regions[q.question_id]) <= set(LABELS) and (root / "masks" / f"{q.image_id}.png").is_file()
    parts = list(shown.values())
    assert set(shown) == {"train", "test"} | ({"val"} if kind != "vqa_rad" else set())
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(counts) >= 3 and sum(found.total() for found in counts.values()) > 100
    for (split, asked), found in counts.items():
        emptied = kind == "slake" and split == "train"  # one answer of the training questions is empty
        assert abs(found["yes"] - found["no"]) <= emptied, (split, asked, found)
    wanted = COUNTS[kind]["test_questions"]
    assert 0.9 * wanted <= sum(q.split == "test" for q in questions) <= 1.15 * wanted


def test_the_question_alone_is_worth_less_than_half(sets: dict[str, Path]) -> None:
    """The best a model without images can learn from training: the commonest answer to the same question text."""
    questions = read(sets["vqa_rad"], "vqa_rad")
    answers: dict[str, Counter] = defaultdict(Counter)
    for q in questions:
        if q.split == "train":
            answers[q.question][q.answer] += 1
    test = [q for q in questions if q.split == "test"]
    right = [q.question in answers and answers[q.question].most_common(1)[0][0] == q.answer for q in test]
    assert 0.2 < np.mean(right) <= 0.5
    found = Counter(q.answer for q in questions if not q.closed_field)
    assert len(found) > 20 and found.most_common(1)[0][1] < 0.15 * found.total()


def _about(question: str, words: dict[str, str]) -> str | None:
    """The finding that a question names; of several that fit the longest."""
    return next((words[word] for word in sorted(words, key=len, reverse=True) if word in question), None)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_answers_agree_with_the_cases(sets: dict[str, Path], kind: str) -> None:
    """Presence, side, number, modality and normality from the cases, by parsing the question in its language."""
    cases, checked = by_image(sets[kind]), Counter()
    chinese = {WORDS_ZH[name]: name for name in NAMES}
    questions = read(sets[kind], kind) + (read(sets[kind], kind, language="zh") if kind == "slake" else [])
    for q in questions:
        case, asked, text = cases[q.image_id], q.question, q.question.lower()
        about = _about(asked, chinese) if q.language == "zh" else _about(text, {name: name for name in NAMES})
        entries = [f for f in case["findings"] if f["kind"] == about]
        said = {"yes": True, "no": False, "有": True, "没有": False, "包含": True, "不包含": False, "是": True,
                "不是": False, "否": False}.get(q.answer)  # fmt: skip
        modality = {"xr_chest": "x-ray", "mr_brain": "MRI"}.get(case["study"], "CT")
        if about and (text.startswith("is there") or text.endswith("present?")):
            key, right = "presence", said == bool(entries)
        elif about and ("包含" in asked or ("图中有" in asked and "几个" not in asked)):
            key, right = "presence zh", said == bool(entries)
        elif text.startswith(("which side", "on which side")):
            key, right = "side", q.answer == entries[0]["side"]
        elif "侧?" in asked and about:
            key, right = "side zh", q.answer == {"left": "左侧", "right": "右侧"}[entries[0]["side"]]
        elif "几个" in asked or "how many" in text:
            key, right = "number", q.answer == str(len(entries))
        elif "成像方式" in asked or "modality" in text:
            word = WORDS_ZH[modality] if q.language == "zh" else modality
            key, right = f"modality {q.language}", word.lower() in {a.lower() for a in q.answers}
        elif "正常吗" in asked or "normal study" in text or "look normal" in text:
            key, right = f"normal {q.language}", said == (not case["findings"])
        else:
            continue
        assert right, (q.question, q.answers, case["findings"])
        checked[key] += 1
    expected = {"modality en", "normal en"} | ({"presence", "side", "number"} if kind != "vqa_med_2019" else set())
    expected |= {"presence zh", "side zh", "modality zh", "normal zh"} if kind == "slake" else set()
    assert set(checked) == expected and min(checked.values()) >= 3, checked


def test_question_files_have_the_real_sets_keys_and_quirks(sets: dict[str, Path], shared_data: Path) -> None:
    name = "VQA_RAD Dataset Public.json"
    real, made = load(shared_data / "vqa_rad" / name), load(sets["vqa_rad"] / name)
    assert {tuple(record) for record in made} == {tuple(real[0])}
    assert isinstance(made[0]["qid"], str) and isinstance(made[1]["qid"], int)
    assert any(isinstance(record["answer"], int) for record in made)
    regions = load(sets["vqa_rad"] / "question_regions.json")
    for record in made:
        located = record["question_type"] in ("PRES", "POS", "COUNT")
        named = record["question_type"] == "ABN" and record["answer_type"] == "OPEN"
        assert len(regions[str(record["qid"])]) == (located or named)

    every = [row for name in ("train", "validate", "test") for row in load(sets["slake"] / f"{name}.json")]
    assert [row["qid"] for row in every if not row["answer"]] == [1622]
    assert any(row["answer_type"] == "CLOSED " for row in every) and any("  " in row["question"] for row in every)
    english, chinese = (read(sets["slake"], "slake", language=language) for language in ("en", "zh"))
    in_training = {q.image_id for q in chinese if q.split == "train"}
    assert not in_training & {q.image_id for q in chinese if q.split == "test"}
    leak = [q.image_id in in_training for q in english if q.split == "test"]
    assert np.mean(leak) > 0.5  # as in the release: both languages together train on test images
    assert all(q.language == "zh" and not q.question.isascii() for q in chinese)
