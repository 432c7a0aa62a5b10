"""Zero-shot classification by prompts, for every method that embeds images and texts in one space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amif_lib.networks import tokenizers

Prompts = Sequence[tuple[list[str], list[str]]]  # for each label, texts that affirm it and texts that deny it


def scorer(
    run: Any, prompts: Prompts, image: Callable[[Tensor], Tensor], text: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A function that maps the tokens of images (n, p+1, d) to their scores (n, K) for K labels.

    `image` maps tokens to unit vectors (n, e), `text` maps ids and mask (k, t) to unit vectors (k, e). A score is the
    cosine to the mean of the affirming texts, minus the cosine to the mean of the denying texts if there are any.
    """
    tokenizer = tokenizers.load(run.directory / "model")

    def mean(texts: list[str]) -> Tensor:
        embedded = text(*tokenizers.encode(tokenizer, texts, run.spec.data.text_length))  # (k, e)
        return F.normalize(embedded.mean(0), dim=-1)  # (e,)

    directions = torch.stack([mean(yes) - mean(no) if no else mean(yes) for yes, no in prompts])  # (K, e)
    return lambda tokens: image(tokens) @ directions.T  # (n, e) @ (e, K) -> (n, K)
