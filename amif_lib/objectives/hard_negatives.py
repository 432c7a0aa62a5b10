r"""Hard negative mining: which other sample of the batch is paired with a sample (paper section 3.3, Eq. 11).

"A negative pair with higher similarity has a higher chance of being chosen": the negative of row :math:`i` is drawn in
proportion to the row's soft labels, among all columns but the positive and excluded ones,

.. math::
    p(m \mid i) = \frac{H_{im}}{\sum_{k \in A_i} H_{ik}}, \qquad
    m \in A_i = \{ k : k \ne j^+(i),\ k \text{ not excluded} \}.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Negatives(NamedTuple):
    """Mined negatives of a block of rows."""

    index: Tensor  # (B,): column of the negative; -1 where the row has none
    valid: Tensor  # (B,): whether the row has a negative
    probabilities: Tensor  # (B, N): p(m | i), float64; a row of zeros where the row has no negative


@torch.no_grad()
def sample(
    targets: Tensor, positive_index: Tensor, exclude: Tensor | None, generator: torch.Generator | None = None
) -> Negatives:
    """Draw one hard negative per row (Eq. 11). A row's draw depends only on its own labels and one uniform number.

    Parameters
    ----------
    targets : Tensor, shape (B, N)
        :math:`H` of Eq. 5; not negative, rows need not sum to 1. A one-hot :math:`H` has no mass off the positive: pass
        the teacher's :math:`Q` or, without one, the student's :math:`P`, as ALBEF (Li et al., 2021) does.
    positive_index : LongTensor, shape (B,)
        Column of each row's positive; never drawn.
    exclude : BoolTensor, shape (B, N), optional
        Columns that are True are never drawn; see `duplicates`.
    generator : torch.Generator, optional
        Source of the uniform numbers, on any device; None: torch's default generator.
    """
    weights = targets.double().scatter(1, positive_index.unsqueeze(1), 0.0)  # (B, N)
    if exclude is not None:
        weights = weights.masked_fill(exclude.bool(), 0.0)
    cumulative = weights.cumsum(dim=1)  # (B, N)
    valid = cumulative[:, -1] > 0  # (B, N) -> (B,)
    total = torch.where(valid, cumulative[:, -1], 1.0).unsqueeze(1)  # (B,) -> (B, 1)
    device = targets.device if generator is None else generator.device
    uniform = torch.rand(len(targets), 1, generator=generator, dtype=torch.float64, device=device)  # (B, 1)
    # Inverse transform sampling: the first column whose cumulative mass exceeds the number, so never one without mass.
    index = torch.searchsorted(cumulative / total, uniform.to(targets.device), right=True).squeeze(1)  # (B,)
    return Negatives(torch.where(valid, index, -1), valid, weights / total)


def duplicates(group_ids: Tensor, text_ids: Tensor) -> Tensor:
    """Which columns are false negatives of a row: the same study, article or case, or an identical text.

    group_ids and text_ids (N,) of the global batch -> (N, N) bool, True in a sample's own column too.
    """
    return (group_ids[:, None] == group_ids) | (text_ids[:, None] == text_ids)  # (N, 1), (N,) -> (N, N)
