"""Training objectives, one module per idea of the paper's section 3.

- `contrastive`: soft labels from a teacher and the KL alignment loss (Eq. 1-8);
- `transport`: optimal transport between two token sets (Eq. 9-10);
- `hard_negatives`: which other sample of the batch is mined as a hard negative (section 3.3, Eq. 11);
- `monitor`: whether tokens have collapsed and whether a transport plan says anything;
- `masked_language` and `feature_queue`: additions that the paper does not name, off unless asked for.

They take tensors and return tensors, in fp32 also under autocast, and know neither the network nor the training loop.
"""

from __future__ import annotations

from amif_lib.objectives import collapse as monitor
from amif_lib.objectives import contrastive, hard_negatives, transport

__all__ = ["contrastive", "hard_negatives", "monitor", "transport"]
