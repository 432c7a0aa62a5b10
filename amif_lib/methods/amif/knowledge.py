"""Prior knowledge of the gated cross-attention module (section 3.4.1): words of a set's training questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amif_lib.data.records import Question


def texts(source: str, training: Sequence[Question]) -> list[str]:
    """What `knowledge.source` gives: each training answer, each word of the training questions, or nothing."""
    if source == "answers":
        return [question.answer for question in training]
    if source == "questions":
        return [word for question in training for word in re.findall(r"[\w'-]+", question.question.lower())]
    return []


def select(texts: Sequence[str], tokenizer: Any, max_tokens: int, words: bool = False) -> tuple[Tensor, int]:
    """The most frequent texts, once each (ties by name), until `max_tokens` are full; [SEP] after each but `words`.

    Returns token ids (M,), and how many different texts did not fit (point 32).
    """
    counts = Counter(texts)
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    end = [] if words else [tokenizer.sep_token_id]
    ids: list[int] = []
    for kept, text in enumerate(ordered):
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"] + end
        if len(ids) + len(pieces) > max_tokens:
            return torch.tensor(ids, dtype=torch.long), len(ordered) - kept
        ids += pieces
    return torch.tensor(ids, dtype=torch.long), 0
