"""Zero-shot classification by prompts, the same for every method with a space that images and texts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amif_lib.networks import tokenizers

Prompts = Sequence[tuple[list[str], list[str]]]  # for each label the texts that affirm it, and those that deny it


def scorer(
    run: Any, prompts: Prompts, image: Callable[[Tensor], Tensor], text: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A function from an image's tokens (n, p+1, d) to its scores (n, K) for K labels.

    `image` maps those tokens to unit vectors (n, e), `text` ids and mask (k, t) to unit vectors (k, e). A score is the
    cosine to the mean of the affirming texts, minus that to the mean of the denying ones if there are any.
    """
    tokenizer = tokenizers.load(run.directory / "model")

    def mean(texts: list[str]) -> Tensor:
        embedded = text(*tokenizers.encode(tokenizer, texts, run.spec.data.text_length))  # (k, e)
        return F.normalize(embedded.mean(0), dim=-1)  # (e,)

    directions = torch.stack([mean(yes) - mean(no) if no else mean(yes) for yes, no in prompts])  # (K, e)
    return lambda tokens: image(tokens) @ directions.T
