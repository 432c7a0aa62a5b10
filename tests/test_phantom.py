"""The phantom: determined by its seed, true to its latents, balanced, and no way round the images."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.readers import medicat, mimic_cxr, pathvqa, roco, vqa_rad
from amif_lib.data.records import Question, Study, normalise_answer
from amif_lib.phantom import generate as phantom
from amif_lib.phantom import questions_zh as phantom_questions_zh
from amif_lib.phantom.canvas import KINDS_OF, LABELS

COUNTS = {"train_images": 160, "test_images": 60, "train_questions": 700, "test_questions": 240}
MIMIC_LAYOUT = manifests.load("phantom_mimic_cxr").layout
VQA_LAYOUT = manifests.load("phantom_vqa_rad").layout
CAPTIONED = {"roco": roco, "medicat": medicat}


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "vqa set"
    phantom.generate(root, "vqa_rad", 5, 80, COUNTS)
    return root


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "studies"
    phantom.generate(root, "mimic_cxr", 5, 80, {"studies": 120})
    return root


def latents(root: Path) -> list[dict]:
    return json.loads((root / "latents.json").read_text(encoding="utf-8"))


def records(root: Path) -> list[dict]:
    return json.loads((root / VQA_LAYOUT["annotations"]).read_text(encoding="utf-8"))


def by_image(root: Path) -> dict[str, dict]:
    """Latents by image name, for single-image cases."""
    names = json.loads((root / "masks.json").read_text(encoding="utf-8"))["images"]
    return dict(zip(names, latents(root), strict=True))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_and_other_seed_other_patients(tmp_path: Path) -> None:
    small = {"train_images": 12, "test_images": 6, "train_questions": 40, "test_questions": 20}
    kinds = (("a", "vqa_rad", small), ("b", "mimic_cxr", {"studies": 8}), ("c", "roco", {"studies": 8}),
             ("d", "medicat", {"studies": 10}))  # fmt: skip
    for name, kind, counts in kinds:
        phantom.generate(tmp_path / name / "1", kind, 3, 64, counts)
        phantom.generate(tmp_path / name / "2", kind, 3, 64, counts)
        phantom.generate(tmp_path / name / "3", kind, 4, 64, counts)
        first, second, third = (files(tmp_path / name / number) for number in "123")
        assert first == second
        kept = {path for path in first if Path(path).suffix in (".jpg", ".png") and not path.startswith("masks/")}
        pictures = [{found[path] for path in found if path in kept} for found in (first, third)]
        assert kept and not pictures[0] & pictures[1]
        assert not kept & set(third) or kind == "roco"  # whose files are named by number


def test_more_studies_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    phantom.generate(tmp_path / "few", "mimic_cxr", 3, 64, {"studies": 4})
    phantom.generate(tmp_path / "many", "mimic_cxr", 3, 64, {"studies": 9})
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    pictures = [path for path in few if path.endswith((".jpg", ".txt", ".png"))]
    assert len(pictures) > 8
    assert all(few[path] == many[path] for path in pictures)


def test_generated_once_and_again_when_settings_change(tmp_path: Path) -> None:
    root = tmp_path / "set"
    phantom.generate(root, "mimic_cxr", 3, 64, {"studies": 2})
    (root / "left_by_user.txt").write_text("x", encoding="utf-8")
    phantom.generate(root, "mimic_cxr", 3, 64, {"studies": 2})
    assert (root / "left_by_user.txt").exists()
    phantom.generate(root, "mimic_cxr", 3, 64, {"studies": 3})
    assert not (root / "left_by_user.txt").exists()
    assert len(mimic_cxr.read(root, MIMIC_LAYOUT)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # nothing left aside
    with pytest.raises(InputError, match=r"kind 'dicom' is not one of .*vqa_rad"):
        phantom.generate(root, "dicom", 3, 64, {})


def test_images_are_grey_squares(vqa: Path) -> None:
    for path in list((vqa / VQA_LAYOUT["images"]).glob("*.jpg"))[:20]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (80, 80))
            assert np.asarray(image).std() > 25  # something is drawn


def test_readers_do_not_need_the_latents(studies: Path, vqa: Path, captioned: dict[str, Path], tmp_path: Path) -> None:
    sets = [(captioned[kind], module.read, manifests.load(kind).layout) for kind, module in CAPTIONED.items()]
    for root, read, layout in ((studies, mimic_cxr.read, MIMIC_LAYOUT), (vqa, vqa_rad.read, VQA_LAYOUT), *sets):
        bare = tmp_path / root.name
        shutil.copytree(root, bare)
        shutil.rmtree(bare / "masks")
        for name in ("latents.json", "masks.json", "question_regions.json", "generator.json"):
            (bare / name).unlink(missing_ok=True)
        assert _plain(read(root, layout), root) == _plain(read(bare, layout), bare)


def _plain(read: list[Study] | list[Question], root: Path) -> list[str]:
    return [str(record).replace(str(root), "ROOT") for record in read]


def test_split_shares_no_image_and_no_patient(vqa: Path) -> None:
    questions = vqa_rad.read(vqa, VQA_LAYOUT)
    train, test = ({q.image_id for q in questions if q.split == split} for split in ("train", "test"))
    assert train and test and not train & test
    pictures = [{(vqa / VQA_LAYOUT["images"] / f"{name}.jpg").read_bytes() for name in part} for part in (train, test)]
    assert not pictures[0] & pictures[1]


def test_yes_and_no_are_balanced_within_every_kind_of_question(vqa: Path) -> None:
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for question in vqa_rad.read(vqa, VQA_LAYOUT):
        if question.closed_yes_no:
            counts[question.split, question.question_type][question.answer] += 1
    assert {kind for _, kind in counts} >= {"PRES", "POS", "ABN", "MODALITY", "PLANE", "ORGAN"}
    for key, found in counts.items():
        assert found["yes"] == found["no"], key


def test_question_alone_is_worth_less_than_half(vqa: Path) -> None:
    """The best a model without images can learn from training: the commonest answer to the same question text."""
    questions = vqa_rad.read(vqa, VQA_LAYOUT)
    answers: dict[str, Counter] = defaultdict(Counter)
    for q in questions:
        if q.split == "train":
            answers[q.question][q.answer] += 1
    test = [q for q in questions if q.split == "test"]
    right = [q.question in answers and answers[q.question].most_common(1)[0][0] == q.answer for q in test]
    assert 0.2 < np.mean(right) <= 0.5


def test_open_answers_are_spread(vqa: Path) -> None:
    found = Counter(q.answer for q in vqa_rad.read(vqa, VQA_LAYOUT) if not q.closed_field)
    assert len(found) > 25
    assert found.most_common(1)[0][1] < 0.15 * found.total()


def test_answers_agree_with_the_latents(vqa: Path) -> None:
    """Presence, side and number, recomputed from the latents by parsing the question."""
    cases, checked = by_image(vqa), Counter()
    names = sorted({kind for kinds in KINDS_OF.values() for kind in kinds} | {"midline shift"}, key=len, reverse=True)
    for record in records(vqa):
        case, question = cases[record["image_name"]], record["question"]
        asked = next((name for name in names if name in question), None)
        entries = [f for f in case["findings"] if f["kind"] == asked]
        if record["question_type"] == "PRES":
            assert record["answer"] == ("Yes" if entries else "No"), question
        elif record["question_type"] == "COUNT":
            assert record["answer"] == len(entries) and isinstance(record["answer"], int)
        elif record["question_type"] == "POS" and record["answer"] in ("left", "right"):
            assert record["answer"] == entries[0]["side"]
        elif record["question_type"] == "POS" and record["answer"] in ("Yes", "No"):
            assert (record["answer"] == "Yes") == (f"on the {entries[0]['side']}" in question)
        elif record["question_type"] == "ABN" and record["answer"] in ("Yes", "No"):
            assert (record["answer"] == "Yes") == (bool(case["findings"]) == ("abnormality" in question)), question
        elif record["question_type"] == "PLANE" and record["answer_type"] == "OPEN":
            assert record["answer"] == case["views"][0]
        else:
            continue
        checked[record["question_type"]] += 1
    assert min(checked[kind] for kind in ("PRES", "COUNT", "POS", "ABN", "PLANE")) > 10


def test_records_have_the_real_sets_keys_and_quirks(vqa: Path, shared_data: Path) -> None:
    real = json.loads((shared_data / "vqa_rad" / VQA_LAYOUT["annotations"]).read_text(encoding="utf-8"))
    made = records(vqa)
    assert {tuple(record) for record in made} == {tuple(real[0])}
    assert isinstance(made[0]["qid"], str) and isinstance(made[1]["qid"], int)
    for key in ("phrase_type", "image_organ", "evaluation", "answer_type"):
        assert {r[key] for r in made} <= {r[key] for r in real}
    assert {r["question_type"] for r in made} <= {r["question_type"] for r in real}


def test_regions_lie_where_the_latents_say(vqa: Path) -> None:
    """Radiological convention: the patient's left is on the image's right. Regions are marked and can be told apart."""
    ids, seen = LABELS, Counter()
    for name, case in by_image(vqa).items():
        with Image.open(vqa / "masks" / f"{Path(name).stem}.png") as picture:
            mask = np.asarray(picture)
        with Image.open(vqa / VQA_LAYOUT["images"] / name) as picture:
            pixels = np.asarray(picture, float)
        assert mask.shape == pixels.shape and set(np.unique(mask)) <= {0, *ids.values()}
        for finding in case["findings"]:
            region = mask == ids[finding["kind"]]
            if case["views"][0] in ("lateral", "sagittal") or not finding["side"] or finding["kind"] == "midline shift":
                continue
            if region.sum() < 8:  # covered by an other finding
                continue
            column = np.nonzero(region)[1].mean()
            assert (column > 40) == (finding["side"] == "left"), (name, finding)
            seen[finding["kind"]] += 1
            if finding["kind"] == "nodule" and len(case["findings"]) == 1 and finding["severity"] != "small":
                lung = mask == ids["lungs"]
                assert pixels[region].mean() > pixels[lung].mean() + 20
    assert len(seen) >= 8


def test_questions_name_the_region_they_ask_about(vqa: Path) -> None:
    regions = json.loads((vqa / "question_regions.json").read_text(encoding="utf-8"))
    for record in records(vqa):
        about = regions[str(record["qid"])]
        assert len(about) == (record["question_type"] in ("PRES", "POS", "COUNT") or (
            record["question_type"] == "ABN" and record["answer_type"] == "OPEN"))  # fmt: skip


def test_reports_state_what_is_there_and_deny_only_what_is_not(studies: Path) -> None:
    read = mimic_cxr.read(studies, MIMIC_LAYOUT)
    assert len(read) == 120
    denied = {
        "pneumothorax": ("no pneumothorax", "or pneumothorax", "evidence of pneumothorax"),
        "pleural effusion": ("no pleural effusion", "angles are sharp"),
        "cardiomegaly": ("heart size is normal", "heart is normal", "normal limits"),
        "hemorrhage": ("no hemorrhage", "no evidence of intracranial"),
        "ascites": ("no ascites", "no free fluid"),
    }
    stated = {"pneumothorax": "pneumothorax", "pleural effusion": "effusion", "ascites": "ascites", "mass": "mass"}
    hits = Counter()
    for study, case in zip(read, latents(studies), strict=True):
        text, kinds = study.text.lower(), {f["kind"] for f in case["findings"]}
        for kind, phrases in denied.items():
            if any(phrase in text for phrase in phrases):
                assert kind not in kinds, text
                hits[kind] += 1
        for kind, word in stated.items():
            if kind in kinds:
                assert word in text, text
                hits[word] += 1
        assert "_" not in text and "indication" not in text
        assert len(study.images) == len(case["views"])
    assert all(hits[kind] for kind in denied) and hits["effusion"]
    assert len({study.text for study in read}) > 100  # reports repeat rarely as a whole, in sentences often


def test_chest_studies_have_two_views_and_some_reports_lack_sections(studies: Path) -> None:
    read = mimic_cxr.read(studies, MIMIC_LAYOUT)
    views = Counter(tuple(sorted(image.view for image in study.images)) for study in read)
    assert views["frontal", "lateral"] > 20 and views["axial",] > 10 and views["axial", "coronal", "sagittal"] > 3
    kinds = Counter(tuple(mimic_cxr.sections(path.read_text(encoding="utf-8"))) for path in studies.rglob("s*.txt"))
    assert kinds["findings", "impression"] > 80 and kinds["text",] and kinds["impression",] and kinds["findings",]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The phantom sets of single images with captions, as their manifests describe them."""
    made = {}
    for kind in CAPTIONED:
        settings = manifests.load(f"phantom_{kind}").generator
        made[kind] = tmp_path_factory.mktemp("phantom") / kind
        phantom.generate(made[kind], kind, settings.seed, settings.size, settings.counts)
    return made


