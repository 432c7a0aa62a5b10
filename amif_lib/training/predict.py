"""Answer every test question: rank all candidates exactly, generate freely, write `predictions.parquet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from amif_lib.core import progress
from amif_lib.data.records import Question, normalise_answer
from amif_lib.experiments.predictions import write_predictions
from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.networks import tokenizers
from amif_lib.networks.ranking import rank_answers
from amif_lib.objectives.distributed import gather_objects, rank, world_size
from amif_lib.training.batches import QuestionData, loader


def candidate_answers(questions: Sequence[Question]) -> list[str]:
    """The answers of all splits, normalised, sorted: every protocol's candidate list is a part of it."""
    return sorted({answer for question in questions for answer in question.answers})


def memory_bound(device: torch.device) -> int:
    """Bytes that answering may take beside the weights: a quarter of what is free on a GPU, 1 GiB elsewhere."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**30


def questions_per_pass(model: AMiFForVQA, bytes_free: int, most: int = 64) -> int:
    """How many questions are encoded and ranked at once: 1 to `most`, so that activations stay below `bytes_free`.

    A question is taken to need its joint tokens 16 layer-wide fp32 values each (queries, keys, values, a feed-forward's
    inner layer and copies) and, in every head, one weight per attended token: its own or the knowledge's. Ranking bounds
    its own passes.
    """
    spec = model.spec
    tokens = (spec.image_size // spec.patch_size) ** 2 + 1 + model.question_length
    attended = max(tokens, len(model.knowledge_ids))
    heads = max(spec.fusion_heads, spec.image_heads)
    return max(1, min(most, bytes_free // (4 * tokens * (16 * spec.width + heads * attended))))


@torch.inference_mode()
def predict(
    model: AMiFForVQA,
    questions: Sequence[Question],
    spec: RunSpec,
    folder: Path,
    blank: bool | None = None,
    batch_size: int | None = None,
) -> None:
    """Answer the test questions among `questions` (whose training rows give the `train` candidates) and write the files.

    Each process answers its share; each question is counted once, whatever the number of processes. `batch_size`
    questions go through the network at once: as many as memory allows where it is None. It changes results by no more
    than rounding.
    """
    model.eval()
    device = model.knowledge_ids.device
    if batch_size is None:
        batch_size = questions_per_pass(model, memory_bound(device))
    test = [question for question in questions if question.split == "test"]
    candidates = candidate_answers(questions)
    tokens = model.tokenize_answers(candidates)
    data = QuestionData(test, spec, model.tokenizer, blank=blank)
    own = list(range(rank(), len(test), world_size()))
    keys = [
        [(0, index, 1.0, 1) for index in own[start : start + batch_size]] for start in range(0, len(own), batch_size)
    ]
    bar = progress.bar(len(own), "answering" if blank is None else "answering on blank images", show=rank() == 0)
    found: list[dict[str, Any]] = []
    for key, batch in zip(keys, loader(data, keys, workers=0), strict=True):
        batch = batch.to(device)
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=device.type == "cuda" and spec.train.precision == "auto"
        ):
            memory, memory_mask = model.encode(batch.images, batch.ids, batch.mask)
        memory = memory.float()
        scores = rank_answers(model.decoder, memory, memory_mask, tokens).cpu()  # (B, K)
        written = model.decoder.generate(
            memory, memory_mask, model.tokenizer.cls_token_id, model.tokenizer.sep_token_id, model.answer_length
        )
        texts = [tokenizers.decode(model.tokenizer, ids) for ids in written]
        found += [
            {"index": k[1], "log_likelihoods": row.numpy(), "generated": normalise_answer(text)}
            for k, row, text in zip(key, scores, texts, strict=True)
        ]
        bar.step(len(key))
    bar.close()
    everyone = sorted((row for part in gather_objects(found) for row in part), key=lambda row: row["index"])
    if rank() == 0:
        splits = ("train", "val", "test")
        in_split = {split: {a for q in questions if q.split == split for a in q.answers} for split in splits}
        table = pd.DataFrame(
            {
                "answer": candidates,
                "tokens": [len(ids) - 1 for ids in tokens],  # all after [CLS], [SEP] included
                **{f"in_{split}": [a in in_split[split] for a in candidates] for split in splits},
            }
        )
        frame = pd.DataFrame(
            [
                {
                    "question_id": q.question_id,
                    "image_id": q.image_id,
                    "question": q.question,
                    "gold": list(q.answers),
                    "split": q.split,
                    "question_type": q.question_type,
                    "closed_field": q.closed_field,
                    "closed_yes_no": q.closed_yes_no,
                    "generated": row["generated"],
                    "log_likelihoods": row["log_likelihoods"],
                }
                for q, row in zip(test, everyone, strict=True)
            ]
        )
        write_predictions(folder, frame, table)
