"""The patch maps that are stored with a run, for figures: which words they are of, and the regions to compare."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from amif_lib import methods
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests, regions, store
from amif_lib.data.load import load_questions, load_studies
from amif_lib.experiments import stored, stored_maps
from amif_lib.methods.amif.patch_maps import word_positions
from amif_lib.networks import pixels, tokenizers
from amif_lib.networks.tokenizers import content_mask

HELD_OUT = "phantom_teacher"  # generated data on which the teacher of the soft labels is trained, but no student
SHOWN = ("vqa_rad", "vqa_med_2019")  # for stage 2 on real data: question sets whose images may be shown
MOST, EXAMPLES = 150, 4  # words per run, and how many of them with a picture
PICTURE = 96  # side of an example's picture, pixels


def ensure(run: Any) -> Path | None:
    """Store a finished run's maps unless they are there; returns their file, or None if it has no maps.

    `run` is a run, its specification or id. Raises InputError if the run is not finished.
    """
    run = run if isinstance(run, stored.Run) else stored.load_run(run)
    if not stored.is_finished(run.spec):
        raise InputError(f"{paths.shown(run.directory)}: the run is not finished; train it first")
    path = run.directory / stored_maps.MAPS
    if not path.is_file():
        content = word_maps(run)
        return content and stored_maps.write(path, stored_maps.Maps(**content))
    return path


@torch.inference_mode()
def word_maps(run: Any) -> dict[str, Any] | None:
    """Fields of `stored_maps.Maps`; None for a method or stage without maps, for blank images, and without a text.

    Generated data: the first `MOST` words that name a finding which the image shows. Real data, where no regions are
    known: words of `EXAMPLES` test questions.
    """
    spec = run.spec
    if spec.stage == "stage1" or spec.data.blank_images or not hasattr(methods.load(spec.method), "maps"):
        return None
    tokenizer, (name, asked) = tokenizers.load(run.directory / "model"), words_asked(spec)
    length = spec.data.text_length if name == HELD_OUT else spec.data.question_length
    found = []  # row, token ids, and the positions of the word's tokens
    for row in asked:
        ids = tokenizer(row.read, truncation=True, max_length=length)["input_ids"]
        with contextlib.suppress(InputError):  # the word is cut off
            found.append((row, ids, word_positions(tokenizer, ids, row.word)))
    if not found:
        print(f"{spec.stage} {run.run_id}: no maps: no text that may be shown names what its image shows")
        return None
    table = pd.DataFrame([row for row, *_ in found])
    examples = table.drop_duplicates("label").drop_duplicates("image_id").index[:EXAMPLES].tolist()
    if located := regions.known(name):
        found, examples = found[:MOST], [i for i in examples if i < MOST]
    else:
        found, examples = [found[i] for i in examples], list(range(len(examples)))
    rows, tokens, places = zip(*found, strict=True)
    pictures, side = store.pictures([name], spec.model.stored_side), spec.model.image_size // spec.model.patch_size
    images = torch.stack([pixels.to_tensor(pictures[row.image_id], spec.model.image_size) for row in rows])
    padded = tokenizer.pad({"input_ids": list(tokens)}, return_tensors="pt")
    ids, mask = padded["input_ids"], padded["attention_mask"].bool()  # (n, t) each
    real = content_mask(ids, mask, (tokenizer.cls_token_id, tokenizer.sep_token_id))  # (n, t)
    values = methods.load(spec.method).maps(run, images, ids, mask, real, places)
    masks = [np.zeros((side, side))] * len(rows)
    if located:
        masks = [next(regions.masks(name, [row.image_id], [row.label]))[0] for row in rows]  # (H, W) each
    grey = [pictures[rows[i].image_id].convert("L").resize((PICTURE, PICTURE), Image.BICUBIC) for i in examples]
    return {
        "data_set": name,
        **{f"{field}s": np.array([getattr(row, field) for row in rows]) for field in regions.Asked._fields[:5]},
        "coverage": np.stack([regions.coverage(mask, side) for mask in masks]),  # (n, s, s)
        "values": {kind: maps.numpy() for kind, maps in values.items()},  # (n, s, s)
        "examples": np.array(examples),
        "pictures": np.stack(grey),
        "outlines": np.stack([regions.coverage(masks[i], PICTURE) >= 0.5 for i in examples]),
    }


def words_asked(spec: Any) -> tuple[str, list[regions.Asked]]:
    """A data set whose texts the run was not trained on, and words of them.

    Fine-tuning: test questions. Stage 2 on generated data: reports of `HELD_OUT`. Stage 2 on real data has no such
    reports: test questions of the first set in `SHOWN` that is here and that pre-training was decontaminated against.
    """
    data, own = spec.data, spec.stage == "finetune"
    if not own and all(map(regions.known, data.pretrain)):
        studies = load_studies(HELD_OUT, stored_side=spec.model.stored_side)
        return HELD_OUT, regions.named_in_reports(HELD_OUT, studies)
    for name in [data.questions] if own else [name for name in SHOWN if name in data.decontaminate_against]:
        try:
            questions = load_questions(name, **(data.question_settings if own else {}))
        except InputError:  # the set is not here
            continue
        if manifests.may_show(name, "images") and manifests.may_show(name, "texts"):
            if not regions.known(name):
                return name, regions.answer_words(questions)
            tested = [q for q in questions if q.split == "test" and q.language == "en"]
            return name, regions.named_in_questions(name, tested)
    return "", []
