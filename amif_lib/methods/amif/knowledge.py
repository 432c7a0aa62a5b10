"""Prior knowledge of the gated module (section 3.4.1): training answers, or words of training questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amif_lib.data.records import Question


def texts(source: str, training: Sequence[Question]) -> list[str]:
    """The texts that `knowledge.source` names: all training answers, all words of the training questions, or none."""
    if source == "answers":
        return [question.answer for question in training]
    if source == "questions":
        return [word for question in training for word in re.findall(r"[\w'-]+", question.question.lower())]
    return []


def select(texts: Sequence[str], tokenizer: Any, max_tokens: int, words: bool = False) -> tuple[Tensor, int]:
    """The most frequent texts, once each (ties in alphabetical order), up to `max_tokens` tokens (point 32).

    Each is followed by [SEP], unless they are `words`. Returns token ids (M,) and how many texts did not fit.
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
