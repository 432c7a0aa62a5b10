"""Images with labels, for what is read out of a frozen encoder: linear probes, zero-shot classification, segmentation.

Cases and studies are split by `medpix2_questions.split_of`. No pre-training may see those that are tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests, regions
from amif_lib.data.readers.medpix2_questions import split_of

FINDING = "finding"  # the kind of labels of which an image may have several


@dataclass(frozen=True)
class Labelled:
    """n images and F labels, each of a kind; of kinds other than `FINDING` an image has at most one label."""

    data_set: str
    images: pd.DataFrame  # (n, 3): image_id; group, the study or case, which no subset splits; split
    labels: pd.DataFrame  # (n, F): 1, 0, or NaN where an image is not asked about the label
    kinds: pd.Series  # (F,): by label

    @property
    def has_regions(self) -> bool:
        """Whether it is known where an image shows its labels."""
        return regions.known(self.data_set) and set(self.kinds) == {FINDING}

    def masks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Where each of these images shows each label: (F, H, W) of booleans."""
        return regions.masks(self.data_set, self.images["image_id"].to_numpy()[rows], list(self.labels))


def read(name: str, stored_side: int) -> Labelled:
    """The labelled images of a data set, stored for training at the short side `stored_side`, pixels.

    Of a generated set, what the images show; a finding is asked about in the views in which it occurs. Of a question
    set, the answers to its open questions, by type of question. Raises InputError for other sets, for a mask that has
    another size than its image, and as `load` does.
    """
    if manifests.load(name).role == "questions":
        return _asked(name, stored_side)
    if regions.known(name):
        return _drawn(name, stored_side)
    raise InputError(f"data set {name!r}: has no labels; name a generated set or a question set")


def _drawn(name: str, stored_side: int) -> Labelled:
    studies = load.load_studies(name, stored_side=stored_side)
    pictures = [(study, picture) for study in studies for picture in study.images]
    masks = regions.masks(name, [picture.image_id for _, picture in pictures], ["lungs"])
    for (_, picture), mask in zip(pictures, masks, strict=True):
        with Image.open(picture.path) as image:
            if image.size != mask.shape[:0:-1]:
                said = f"{image.size} pixels, its mask {mask.shape[:0:-1]}"
                raise InputError(f"{paths.shown(picture.path)}: {said}; give both the same size")
    rows = [(picture.image_id, study.study_id, split_of(study.study_id)) for study, picture in pictures]
    shown = [regions.findings(name, picture.image_id) for _, picture in pictures]
    views, columns = pd.Series([picture.view for _, picture in pictures]), {}
    for label in sorted({finding for found in shown for finding in found}):
        has = pd.Series([label in found for found in shown])
        columns[label] = has.astype(float).where(views.isin(views[has]))
    images = pd.DataFrame(rows, columns=["image_id", "group", "split"])
    return Labelled(name, images, pd.DataFrame(columns), pd.Series(FINDING, index=list(columns)))


def _asked(name: str, stored_side: int) -> Labelled:
    from amif_lib.data import store  # needs Hugging Face's datasets, which the light environment has not

    questions = [q for q in store.usable(name, stored_side, load.load_questions(name)) if not q.closed_yes_no]
    rows = [(q.image_id, q.extra.get("case_id", q.image_id), q.split, q.question_type, q.answer) for q in questions]
    asked = pd.DataFrame(rows, columns=["image_id", "group", "split", "kind", "answer"])
    images = asked.drop_duplicates("image_id")[["image_id", "group", "split"]].reset_index(drop=True)
    answers = asked.pivot(index="image_id", columns="kind", values="answer").loc[images["image_id"]].reset_index()
    taught = asked[asked["split"] == "train"].groupby("answer")["kind"].first().sort_values(kind="stable")
    columns = {a: (answers[k] == a).astype(float).where(answers[k].notna()) for a, k in taught.items()}
    return Labelled(name, images, pd.DataFrame(columns), taught)
