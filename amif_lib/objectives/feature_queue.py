"""Features of past steps as further columns of the alignments (cross-batch memory: Wang et al., CVPR 2020), without gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """The last `size` samples of the global batches before this one, for each named feature; empty at first.

    Buffers, so that a training state holds them; every process has the same ones.
    """

    def __init__(self, size: int, shapes: dict[str, tuple[int, ...]]):
        super().__init__()
        self.size = size
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(size, *shape))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features (N, ...) of this step -> (N + filled, ...), this step's first; they are kept if training."""
        filled = int(self.filled)
        whole = {name: torch.cat([x, getattr(self, name)[:filled].to(x.dtype)]) for name, x in features.items()}
        if self.training:
            for name, x in whole.items():
                kept = x.detach()[: self.size]
                getattr(self, name)[: len(kept)] = kept.float()
            self.filled.fill_(len(kept))
        return whole
