"""Masked language modelling on co-attended report tokens: an addition to stage 2 that the paper does not name.

As in BERT, a share of the tokens is to be predicted; of these 80% are masked, 10% replaced and 10% left as they are. The
output layer is the word embeddings. Shapes: t text tokens, d width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.objectives.distributed import world_size


def corrupt(
    tokens: np.ndarray,
    special: set[int],
    mask_token: int,
    vocabulary: int,
    probability: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (t,) -> tokens with some masked or replaced, and which are to be predicted; never one of `special`."""
    ordinary = np.setdiff1d(np.arange(vocabulary), list(special))
    chosen = (rng.random(len(tokens)) < probability) & ~np.isin(tokens, list(special))
    kind = rng.random(len(tokens))
    changed = np.where(kind < 0.8, mask_token, np.where(kind < 0.9, rng.choice(ordinary, len(tokens)), tokens))
    return np.where(chosen, changed, tokens), chosen


class MaskedLanguageHead(nn.Module):
    """BERT's: a dense layer, GELU, layer norm, and the word embeddings with a bias."""

    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)  # BERT's
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, word_embeddings: Tensor) -> Tensor:
        """x (n, d), word embeddings (vocabulary, d) -> logits (n, vocabulary)."""
        return F.linear(self.norm(F.gelu(self.transform(x))), word_embeddings, self.bias)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p over the tokens to be predicted in the whole global batch; this process has `targets` (n,) of them.

    The factor undoes the mean that processes take of gradients, since each has another number of tokens.
    """
    count = torch.tensor(float(len(targets)), device=targets.device)
    if world_size() > 1:
        dist.all_reduce(count)
    return F.cross_entropy(logits.float(), targets, reduction="sum") * world_size() / count.clamp_min(1)
