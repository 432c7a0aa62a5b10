"""Inputs for benchmarks, drawn at random in the shapes of a run: no data set, no image library."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.batch import PretrainingBatch, QuestionBatch

CLS, SEP, MASK, FIRST_WORD = 2, 3, 4, 5  # ids of a vocabulary of this kit's making
TEACHER_DIM = 512
# How many of VQA-RAD's 121 test answers and 517 answers have 3, 4, … word pieces, [CLS] and [SEP] included (BERT's pieces).
LENGTHS = {
    121: {3: 23, 4: 19, 5: 17, 6: 18, 7: 17, 8: 8, 9: 3, 10: 4, 11: 3, 12: 1, 13: 4, 14: 2, 16: 1, 24: 1},
    517: {3: 62, 4: 94, 5: 96, 6: 77, 7: 57, 8: 29, 9: 24, 10: 16, 11: 12, 12: 12, 13: 14, 14: 8, 15: 4, 16: 2, 17: 1}
    | {19: 1, 20: 2, 21: 1, 22: 2, 24: 1, 25: 1, 32: 1},
}


def answers(count: int, vocabulary: int) -> list[list[int]]:
    """`count` (121 or 517) answers, [CLS] first and [SEP] last, with the lengths of VQA-RAD's and pieces by Zipf's law."""
    rng = np.random.default_rng(count)
    share = 1 / np.arange(1, vocabulary - 4)
    return [
        [CLS, *(4 + rng.choice(len(share), length - 2, p=share / share.sum())).tolist(), SEP]
        for length, number in LENGTHS[count].items()
        for _ in range(number)
    ]


def more_answers(count: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Any number of answers whose lengths and pieces are distributed as those of VQA-RAD's 517."""
    rng = np.random.default_rng((count, seed))
    share, often = 1 / np.arange(1, vocabulary - 4), np.array(list(LENGTHS[517].values()))
    lengths = rng.choice(list(LENGTHS[517]), count, p=often / often.sum())
    pieces = 4 + rng.choice(len(share), (count, max(LENGTHS[517])), p=share / share.sum())
    return [[CLS, *row[: length - 2].tolist(), SEP] for row, length in zip(pieces, lengths, strict=True)]


def texts(rows: int, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """(rows, length) token ids without padding: the dearest batch, and what operations are counted for."""
    ids = torch.randint(FIRST_WORD, vocabulary, (rows, length), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def studies(run: RunSpec, rows: int, seed: int = 0) -> PretrainingBatch:
    """A pre-training batch of `rows` studies, each with two views, a report at full length and a teacher's embeddings."""
    g = torch.Generator().manual_seed(seed)
    side, length, vocabulary = run.model.image_size, run.data.text_length, run.model.vocab_size
    ids = texts(rows, length, vocabulary, g)  # (B, t)
    mask = torch.ones_like(ids, dtype=torch.bool)
    dropped = (torch.rand(ids.shape, generator=g) < 0.15) & (ids >= FIRST_WORD)
    half = -(-length // 2)
    halves = torch.stack([ids[:, :half], ids[:, length - half :].index_fill(1, torch.tensor([0]), CLS)], 1)
    unit = torch.nn.functional.normalize
    return PretrainingBatch(
        views=torch.randn(rows, 2, 3, side, side, generator=g),
        view=torch.randint(0, 2, (rows,), generator=g),
        ids=ids,
        mask=mask,
        copy_ids=ids.masked_fill(dropped, MASK),
        view_label=torch.zeros(rows, 2, dtype=torch.long),
        group=torch.arange(rows),
        text_key=torch.arange(rows),
        teacher_views=unit(torch.randn(rows, 2, TEACHER_DIM, generator=g), dim=-1),
        teacher_text=unit(torch.randn(rows, TEACHER_DIM, generator=g), dim=-1),
        step=1,  # not one of those whose plans the collapse monitor solves exactly, on the CPU
        halves_ids=halves,  # (B, 2, t')
        halves_mask=torch.ones_like(halves, dtype=torch.bool),
        mlm_ids=ids.masked_fill(dropped, MASK),
        mlm_chosen=dropped,
    )


def questions(run: RunSpec, rows: int, answer_tokens: int, seed: int = 0) -> QuestionBatch:
    """A fine-tuning batch of `rows` questions at full length, with answers of `answer_tokens` tokens."""
    g = torch.Generator().manual_seed(seed)
    side, vocabulary = run.model.image_size, run.model.vocab_size
    ids = texts(rows, run.data.question_length, vocabulary, g)  # (B, t)
    replies = texts(rows, answer_tokens + 1, vocabulary, g)  # (B, L): [CLS] is not predicted
    return QuestionBatch(
        images=torch.randn(rows, 3, side, side, generator=g),
        ids=ids,
        mask=torch.ones_like(ids, dtype=torch.bool),
        answers=replies,
        answer_mask=torch.ones_like(replies, dtype=torch.bool),
        weight=torch.ones(rows),
        total=rows,
    )
