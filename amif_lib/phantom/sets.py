"""The phantom's sets, each written in the official layout of a real one, with that set's quirks on purpose.

Beside a set are files that no reader opens: `latents.json` (the cases), `masks/<image id>.png` with `masks.json`, and
`question_regions.json` (by question id, as the reader gives it, the mask labels that the question asks about).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amif_lib.core.progress import Bar
from amif_lib.phantom import questions, texts
from amif_lib.phantom.cases import Case, draw_case, stream
from amif_lib.phantom.drawing import FINDINGS, LABELS, draw
from amif_lib.phantom.questions import Candidate, SplitCases
from amif_lib.phantom.texts import MODALITY, REGION, choose

SPLITS = ("train", "val", "test")
Counts = dict[str, int]


class Writer:
    """Writes the files of a set into a folder, and keeps what is known of its cases, to be written beside them."""

    def __init__(self, root: Path, seed: int, size: int, bar: Bar) -> None:
        self.root, self.seed, self.size, self.bar = root, seed, size, bar
        self.cases: list[Case] = []
        self.masks: dict[str, dict[str, Any]] = {}
        self.regions: dict[str, list[str]] = {}

    def case(self, index: int, several: bool = False) -> Case:
        return draw_case(index, several, stream(self.seed, index, 0))

    def draw(self, case: Case, view: str, file: str, image_id: str) -> None:
        """Draw a view into `file` (under the set's folder), with its mask under the image's id."""
        rng = stream(self.seed, case.index, 2 + case.views.index(view))
        picture, labels = draw(case.study, view, case.anatomy, case.findings, self.size, rng)
        for image, path in ((picture, self.root / file), (labels, self.root / "masks" / f"{image_id}.png")):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=92)
        areas = np.bincount(np.asarray(labels).ravel(), minlength=len(LABELS) + 1)
        named = {name: int(areas[number]) for name, number in LABELS.items() if areas[number]}
        self.masks[image_id] = {"view": view, "areas": named}
        if case not in self.cases[-1:]:
            self.cases.append(case)
            self.bar.step()

    def draw_split(self, number: int, name: str, file: str) -> SplitCases:
        """Draw one image of each of `number` new cases, named by number; `{}` in `file` is the name."""
        first = len(self.cases)
        part = [(name.format(index), self.case(index)) for index in range(first, first + number)]
        for image_id, case in part:
            self.draw(case, case.views[0], file.format(image_id), image_id)
        return part

    def write(self, file: str, lines: Iterable[str]) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())

    def write_json(self, file: str, content: Any) -> None:
        (self.root / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def finish(self) -> None:
        """Latents and regions: ground truth for scoring maps."""
        self.write_json("latents.json", [vars(case) for case in self.cases])
        self.write_json("masks.json", {"labels": LABELS, "findings": FINDINGS, "images": self.masks})
        self.write_json("question_regions.json", self.regions)


# --- pre-training ----------------------------------------------------------------------------------------------------

POSITIONS = {"frontal": ("PA", "postero-anterior"), "lateral": ("LATERAL", "lateral")}


def mimic_cxr(out: Writer, counts: Counts) -> None:
    """MIMIC-CXR-JPG's folders and tables: studies of one or two views, with reports."""
    rows = []
    for index in range(counts["studies"]):
        case = out.case(index, several=True)
        subject, study = (start + 10_000 * out.seed + index for start in (10_000_000, 50_000_000))
        folder = f"files/p{str(subject)[:2]}/p{subject}/s{study}"
        out.write(f"mimic-cxr-reports/{folder}.txt", texts.report(case, stream(out.seed, index, 1)).splitlines())
        for view in case.views:
            dicom = hashlib.sha256(f"{out.seed} {index} {view}".encode()).hexdigest()[:40]
            out.draw(case, view, f"mimic-cxr-jpg/{folder}/{dicom}.jpg", dicom)
            position, code = POSITIONS.get(view, ("", view))
            ids = {"dicom_id": dicom, "subject_id": subject, "study_id": study, "split": "train"}
            rows.append(ids | {"ViewPosition": position, "ViewCodeSequence_CodeMeaning": code})
    table, packed = pd.DataFrame(rows), {"method": "gzip", "mtime": 0}
    for name, part in (("metadata", table.drop(columns="split")), ("split", table.iloc[:, :4])):
        part.to_csv(out.root / "mimic-cxr-jpg" / f"mimic-cxr-2.0.0-{name}.csv.gz", index=False, compression=packed)


def roco(out: Writer, counts: Counts) -> None:
    """ROCO's lists and images: articles of one or two figures; some rows lack a caption, some images are gone."""
    folder, captions, licences = "data/train/radiology", [], ["ROCO_ID,PMC_ID,CC"]
    for index in range(counts["studies"]):
        if index % 20 >= 18:  # would be in the validation or test split, which nothing reads
            continue
        name = f"ROCO_{90_000 + index:05d}"  # above the real set's ids
        article = f"PMC{990_000_000 + 1000 * out.seed + index * 2 // 3}"
        case, rng = out.case(index), stream(out.seed, index, 1)
        text = "" if index % 50 == 31 else texts.caption(case, rng)
        licence = choose(rng, ("CC BY", "CC BY", "CC BY-NC", "CC BY-NC-SA", "NO-CC CODE"))
        captions.append(f"{name}\t {text}")
        licences.append(f"{name},{article}_phantom-g{index:03d}.jpg,{licence}")
        if index % 40 != 20:  # else the article's archive is gone
            out.draw(case, case.views[0], f"{folder}/images/{name}.jpg", name)
    out.write(f"{folder}/captions.txt", captions)
    out.write(f"{folder}/licences.txt", licences)


def medicat(out: Writer, counts: Counts) -> None:
    """MedICaT's release: figures of papers; every tenth is no radiology, some captions are null, some images gone."""
    records = []
    for index in range(counts["studies"]):
        paper = hashlib.sha1(f"phantom {out.seed} {index // 2}".encode()).hexdigest()
        uri, rng = f"{2 + index % 5}-Figure{1 + index % 2}-1.png", stream(out.seed, index, 1)
        file, radiology, case = f"release/figures/{paper}_{uri}", index % 10 != 9, out.case(index)
        label = choose(rng, ("Figure 1. ", "Figure 2: ", "Fig. 3. ", "Fig 4 ", "FIGURE 5 | "))
        text = label + (texts.caption(case, rng) if radiology else "Photomicrograph of a synthetic specimen, × 400.")
        if radiology and index % 40 != 20:
            out.draw(case, case.views[0], file, Path(file).stem)
        doi = f"10.0000/phantom.{out.seed}.{index // 2}"
        licence = choose(rng, ("cc-by", "cc-by-nc", "cc-by-nc-nd", "")) or None
        access = {"doi": doi, "oa": {"is_oa": True, "license": licence}}
        # every twentieth has no caption of its own, every fortieth none at all
        captions = {"s2_caption": None if index % 20 == 13 else text,
                    "s2orc_caption": None if index % 40 == 33 or index % 7 == 0 else text}  # fmt: skip
        about = {"radiology": radiology, "oa_info": None if index % 9 == 4 else access}
        records.append({"pdf_hash": paper, "fig_uri": uri, **captions, **about})
    file = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
    out.write(file, map(json.dumps, records))


# --- questions -------------------------------------------------------------------------------------------------------


def vqa_rad(out: Writer, counts: Counts) -> None:
    """VQA-RAD's one JSON file: records of fourteen keys; numbers are integers, the first qid is text."""
    records: list[dict[str, Any]] = []
    for number, split in enumerate(("train", "test")):
        name, file = f"phantom{out.seed}{{:04d}}", "VQA_RAD Image Folder/{}.jpg"
        part = out.draw_split(counts[f"{split}_images"], name, file)
        rng = np.random.default_rng([out.seed, number, 9])
        for item in questions.draw(part, counts[f"{split}_questions"], rng):
            several, qid = len(item.wordings) > 1, len(records)
            first, second = (int(i) for i in (*rng.permutation(len(item.wordings)), 0)[:2])
            phrase = "para" if several and rng.random() < 0.3 else "freeform"
            records.append({
                "qid": qid or str(qid), "phrase_type": ("test_" if split == "test" else "") + phrase,
                "qid_linked_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
                "image_case_url": f"phantom://{item.image}", "image_name": f"{item.image}.jpg",
                "image_organ": REGION[item.case.study].upper(), "evaluation": "not evaluated",
                "question": item.wordings[first], "question_rephrase": item.wordings[second] if several else "NULL",
                "question_relation": "strict agreement" if several else "NULL", "question_frame": "NULL",
                "question_type": item.kind, "answer": item.answer, "answer_type": "CLOSED" if item.closed else "OPEN",
            })  # fmt: skip
            out.regions[str(qid)] = list(item.about)
    out.write_json("VQA_RAD Dataset Public.json", records)


SLAKE_FILES = {"train": "train.json", "val": "validate.json", "test": "test.json"}
SLAKE_FIRST_QID = 1600  # so that qid 1622, whose answer the release leaves empty, is an English training question
CONTENT = {"MODALITY": "Modality", "PLANE": "Plane", "ORGAN": "Organ", "POS": "Position", "COUNT": "Quantity"}
LOCATION = {"chest": "Lung", "head": "Brain"}
SLAKE_MODALITY = {"x-ray": "X-Ray", "CT": "CT", "MRI": "MRI"}


def slake(out: Writer, counts: Counts) -> None:
    """English and Chinese questions, each language with its own split of the same images, as in the release.

    The English test images (and those of validation) are Chinese training images: training on both languages leaks.
    """
    english, rows, qid = {}, defaultdict(list), SLAKE_FIRST_QID
    for split in SPLITS:
        english[split] = out.draw_split(counts[f"{split}_images"], "xmlab{}", "imgs/{}/source.jpg")
    shown = [*english["test"], *english["val"], *english["train"]]  # Chinese: the other way round
    cuts = np.cumsum([0, *(counts[f"{split}_images"] for split in SPLITS)])
    for number, split in enumerate(SPLITS):
        rng, wanted = np.random.default_rng([out.seed, number, 9]), counts[f"{split}_questions"]
        items = [(item, "en") for item in questions.draw(english[split], wanted, rng)]
        part, wanted = shown[cuts[number] : cuts[number + 1]], counts[f"{split}_questions_zh"]
        items += [(item, "zh") for item in questions.draw(part, wanted, rng, questions.SHARES_ZH)]
        for place, (item, language) in enumerate(items):
            rows[split].append(_slake_row(item, language, place, qid))
            out.regions[str(qid)] = list(item.about)
            qid += 1
        out.write_json(SLAKE_FILES[split], rows[split])


def _slake_row(item: Candidate, language: str, place: int, qid: int) -> dict[str, Any]:
    """A record with SLAKE's twelve keys; every so many get one of the quirks that the reader evens out."""
    question, answer = item.wordings[place % len(item.wordings)], str(item.answer)
    if language == "zh":
        question, answer = questions.in_chinese(item, place)
    elif answer.isascii():  # the release mixes `Small bowel` and `Small Bowel`
        answer = answer.title() if place % 5 == 0 else answer[0].upper() + answer[1:]
    region, empty = REGION[item.case.study], qid == 1622
    return {
        "img_id": int(item.image.removeprefix("xmlab")), "img_name": f"{item.image}/source.jpg",
        "question": question.replace(" ", "  ", 1) if place % 61 == 7 else question,
        "answer": "" if empty else f"{answer} " if place % 53 == 11 else answer, "q_lang": language,
        "location": LOCATION[region], "modality": SLAKE_MODALITY[MODALITY[item.case.study]],
        "answer_type": ("CLOSED" if item.closed and not empty else "OPEN") + " " * (place % 59 == 3),
        "base_type": "vqa", "content_type": CONTENT.get(item.kind, "Abnormality"), "triple": ["vhead", "_", "_"],
        "qid": qid,
    }  # fmt: skip


def pathvqa(out: Writer, counts: Counts) -> None:
    """The pickle files of the official release: `image, question, answer`, no id and no field for open or closed."""
    for number, split in enumerate(SPLITS):
        name, file = f"{split}_{{:04d}}", f"images/{split}/{{}}.jpg"
        part = out.draw_split(counts[f"{split}_images"], name, file)
        asked = part[: len(part) - len(part) // 20]  # some images of the release have no question
        rows: list[dict[str, str]] = []
        on_image: Counter = Counter()
        rng = np.random.default_rng([out.seed, number, 9])
        for place, item in enumerate(questions.draw(asked, counts[f"{split}_questions"], rng)):
            question, answer = item.wordings[place % len(item.wordings)].lower(), str(item.answer).lower()
            question = question.replace(" ", "  ", 1) if place % 31 == 5 else question
            said = {3: f"{answer} ", 11: f" {answer}", 17: answer.capitalize()}.get(place % 47, answer)
            written = [said]
            if answer not in ("yes", "no") and place % 40 < 4:  # some questions occur twice, some but for a blank
                written += [said + "  " * (place % 40 == 0)]
            for text in written:
                rows.append({"image": item.image, "question": question, "answer": text})
                on_image[item.image] += 1
                out.regions[f"{item.image}-{on_image[item.image]}"] = list(item.about)
        path = out.root / "qas" / split / f"{split}_qa.pkl"
        path.parent.mkdir(parents=True)
        # through JSON, so that equal texts are distinct objects and the bytes depend on the content alone
        path.write_bytes(pickle.dumps(json.loads(json.dumps(rows)), protocol=4))


MED_FOLDERS = {"train": ("ImageClef-2019-VQA-Med-Training", "Train_images"),
               "val": ("ImageClef-2019-VQA-Med-Validation", "Val_images"),
               "test": ("VQAMed2019Test", "VQAMed2019_Test_Images")}  # fmt: skip
MED_CATEGORY = {"MODALITY": "Modality", "PLANE": "Plane", "ORGAN": "Organ", "ABN": "Abnormality"}
MED_SHARES = {"MODALITY/open": 0.14, "MODALITY/closed": 0.11, "PLANE/open": 0.15, "PLANE/closed": 0.1,
              "ORGAN/open": 0.15, "ORGAN/closed": 0.1, "ABN/open": 0.15, "ABN/closed": 0.1}  # fmt: skip
# What the test references accept beside an answer: alternatives (#) and parts that may be left out (parentheses).
MED_REFERENCE = {"chest": "chest#thorax#lung, mediastinum, pleura", "head": "head#skull and contents",
                 "x-ray": "x-ray (plain film)", "pleural effusion": "pleural effusion#effusion",
                 "consolidation": "(airspace) consolidation", "hemorrhage": "hemorrhage (intracranial)",
                 "axial": "axial (transverse)"}  # fmt: skip


def vqa_med_2019(out: Writer, counts: Counts) -> None:
    """Text files with `|` between fields: of training and validation, one file of all questions and one per category.

    A training or validation image has at most one question of a category, a test image one question. More cases are
    drawn than there are test images, to balance the test questions; only images with a question are written.
    """
    first = 0
    for number, split in enumerate(SPLITS):
        test, (folder, pictures) = split == "test", MED_FOLDERS[split]
        part = [(f"phantom{out.seed}{i:04d}", out.case(i)) for i in range(first, first + counts[f"{split}_images"])]
        first += len(part)
        rng = np.random.default_rng([out.seed, number, 9])
        once = (lambda item: item.image) if test else (lambda item: (item.image, item.kind))
        items = questions.draw(part, counts[f"{split}_questions"], rng, MED_SHARES, once)
        items.sort(key=lambda item: list(MED_CATEGORY).index(item.kind))  # by category, as the release
        asked = {item.image for item in items}
        for image_id, case in part:
            if image_id in asked:
                out.draw(case, case.views[0], f"{folder}/{pictures}/{image_id}.jpg", image_id)
        on_image: Counter = Counter()
        lines: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for place, item in enumerate(items):
            question, answer = item.wordings[place % len(item.wordings)].lower(), str(item.answer).lower()
            question = question.replace(" ", " \t", 1) if place % 83 == 2 else question  # as in the release
            answer = MED_REFERENCE.get(answer, answer) if test and place % 3 == 0 else answer
            on_image[item.image] += 1
            out.regions[f"{item.image}-{on_image[item.image]}"] = list(item.about)
            lines[MED_CATEGORY[item.kind]].append((item.image, question, answer))
        every = [(image, category.lower(), q, a) for category, rows in lines.items() for image, q, a in rows]
        if test:
            out.write(f"{folder}/VQAMed2019_Test_Questions_w_Ref_Answers.txt", map("|".join, every))
            continue
        out.write(f"{folder}/All_QA_Pairs_{split}.txt", (f"{image}|{q}|{a}" for image, _, q, a in every))
        for place, (category, rows) in enumerate(lines.items(), start=1):
            out.write(f"{folder}/QAPairsByCategory/C{place}_{category}_{split}.txt", map("|".join, rows))
