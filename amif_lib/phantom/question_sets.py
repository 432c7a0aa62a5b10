"""The phantom's question sets, each written in the official layout of a real one, with that set's quirks on purpose.

Beside every set lie `latents.json`, `masks/<image id>.png` with `masks.json`, and `question_regions.json`: for each
question id, as the reader gives it, the mask labels that the question asks about.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amif_lib.phantom import questions as phantom_questions
from amif_lib.phantom import questions_zh as phantom_questions_zh
from amif_lib.phantom.canvas import LABELS
from amif_lib.phantom.cases import Case, draw_case, draw_view, stream, write_beside
from amif_lib.phantom.questions import Candidate
from amif_lib.phantom.reports import MODALITY, REGION

SPLITS = ("train", "val", "test")


class _Pictures:
    """The images of a set, one case each: drawn into their files, their masks and latents kept for beside the set."""

    def __init__(self, root: Path, seed: int, size: int):
        self.root, self.seed, self.size = root, seed, size
        self.cases: list[Case] = []
        self.masks: dict[str, dict[str, Any]] = {}
        self.regions: dict[str, list[str]] = {}
        (root / "masks").mkdir(parents=True)

    def case(self, index: int) -> Case:
        return draw_case(index, "vqa_rad", stream(self.seed, index, 0))

    def draw(self, case: Case, image_id: str, path: Path) -> Path:
        """Draw a case into the file `path` (under the set's folder); returns its mask's file."""
        picture, labels, areas = draw_view(case, case.views[0], self.size, stream(self.seed, case.index, 2))
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        mask = self.root / "masks" / f"{image_id}.png"
        mask.write_bytes(labels)
        self.masks[f"{image_id}.jpg"] = {"view": case.views[0], "areas": areas}
        self.cases.append(case)
        return mask

    def draw_split(self, first: int, number: int, where: Callable[[int], tuple[str, Path]]) -> list[tuple[str, Case]]:
        """Draw cases `first` and following; `where` gives the image's id and file. Returns `(image id, case)` pairs."""
        part = []
        for index in range(first, first + number):
            image_id, path = where(index)
            part.append((image_id, self.case(index)))
            self.draw(part[-1][1], image_id, path)
        return part

    def write_beside(self) -> None:
        write_beside(self.root, self.cases, self.masks)
        (self.root / "question_regions.json").write_text(json.dumps(self.regions), encoding="utf-8")


def write_vqa_rad(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    pictures, records = _Pictures(root, seed, size), []
    for split in ("train", "test"):
        part = pictures.draw_split(
            len(pictures.cases),
            counts[f"{split}_images"],
            lambda i: (f"phantom{seed}{i:04d}", Path("VQA_RAD Image Folder") / f"phantom{seed}{i:04d}.jpg"),
        )
        named = [(f"{image_id}.jpg", case) for image_id, case in part]
        rng = np.random.default_rng([seed, 0 if split == "train" else 1, 9])
        for record, labels_asked in phantom_questions.questions(
            named, counts[f"{split}_questions"], split, len(records), rng
        ):
            records.append(record)
            pictures.regions[str(record["qid"])] = labels_asked
    text = json.dumps(records, indent=3, ensure_ascii=False)
    (root / "VQA_RAD Dataset Public.json").write_text(text, encoding="utf-8")
    pictures.write_beside()


# --- SLAKE -------------------------------------------------------------------------------------------------------------

SLAKE_FILES = {"train": "train.json", "val": "validate.json", "test": "test.json"}
SLAKE_FIRST_QID = 1600  # so that qid 1622, whose answer the release leaves empty, is an English training question
CONTENT = {"MODALITY": "Modality", "PLANE": "Plane", "ORGAN": "Organ", "POS": "Position", "COUNT": "Quantity"}
LOCATION = {"chest": "Lung", "abdomen": "Abdomen", "head": "Brain"}
SLAKE_MODALITY = {"x-ray": "X-Ray", "CT": "CT", "MRI": "MRI"}


def write_slake(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """English and Chinese questions, each language with its own split of the same images, as in the release.

    The English test images (and those of validation) are Chinese training images: training on both languages leaks.
    """
    pictures = _Pictures(root, seed, size)

    def where(index: int) -> tuple[str, Path]:
        return f"xmlab{index}", Path("imgs") / f"xmlab{index}" / "source.jpg"

    parts = {
        split: pictures.draw_split(len(pictures.cases), counts[f"{split}_images"], where) for split in ("train", "val")
    }
    parts["test"] = pictures.draw_split(len(pictures.cases), counts["test_images"], where)
    # Chinese: the same images the other way round, the first ones being for testing
    shown = parts["test"] + parts["val"] + parts["train"]
    cuts = np.cumsum([0, *(counts[f"{split}_images"] for split in SPLITS)])
    chinese = {split: shown[cuts[i] : cuts[i + 1]] for i, split in enumerate(SPLITS)}
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    qid = SLAKE_FIRST_QID
    for number, split in enumerate(SPLITS):
        for language, part in (("en", parts[split]), ("zh", chinese[split])):
            rng = np.random.default_rng([seed, number, 9 if language == "en" else 10])
            wanted = counts[f"{split}_questions" if language == "en" else f"{split}_questions_zh"]
            if language == "en":
                items = phantom_questions.draw(part, wanted, rng) + _several(part)[: wanted // 40]
            else:
                items = phantom_questions.draw(part, wanted, rng, phantom_questions_zh.SHARES)
            for place, item in enumerate(items):
                row = _slake_row(item, language, place, qid)
                if row["qid"] == 1622:
                    row |= {"answer": "", "answer_type": "OPEN"}
                rows[split].append(row)
                pictures.regions[str(qid)] = list(item.about)
                qid += 1
    for split, content in rows.items():
        (root / SLAKE_FILES[split]).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    by_image: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id, _ in shown}
    for row in (row for content in rows.values() for row in content):
        by_image[f"xmlab{row['img_id']}"].append(row)
    for image_id, asked in by_image.items():
        folder, mask = root / "imgs" / image_id, root / "masks" / f"{image_id}.png"
        (folder / "mask.png").write_bytes(mask.read_bytes())
        (folder / "question.json").write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
        (folder / "detection.json").write_text(json.dumps(_boxes(mask)), encoding="utf-8")
    pictures.write_beside()


def _several(part: list[tuple[str, Case]]) -> list[Candidate]:
    """Questions whose answer lists several findings, comma-separated in drawing order."""
    out = []
    for image_id, case in part:
        present = case.kinds(case.views[0])
        if len(present) > 1:
            answer = ", ".join(kind.capitalize() for kind in present)
            asked = ("What abnormalities are shown in this image?",)
            out.append(Candidate(image_id, case, "ABN", "list", "", answer, asked, tuple(present)))
    return out


def _slake_row(item: Candidate, language: str, place: int, qid: int) -> dict[str, Any]:
    """A record with SLAKE's twelve keys; every so many get one of the quirks that the reader evens out."""
    if language == "en":
        question, answer = item.wordings[place % len(item.wordings)], str(item.answer)
        # the release mixes `Small bowel` and `Small Bowel`
        answer = answer.title() if place % 5 == 0 else answer[0].upper() + answer[1:]
    else:
        question, answer = phantom_questions_zh.phrase(item, place)
    closed = str(item.answer) in ("Yes", "No") or item.share == "choice"
    region = REGION[item.case.study]
    return {
        "img_id": int(item.image.removeprefix("xmlab")),
        "img_name": f"{item.image}/source.jpg",
        "question": question.replace(" ", "  ", 1) if place % 61 == 7 else question,
        "answer": f"{answer} " if place % 53 == 11 else answer,
        "q_lang": language,
        "location": LOCATION[region],
        "modality": SLAKE_MODALITY[MODALITY[item.case.study]],
        "answer_type": ("CLOSED" if closed else "OPEN") + (" " if place % 59 == 3 else ""),
        "base_type": "vqa",
        "content_type": CONTENT.get(item.kind, "Abnormality"),
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    }


def _boxes(mask: Path) -> list[dict[str, list[int]]]:
    """Per label of a mask the box `[x, y, width, height]` around it, in pixels."""
    with Image.open(mask) as picture:
        labels = np.asarray(picture)
    out = []
    for name, number in LABELS.items():
        rows, columns = np.nonzero(labels == number)
        if len(rows):
            x, y = int(columns.min()), int(rows.min())
            out.append({name: [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]})
    return out


# --- PathVQA -----------------------------------------------------------------------------------------------------------


def write_pathvqa(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """The pickle files of the official release: `image, question, answer`, no id and no field for open or closed."""
    pictures = _Pictures(root, seed, size)
    for number, split in enumerate(SPLITS):
        first = len(pictures.cases)

        def where(index: int, split: str = split, first: int = first) -> tuple[str, Path]:
            image_id = f"{split}_{index - first:04d}"
            return image_id, Path("images") / split / f"{image_id}.jpg"

        part = pictures.draw_split(first, counts[f"{split}_images"], where)
        asked = part[: len(part) - len(part) // 20]  # some images of the release have no question
        rng = np.random.default_rng([seed, number, 9])
        rows, on_image = [], Counter()
        for place, item in enumerate(phantom_questions.draw(asked, counts[f"{split}_questions"], rng)):
            question, answer = item.wordings[place % len(item.wordings)].lower(), str(item.answer).lower()
            row = {
                "image": item.image,
                "question": question.replace(" ", "  ", 1) if place % 31 == 5 else question,
                "answer": {3: f"{answer} ", 11: f" {answer}", 17: answer.capitalize()}.get(place % 47, answer),
            }
            doubled = answer not in ("yes", "no") and place % 40 < 4  # some of the release's questions occur twice
            # one duplicate in four differs in a blank: equal after normalisation, unequal as it is written
            again = [{**row, "answer": row["answer"] + ("  " if place % 40 == 0 else "")}] if doubled else []
            for entry in (row, *again):
                rows.append(entry)
                on_image[item.image] += 1
                pictures.regions[f"{item.image}-{on_image[item.image]}"] = list(item.about)
        path = root / "qas" / split / f"{split}_qa.pkl"
        path.parent.mkdir(parents=True)
        # through JSON, so that equal texts are distinct objects and the bytes depend on the content alone
        path.write_bytes(pickle.dumps(json.loads(json.dumps(rows)), protocol=4))
    pictures.write_beside()


# --- VQA-Med-2019 ------------------------------------------------------------------------------------------------------

M19_FOLDERS = {"train": "ImageClef-2019-VQA-Med-Training", "val": "ImageClef-2019-VQA-Med-Validation"}
M19_CATEGORY = {"MODALITY": "modality", "PLANE": "plane", "ORGAN": "organ", "ABN": "abnormality"}
M19_FILES = {"modality": "C1_Modality", "plane": "C2_Plane", "organ": "C3_Organ", "abnormality": "C4_Abnormality"}
M19_SHARES = {
    ("MODALITY", "open"): 0.13,
    ("MODALITY", "closed"): 0.09,
    ("MODALITY", "weighting"): 0.03,
    ("PLANE", "open"): 0.15,
    ("PLANE", "closed"): 0.1,
    ("ORGAN", "open"): 0.15,
    ("ORGAN", "closed"): 0.1,
    ("ABN", "open"): 0.15,
    ("ABN", "closed"): 0.1,
}
# What the test references accept beside an answer: alternatives (#) and parts that may be left out (parentheses).
M19_REFERENCE = {
    "chest": "chest#thorax#lung, mediastinum, pleura",
    "head": "head#skull and contents",
    "x-ray": "x-ray (plain film)",
    "pleural effusion": "pleural effusion#effusion",
    "consolidation": "(airspace) consolidation",
    "hemorrhage": "hemorrhage (intracranial)",
    "axial": "axial (transverse)",
}


def write_vqa_med_2019(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Text files with `|` between fields: of training and validation, one file of all questions and one per category.

    At most one question of a category on a training or validation image, one question on a test image. More cases are
    drawn than test images are asked for, so that the test questions can be balanced; only those asked about are written.
    """
    pictures, first = _Pictures(root, seed, size), 0
    for number, split in enumerate(SPLITS):
        test = split == "test"
        cases = [pictures.case(index) for index in range(first, first + counts[f"{split}_images"])]
        first += len(cases)
        part = [(f"phantom{seed}{case.index:04d}", case) for case in cases]
        rng = np.random.default_rng([seed, number, 9])
        items = phantom_questions.draw(
            part,
            counts[f"{split}_questions"],
            rng,
            M19_SHARES,
            lambda q, test=test: q.image if test else (q.image, q.kind),
        )
        items.sort(key=lambda item: list(M19_CATEGORY).index(item.kind))  # by category, as the release
        asked = {item.image for item in items}
        folder = Path("VQAMed2019Test/VQAMed2019_Test_Images") if test else Path(M19_FOLDERS[split])
        folder = folder if test else folder / {"train": "Train_images", "val": "Val_images"}[split]
        for image_id, case in part:
            if image_id in asked:
                pictures.draw(case, image_id, folder / f"{image_id}.jpg")
        lines, on_image = {category: [] for category in M19_FILES}, Counter()
        for place, item in enumerate(items):
            question = item.wordings[place % len(item.wordings)].lower()
            question = question.replace(" ", " \t", 1) if place % 83 == 2 else question  # as in the release
            answer = str(item.answer).lower()
            if test and place % 3 == 0:
                answer = M19_REFERENCE.get(answer, answer)
            on_image[item.image] += 1
            pictures.regions[f"{item.image}-{on_image[item.image]}"] = list(item.about)
            lines[M19_CATEGORY[item.kind]].append((item.image, question, answer))
        _write_m19(root, split, lines)
    pictures.write_beside()


def _write_m19(root: Path, split: str, lines: dict[str, list[tuple[str, str, str]]]) -> None:
    def write(name: str, content: list[str]) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(f"{line}\n" for line in content).encode())

    if split == "test":
        whole = [(image, category, q, a) for category, part in lines.items() for image, q, a in part]
        write("VQAMed2019Test/VQAMed2019_Test_Questions.txt", [f"{image}|{q}" for image, _, q, _ in whole])
        write("VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt", ["|".join(row) for row in whole])
        return
    folder = M19_FOLDERS[split]
    write(f"{folder}/All_QA_Pairs_{split}.txt", ["|".join(row) for part in lines.values() for row in part])
    for category, part in lines.items():
        write(f"{folder}/QAPairsByCategory/{M19_FILES[category]}_{split}.txt", ["|".join(row) for row in part])


WRITERS = {
    "vqa_rad": write_vqa_rad,
    "slake": write_slake,
    "pathvqa": write_pathvqa,
    "vqa_med_2019": write_vqa_med_2019,
}
