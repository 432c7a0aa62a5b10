"""Questions in the form of VQA-Med-2019 (modality, plane, organ system, yes or no of each) on MedPix-2.0's images.

The answers are the set's own metadata, the wordings are ours; nothing is random, so everyone gets the same questions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from amif_lib.data.readers import files
from amif_lib.data.readers.files import Record
from amif_lib.data.readers.medpix2 import records, text_of
from amif_lib.data.records import Question, normalise_answer

TRAINING_FILES = ("by_case",)
SHARES = {"test": 0.2, "val": 0.1}  # of the cases; the others are for training
# Kind of question: metadata key; values asked about (those of at least 20 images, without montages and "other"); open
# wordings; yes/no wordings, in which `{}` is the value asked about.
KINDS = {
    "modality": (
        "modality",
        ("CT w/contrast (IV)", "CT - noncontrast", "CT - GI & IV Contrast", "CT - GI Contrast", "MR - T2 weighted",
         "MR - T1W - noncontrast", "MR - T1W w/Gadolinium", "MR - T1W w/Gd (fat suppressed)", "MR - FLAIR",
         "MR - DWI Diffusion Weighted", "MR - FIESTA", "MR T2* gradient,GRE,MPGR,SWAN,SWI",
         "MRA - MR Angiography/Venography"),
        ("what imaging modality was used?", "how was this image taken?", "which type of imaging is this?"),
        ("was this image taken with {}?", "is the imaging modality {}?", "is this type of imaging {}?"),
    ),
    "plane": (
        "plane",
        ("Axial", "Coronal", "Sagittal"),
        ("in which plane is this image?", "what is the imaging plane?", "which plane is shown here?"),
        ("is this image in the {} plane?", "is the imaging plane {}?", "is the plane shown here {}?"),
    ),
    "organ": (
        "location",
        ("Brain and Neuro", "Musculoskeletal", "Chest, Pulmonary", "Gastrointestinal", "Genitourinary",
         "Head and Neck", "Spine", "Vascular", "Cardiovascular", "Eye and Orbit"),
        ("which organ system is shown?", "what organ system is this image of?", "what part of the body is this?"),
        ("is the organ system shown {}?", "is this image of the organ system {}?", "is this part of the body {}?"),
    ),
}  # fmt: skip


def read(root: Path, layout: Mapping[str, str], training_file: str = "by_case") -> list[Question]:
    """The questions of all three splits (`split_of`), in a fixed shuffled order; `question_type` is the kind.

    Adjacent slices are near-duplicates: of a case's images with equal modality, plane and organ system only the first
    is asked about. Within a split and kind no answer has more questions than the second most frequent one, and each
    yes/no question whose answer is yes has a partner about the same value, in the same words, whose answer is no: the
    text of a yes/no question says nothing about its answer. `layout` is that of the reader `medpix2`.
    """
    first: dict[tuple[str, ...], Record] = {}
    for record in sorted(records(root, layout), key=lambda record: (record["case_id"], record["image_id"])):
        where = f"{root / layout['annotations']}: image {record['image_id']}: case_id"
        files.check_one_of(record["case_id"], [case_of(record["image_id"])], where)
        values = {kind: text_of(record.get(key)) for kind, (key, *_) in KINDS.items()}
        first.setdefault((record["case_id"], *values.values()), record | values)
    questions = []
    for split in ("train", "val", "test"):
        part = sorted(
            (r for r in first.values() if split_of(r["case_id"]) == split), key=lambda r: _order(r["image_id"])
        )
        made = [question for kind in KINDS for question in _questions(part, split, kind, root)]
        questions += sorted(made, key=lambda question: _order(question.question_id))
    return questions


def case_of(image_id: str) -> str:
    """The case of an image id, `MPX1007` of `MPX1007_synpic46719`; `read` compares it with the metadata."""
    return image_id.partition("_synpic")[0]


def split_of(case: str) -> str:
    """The split of a case, by a digest of its id, so that it does not depend on which other cases there are."""
    place = _order(case)
    return "test" if place < SHARES["test"] else "val" if place < sum(SHARES.values()) else "train"


def _order(key: str) -> float:
    """A number in [0, 1) that looks random and is the same on every machine."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def _questions(part: list[Record], split: str, kind: str, root: Path) -> Iterator[Question]:
    """The open and the yes/no questions of one kind on the images of one split."""
    _, known, open_words, closed_words = KINDS[kind]
    part = [record for record in part if record[kind] in known]
    most = Counter(record[kind] for record in part).most_common(2)[-1][1]  # count of the second most frequent answer
    seen: Counter[str] = Counter()
    kept = []
    for record in part:
        seen[record[kind]] += 1
        if seen[record[kind]] <= most:
            kept.append(record)

    def question(record: Record, words: str, answer: str, ending: str = "") -> Question:
        name, extra = record["image_id"], {"case_id": record["case_id"]}
        more = {"image_id": name, "question_type": kind, "extra": extra}
        return files.question(f"{name}-{kind}{ending}", root / record["file"], words, [answer], split, **more)

    for record in kept:
        yield question(record, open_words[_wording(record)], record[kind])
    for true, false in _pairs(kept, kind):
        words = closed_words[_wording(true)].format(normalise_answer(true[kind]))
        yield question(true, words, "yes", "-yes")
        yield question(false, words, "no", "-no")


def _wording(record: Record) -> int:
    return int(_order(f"wording {record['image_id']}") * 3)


def _pairs(part: list[Record], kind: str) -> Iterator[tuple[Record, Record]]:
    """Images in pairs of different values, each image once."""
    left = list(part)
    while left:
        true = left.pop(0)
        false = next((record for record in left if record[kind] != true[kind]), None)
        if false is not None:
            left.remove(false)
            yield true, false
