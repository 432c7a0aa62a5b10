r"""Hard negative mining: which other sample of the batch is paired with a sample (paper section 3.3, Eq. 11).

"A negative pair with higher similarity has a higher chance of being chosen": for row :math:`i` the negative is drawn
from its soft labels without the positive and without duplicates,

.. math::
    p(m \mid i) = \frac{H_{im}}{\sum_{k \in A_i} H_{ik}}, \qquad
    m \in A_i = \{ k : k \ne j^+(i),\ k \text{ not excluded} \}.

A one-hot :math:`H` has no mass off the positive, and the rule is 0/0: pass the teacher's :math:`Q` then, or without a
teacher the student's :math:`P`, as ALBEF (Li et al., 2021) does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Negatives(NamedTuple):
    """Mined negatives of a block of rows."""

    index: Tensor  # (B,): column of the negative; -1 where the row has none
    valid: Tensor  # (B,): whether the row has a negative
    probabilities: Tensor  # (B, N): p(m | i), float64; zero rows where there is none


@torch.no_grad()
def sample(
    targets: Tensor,
    positive_index: Tensor,
    exclude: Tensor | None,
    generator: torch.Generator | None = None,
) -> Negatives:
    """Draw one hard negative per row, by its own labels and its own uniform number alone; without gradient.

    Parameters
    ----------
    targets : Tensor, shape (B, N)
        Not negative; :math:`H` of Eq. 5 (or :math:`Q`, or :math:`P`). Rows need not sum to 1.
    positive_index : LongTensor, shape (B,)
        Column of each row's positive; never drawn.
    exclude : BoolTensor, shape (B, N), optional
        True columns are never drawn: see `duplicates`.
    generator : torch.Generator, optional
        Source of the uniform numbers, on its own device; the default generator where None.
    """
    weights = targets.double().scatter(1, positive_index.unsqueeze(1), 0.0)  # (B, N)
    if exclude is not None:
        weights = weights.masked_fill(exclude.bool(), 0.0)
    cumulative = weights.cumsum(dim=1)
    valid = cumulative[:, -1] > 0  # (B, N) -> (B,)
    total = torch.where(valid, cumulative[:, -1], 1.0).unsqueeze(1)  # (B,) -> (B, 1)
    device = targets.device if generator is None else generator.device
    uniform = torch.rand(len(targets), 1, generator=generator, dtype=torch.float64, device=device)  # (B, 1)
    # The first column whose cumulative mass exceeds the number; a column without mass never is the first.
    index = torch.searchsorted(cumulative / total, uniform.to(targets.device), right=True).squeeze(1)  # (B,)
    return Negatives(torch.where(valid, index, -1), valid, weights / total)


def duplicates(group_ids: Tensor, text_ids: Tensor) -> Tensor:
    """Which columns are false negatives of a row: of the same study, article or case, or with the very same text.

    group_ids, text_ids (N,) of the global batch -> (N, N) bool, True on a sample's own column as well.
    """
    return (group_ids[:, None] == group_ids) | (text_ids[:, None] == text_ids)  # (N, 1), (N,) -> (N, N)