def read_captioned(root: Path, kind: str, **settings: object) -> list[Study]:
    return CAPTIONED[kind].read(root, manifests.load(f"phantom_{kind}").layout, **settings)


def test_captioned_sets_have_the_counts_of_their_latents(captioned: dict[str, Path]) -> None:
    """Listed less what is left out on purpose, counted from the raw lists, and the recorded counts."""
    studies = read_captioned(captioned["roco"], "roco", splits=("train", "val", "test"))
    rows = [line for path in captioned["roco"].rglob("captions.txt")
            for line in path.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    empty = {row.split("\t")[0] for row in rows if not row.split("\t")[1].strip()}
    there = {path.stem for path in captioned["roco"].glob("data/*/radiology/images/*.jpg")}
    assert (len(rows), len(empty), len({row.split("\t")[0] for row in rows} - there)) == (160, 3, 4)
    assert {s.study_id for s in studies} == there - empty
    assert len(latents(captioned["roco"])) == len(there) == 156
    assert Counter(s.split for s in studies) == {"train": 137, "val": 8, "test": 8}

    figures = read_captioned(captioned["medicat"], "medicat")
    (path,) = captioned["medicat"].rglob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = [x for x in lines if x["radiology"] and (x["s2_caption"] or x["s2orc_caption"])]
    there = {file.name for file in (captioned["medicat"] / "release" / "figures").iterdir()}
    assert {s.study_id for s in figures} == {f"{x['pdf_hash']}_{x['fig_uri']}" for x in wanted} & there
    assert len(latents(captioned["medicat"])) == sum(x["radiology"] for x in lines) - 4 == 140
    assert len(lines) == 160 and len(read_captioned(captioned["medicat"], "medicat", figures="all")) == 151
    for kind, found in (("roco", [s for s in studies if s.split == "train"]), ("medicat", figures)):
        (expected,) = manifests.load(f"phantom_{kind}").splits
        assert (expected.studies, expected.images) == (len(found), sum(len(s.images) for s in found))


@pytest.mark.parametrize("kind", CAPTIONED)
def test_captions_say_what_the_latents_hold(captioned: dict[str, Path], kind: str) -> None:
    """Every visible finding is in the caption, no other one is, and side and modality agree."""
    words = {"nodule": "nodule", "consolidation": ("consolidation", "airspace opacity"), "ascites": "ascites",
             "pleural effusion": "effusion", "pneumothorax": "pneumothorax", "infarct": "infarct",
             "hemorrhage": ("hemorrhage", "hematoma"), "kidney stone": ("stone", "calculus"),
             "hydrocephalus": ("hydrocephalus", "ventricles are dilated")}  # fmt: skip
    root = captioned[kind]
    names = json.loads((root / "masks.json").read_text(encoding="utf-8"))["images"]
    cases = dict(zip(names, latents(root), strict=True))
    seen: Counter = Counter()
    for study in read_captioned(root, kind):
        case, text = cases[study.images[0].image_id], study.text.lower()
        (view,) = case["views"]
        kinds = {f["kind"] for f in case["findings"]} - ({"pneumothorax"} if view == "lateral" else set())
        for name, alternatives in words.items():
            stated = any(word in text for word in ([alternatives] if isinstance(alternatives, str) else alternatives))
            assert stated == (name in kinds), (name, text)
            seen[name] += stated
        if kinds == {"pleural effusion"}:
            assert case["findings"][0]["side"] in text
        assert {"xr_chest": "chest", "ct_head": "head", "mr_brain": "mr"}.get(
            case["study"], ""
        ) in text and view in text
        assert not text.startswith("fig") and study.text == " ".join(study.text.split())
        mask = root / "masks" / f"{Path(study.images[0].image_id).stem if kind == 'medicat' else study.study_id}.png"
        with Image.open(mask) as labels, Image.open(study.images[0].path) as picture:
            assert labels.size == picture.size and picture.format == {"roco": "JPEG", "medicat": "PNG"}[kind]
    assert all(seen[name] for name in words)


def test_captioned_sets_have_their_quirks(captioned: dict[str, Path]) -> None:
    rows = (
        (captioned["roco"] / "data" / "train" / "radiology" / "captions.txt").read_text(encoding="utf-8").splitlines()
    )
    assert all(row.split("\t")[1].startswith(" ") for row in rows)
    for kind in CAPTIONED:
        found = read_captioned(captioned[kind], kind)
        assert 0.1 < np.mean([not s.text.isascii() for s in found]) < 0.3
        assert max(Counter(s.group_id for s in found).values()) == 2
        assert 0 < sum("licence" in s.extra for s in found) <= len(found)
    groups = [{s.group_id for s in read_captioned(captioned["roco"], "roco", splits=(split,))}
              for split in ("train", "val", "test")]  # fmt: skip
    assert groups[0] & groups[2] and groups[1] & groups[2]  # the split is not by article
    (path,) = captioned["medicat"].rglob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(x["s2_caption"].lower().startswith("fig") for x in lines if x["s2_caption"])
    assert any(x["oa_info"] is None for x in lines) and any(not x["s2_caption"] and x["s2orc_caption"] for x in lines)


def test_the_phantom_sets_share_no_case() -> None:
    seeds = [manifests.load(name).generator.seed for name in manifests.names() if manifests.load(name).generator]
    assert len(seeds) == len(set(seeds)) >= 5


# --- the other question sets -------------------------------------------------------------------------------------------

SETS = {
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


def read_set(root: Path, kind: str, **options: object) -> list[Question]:
    reader = importlib.import_module(f"amif_lib.data.load.{kind}")
    return reader.read(root, manifests.load(f"phantom_{kind}").layout, **options)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("question sets")
    for number, (kind, counts) in enumerate(SETS.items()):
        phantom.generate(folder / kind, kind, 40 + number, 64, counts)
    return {kind: folder / kind for kind in SETS}


@pytest.mark.parametrize("kind", SETS)
def test_question_set_follows_from_its_seed_and_its_reader_needs_no_latents(
    kind: str, sets: dict[str, Path], tmp_path: Path
) -> None:
    small = {key: 12 if key.endswith("images") else 20 for key in SETS[kind]}
    for name, seed in (("1", 3), ("2", 3), ("3", 4)):
        phantom.generate(tmp_path / name, kind, seed, 48, small)
    first, second, third = (files(tmp_path / name) for name in "123")
    assert first == second
    pictures = [{content for path, content in found.items() if path.endswith(".jpg")} for found in (first, third)]
    assert len(pictures[0]) > 20 and not pictures[0] & pictures[1]
    bare = tmp_path / "bare"
    shutil.copytree(sets[kind], bare)
    shutil.rmtree(bare / "masks")
    for name in ("latents.json", "masks.json", "question_regions.json", "generator.json"):
        (bare / name).unlink()
    assert _plain(read_set(sets[kind], kind), sets[kind]) == _plain(read_set(bare, kind), bare)


@pytest.mark.parametrize("kind", SETS)
def test_question_set_is_balanced_and_its_splits_share_no_image(kind: str, sets: dict[str, Path]) -> None:
    root = sets[kind]
    questions = read_set(root, kind)
    regions = json.loads((root / "question_regions.json").read_text(encoding="utf-8"))
    shown: dict[str, set[bytes]] = defaultdict(set)
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for q in questions:
        shown[q.split].add(q.image_path.read_bytes())
        if q.closed_yes_no:
            counts[q.split, q.question_type][q.answer] += 1
        assert set(regions[q.question_id]) <= set(LABELS) and (root / "masks" / f"{q.image_id}.png").is_file()
    assert set(shown) == {"train", "val", "test"}
    assert not shown["train"] & shown["val"] and not (shown["train"] | shown["val"]) & shown["test"]
    assert len(counts) >= 3 and sum(found.total() for found in counts.values()) > 100
    for (split, asked), found in counts.items():
        emptied = kind == "slake" and split == "train"  # one answer of the training questions is empty
        assert abs(found["yes"] - found["no"]) <= emptied, (split, asked, found)
    wanted = SETS[kind]["test_questions"]
    assert 0.9 * wanted <= sum(q.split == "test" for q in questions) <= 1.15 * wanted


def _about(question: str, words: dict[str, str]) -> str | None:
    """The finding that a question names; of several that fit the longest."""
    return next((words[word] for word in sorted(words, key=len, reverse=True) if word in question), None)


@pytest.mark.parametrize("kind", SETS)
def test_answers_of_question_sets_agree_with_the_latents(kind: str, sets: dict[str, Path]) -> None:
    """Presence, side, number, modality and normality from the latents, by parsing the question in its language."""
    cases, checked = by_image(sets[kind]), Counter()
    names = {name: name for kinds in KINDS_OF.values() for name in kinds} | {"midline shift": "midline shift"}
    chinese = {phantom_questions_zh.WORDS[name]: name for name in names}
    assert len(chinese) == len(names)
    questions = read_set(
        sets[kind], kind, **({"language": "en+zh", "allow_cross_language": True} if kind == "slake" else {})
    )
    for q in questions:
        case, asked, text = cases[f"{q.image_id}.jpg"], q.question, q.question.lower()
        about = _about(asked, chinese) if q.language == "zh" else _about(text, names)
        entries = [f for f in case["findings"] if f["kind"] == about]
        said = {"yes": True, "no": False, "有": True, "没有": False, "包含": True, "不包含": False, "是": True, "不是": False,
                "否": False}.get(q.answer)  # fmt: skip
        modality = {"xr_chest": "x-ray", "mr_brain": "MRI"}.get(case["study"], "CT")
        if (text.startswith("is there a") and about) or (about and text.endswith("present?")):
            key, right = "presence", said == bool(entries)
        elif ("图中有" in asked and about and "几个" not in asked) or "包含" in asked:
            key, right = "presence zh", said == bool(entries)
        elif text.startswith("which side") or text.startswith("on which side"):
            key, right = "side", q.answer == entries[0]["side"]
        elif "侧?" in asked and about:
            key, right = "side zh", q.answer == {"left": "左侧", "right": "右侧"}[entries[0]["side"]]
        elif "几个" in asked:
            key, right = "number zh", q.answer == str(len(entries))
        elif "成像方式" in asked or "modality" in text:
            word = phantom_questions_zh.WORDS[modality] if q.language == "zh" else modality
            key, right = f"modality {q.language}", word.lower() in {a.lower() for a in q.answers}
        elif "正常吗" in asked or "normal study" in text or "look normal" in text:
            key, right = f"normal {q.language}", said == (not case["findings"])
        else:
            continue
        assert right, (q.question, q.answers, case["findings"])
        checked[key] += 1
    expected = {"modality en", "normal en"}
    expected |= {"presence", "side"} if kind != "vqa_med_2019" else set()
    expected |= {"presence zh", "side zh", "number zh", "modality zh", "normal zh"} if kind == "slake" else set()
    assert set(checked) == expected and min(checked.values()) >= 3, checked


def test_slake_layout_has_its_quirks(sets: dict[str, Path], shared_data: Path) -> None:
    root = sets["slake"]
    rows = {s: json.loads((root / f"{s}.json").read_text(encoding="utf-8")) for s in ("train", "validate", "test")}
    every = [row for part in rows.values() for row in part]
    assert [row["qid"] for row in every if not row["answer"]] == [1622]
    assert any(row["answer"] != row["answer"].strip() for row in every)
    assert any(row["answer_type"] == "CLOSED " for row in every) and any("  " in row["question"] for row in every)
    assert any(", " in row["answer"] for row in every)
    spelt = {row["answer"] for row in every}
    assert any(a != b and a.lower() == b.lower() for a in spelt for b in spelt)
    english, chinese = (read_set(root, "slake", language=language) for language in ("en", "zh"))
    for questions in (english, chinese):
        images = [{q.image_id for q in questions if q.split == split} for split in ("train", "val", "test")]
        assert not images[0] & images[1] and not (images[0] | images[1]) & images[2]
    in_training = {q.image_id for q in chinese if q.split == "train"}
    leak = [q.image_id in in_training for q in english if q.split == "test"]
    assert np.mean(leak) > 0.5  # as in the release: both languages together train on test images
    assert all(q.language == "zh" and not q.question.isascii() for q in chinese)
    folder = root / "imgs" / english[0].image_id
    assert {p.name for p in folder.iterdir()} == {"source.jpg", "mask.png", "detection.json", "question.json"}
    with Image.open(folder / "mask.png") as picture:
        mask = np.asarray(picture)
    for entry in json.loads((folder / "detection.json").read_text(encoding="utf-8")):
        ((name, (x, y, width, height)),) = entry.items()
        inside = mask[y : y + height, x : x + width] == LABELS[name]
        assert inside.sum() == (mask == LABELS[name]).sum()  # the box holds all of it, and touches it on every side
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    if (shared_data / "slake_annotations").is_dir():
        real = json.loads((shared_data / "slake_annotations" / "test.json").read_text(encoding="utf-8"))
        for key in ("answer_type", "content_type", "modality", "q_lang", "base_type"):
            assert {str(row[key]).strip() for row in every} <= {row[key] for row in real}
        assert {tuple(sorted(row)) for row in every} == {tuple(sorted(real[0]))}


def test_pathvqa_layout_has_its_quirks(sets: dict[str, Path]) -> None:
    root = sets["pathvqa"]
    layout = manifests.load("pathvqa").layout
    rows = pathvqa.records(root, layout, "train")
    assert any(row["answer"] != row["answer"].strip() for row in rows) and any("  " in row["question"] for row in rows)
    assert any(row["answer"].strip()[0].isupper() for row in rows)
    raw = Counter((row["image"], row["question"], row["answer"]) for row in rows)
    even = Counter((row["image"], " ".join(row["question"].split()), normalise_answer(row["answer"])) for row in rows)
    assert len(rows) > len(raw) > len(even)  # some duplicates are equal only after normalisation
    kept = [q for q in read_set(root, "pathvqa", training_file="deduplicated") if q.split == "train"]
    assert len(kept) == len(raw)
    present = {path.stem for path in (root / "images" / "train").iterdir()}
    assert len(present) == 110 and len(present - {row["image"] for row in rows}) >= 5


def test_vqa_med_layout_has_its_quirks(sets: dict[str, Path]) -> None:
    root = sets["vqa_med_2019"]
    test = (root / "VQAMed2019Test" / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").read_text(encoding="utf-8")
    asked = (root / "VQAMed2019Test" / "VQAMed2019_Test_Questions.txt").read_text(encoding="utf-8")
    assert test == test.lower() and "#" in test and "(" in test
    assert [f"{x[0]}|{x[2]}" for x in (line.split("|") for line in test.splitlines())] == asked.splitlines()
    train = (root / "ImageClef-2019-VQA-Med-Training" / "All_QA_Pairs_train.txt").read_text(encoding="utf-8")
    assert "#" not in train and "(" not in train and "\t" in train
    questions = read_set(root, "vqa_med_2019")
    kinds = Counter((q.split, q.question_type) for q in questions)
    assert {kind for _, kind in kinds} == {"modality", "plane", "organ", "abnormality"}
    assert min(kinds.values()) > 10
    per_image = Counter((q.image_id, q.question_type) for q in questions)
    assert max(per_image.values()) == 1
    assert len({q.image_id for q in questions if q.split == "test"}) == sum(q.split == "test" for q in questions)
    known = {q.answer for q in questions if q.split == "train"}
    several = [q for q in questions if len(q.answers) > 1]
    assert several and all(known & set(q.answers) for q in several)  # an accepted answer can be learnt
    without = read_set(root, "vqa_med_2019", training_file="without_abnormality")
    assert len(without) == len(questions) - sum(n for (_, kind), n in kinds.items() if kind == "abnormality")
