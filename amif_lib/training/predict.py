"""Answer every test question: rank all candidates exactly, generate freely, write `predictions.parquet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from amif_lib.core import progress
from amif_lib.data.records import Question
from amif_lib.experiments.predictions import candidate_frame, question_frame, write_predictions
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.networks.answering import Answerer
from amif_lib.objectives.distributed import gather_objects, rank, world_size
from amif_lib.training.batches import QuestionData, loader


def candidate_answers(questions: Sequence[Question]) -> list[str]:
    """The answers of all splits, normalised, sorted: every protocol ranks a subset of them."""
    return sorted({answer for question in questions for answer in question.answers})


def other_images(case_of: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """For each image another case's image, each used once (`case_of`: case by image id); {} if that is impossible."""
    draw = np.random.default_rng(seed).permutation
    place = {case: number for number, case in enumerate(draw(sorted(set(case_of.values()))).tolist())}
    order = sorted(sorted(case_of), key=lambda image: place[case_of[image]])  # images of one case are neighbours:
    largest = max(Counter(case_of.values()).values(), default=0)  # a shift by the largest case's size leaves it
    return dict(zip(order, order[largest:] + order[:largest], strict=True)) if 2 * largest <= len(order) else {}


@torch.inference_mode()
def predict(
    model: Answerer,
    questions: Sequence[Question],
    spec: RunSpec,
    folder: Path,
    shown: Literal["own", "blank", "shuffled"] = "own",
    batch_size: int = 32,
) -> int:
    """Answer the test questions among `questions`, write predictions and candidates to `folder`, return how many.

    `shown` says which image goes with each question: its own, a blank one, or a test image of another case
    (`other_images`; if there is none, nothing is written and 0 returned). Each process answers its share, `batch_size`
    questions at a time, which changes results by no more than rounding.
    """
    model.eval()
    device = next(model.parameters()).device
    test = [question for question in questions if question.split == "test"]
    candidates = candidate_answers(questions)
    tokens = model.tokenize_answers(candidates)
    asked = test
    if shown == "shuffled":
        other = other_images({q.image_id: q.extra.get("case_id", q.image_id) for q in test})  # no case: the image
        test = [question for question in test if question.image_id in other]
        asked = [replace(question, image_id=other[question.image_id]) for question in test]
        if not test:
            return 0
    data = QuestionData(asked, spec, model.tokenizer, blank=shown == "blank")
    own = [(0, index, 1.0, 1) for index in range(rank(), len(test), world_size())]
    keys = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    bf16 = device.type == "cuda" and spec.train.precision != "fp32"  # a CPU answers in fp32, however it was trained
    bar = progress.bar(len(own), f"answering, {shown} images", show=rank() == 0)
    found: list[tuple[int, Any, str]] = []
    for key, batch in zip(keys, loader(data, keys, workers=0), strict=True):
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            memory, memory_mask = model.encode(batch.images, batch.ids, batch.mask)  # (B, p+1+t, d), (B, p+1+t)
        memory = memory.float()
        scores = model.score(memory, memory_mask, tokens).cpu().numpy()  # (B, K)
        texts = model.write(memory, memory_mask)
        found += zip((index for _, index, _, _ in key), scores, texts, strict=True)
        bar.step(len(key))
    bar.close()
    everyone = sorted((row for part in gather_objects(found) for row in part), key=lambda row: row[0])
    if rank() == 0:
        _, scores, texts = zip(*everyone, strict=True)
        frame = question_frame(test).assign(generated=texts, log_likelihoods=scores)
        counted = [len(ids) - 1 for ids in tokens]  # all after [CLS], [SEP] included
        write_predictions(folder, frame, candidate_frame(candidates, counted, questions))
    return len(test)
