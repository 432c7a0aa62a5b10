"""Images with labels, to test a frozen encoder by linear probes, zero-shot classification and segmentation.

Cases and studies are split by `medpix2_questions.split_of`, and pre-training must not see those of the test split.
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

FINDING = "finding"  # the only kind of which an image may have several labels


@dataclass(frozen=True)
class Labelled:
    """n images and F labels. Each label is of a kind; except for `FINDING`, an image has at most one label per kind."""

    data_set: str
    images: pd.DataFrame  # (n, 3): image_id; group (study or case, never divided between subsets); split
    labels: pd.DataFrame  # (n, F): 1, 0, or NaN if the label does not apply to the image
    kinds: pd.Series  # (F,): kind of each label

    @property
    def has_regions(self) -> bool:
        """Whether the pixels that show each label are known."""
        return regions.known(self.data_set) and set(self.kinds) == {FINDING}

    def masks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Where each of these images shows each label: (F, H, W) of booleans."""
        return regions.masks(self.data_set, self.images["image_id"].to_numpy()[rows], list(self.labels))


def read(name: str, stored_side: int) -> Labelled:
    """The labelled images of a data set, stored for training with a short side of `stored_side` pixels.

    Labels of a generated set are the findings that its images show; a finding applies to the views in which it occurs.
    Labels of a question set are the answers to its open questions; their kind is the type of question. Raises
    InputError for other sets, for a mask and an image of different sizes, and as `load` does.
    """
    if manifests.load(name).role == "questions":
        return _asked(name, stored_side)
    if regions.known(name):
        return _drawn(name, stored_side)
    raise InputError(f"data set {name!r}: has no labels; name a generated set or a question set")


def _drawn(name: str, stored_side: int) -> Labelled:
    studies = load.load_studies(name, stored_side=stored_side)
    pictures = [(study, picture) for study in studies for picture in study.images]
    masks = regions.masks(name, [picture.image_id for _, picture in pictures], ["lungs"])  # (1, H, W) each
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
    from amif_lib.data import store  # needs Hugging Face's datasets, which the light environment lacks

    questions = [q for q in store.usable(name, stored_side, load.load_questions(name)) if not q.closed_yes_no]
    rows = [(q.image_id, q.extra.get("case_id", q.image_id), q.split, q.question_type, q.answer) for q in questions]
    asked = pd.DataFrame(rows, columns=["image_id", "group", "split", "kind", "answer"])
    if asked.duplicated(["image_id", "kind"]).any():
        raise InputError(f"data set {name!r}: has images with several questions of one type; name another set")
    images = asked.drop_duplicates("image_id")[["image_id", "group", "split"]].reset_index(drop=True)
    answers = asked.pivot(index="image_id", columns="kind", values="answer").loc[images["image_id"]].reset_index()
    # kind of each answer that occurs in training
    taught = asked[asked["split"] == "train"].groupby("answer")["kind"].first().sort_values(kind="stable")
    columns = {a: (answers[k] == a).astype(float).where(answers[k].notna()) for a, k in taught.items()}
    return Labelled(name, images, pd.DataFrame(columns), taught)
