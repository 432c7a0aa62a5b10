r"""Collapse monitor: whether the tokens still differ from each other, and whether the transport plan depends on them.

Eq. 9 is lowest (zero) when all tokens are equal, and where costs vary little compared with :math:`\beta / n`, IPOT
returns almost the independent plan :math:`\mathbf{a} \mathbf{b}^\top`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from amif_lib.objectives import transport

TOKEN_COSINE_LIMIT = 0.95  # mean cosine between the tokens of one side, above which they count as collapsed
PLAN_DISTANCE_LIMIT = 0.05  # total variation from the independent plan, below which a plan says next to nothing


@torch.no_grad()
def collapse(
    x_tokens: Tensor, y_tokens: Tensor, plan: Tensor, row_mask: Tensor | None, col_mask: Tensor | None, cost: Tensor
) -> dict[str, float]:
    r"""Statistics of one batch of transport problems, for `verdict`; NaN if no sample has enough tokens.

    Tokens (B, p, d) of the row side (image) and (B, t, d) of the column side (text), plan and cost (B, p, t), masks
    (B, p) and (B, t), as for `transport.ipot`. ``row_token_cosine`` and ``col_token_cosine`` are mean cosines between
    different real tokens of one side (1: collapsed), ``plan_distance`` the total variation
    :math:`\frac{1}{2} \|\mathbf{T} - \mathbf{a}\mathbf{b}^\top\|_1` from the independent plan. Each is a mean over the
    samples that have two tokens or more (for `plan_distance`, on both sides).
    """
    a, b = transport.masses(cost, row_mask, col_mask)  # (B, p), (B, t)
    independent = a.unsqueeze(2) * b.unsqueeze(1)  # (B, p, 1), (B, 1, t) -> (B, p, t)
    free = ((a > 0).sum(dim=1) > 1) & ((b > 0).sum(dim=1) > 1)  # (B,): more than one plan is possible
    return {
        "row_token_cosine": _token_cosine(x_tokens, a > 0),
        "col_token_cosine": _token_cosine(y_tokens, b > 0),
        "plan_distance": ((plan.float() - independent).abs().sum(dim=(1, 2)) / 2)[free].double().mean().item(),
    }


def verdict(stats: dict[str, float]) -> str:
    """One sentence on what `collapse` found, for a log or a notebook."""
    row, col, distance = stats["row_token_cosine"], stats["col_token_cosine"], stats["plan_distance"]
    if any(math.isnan(value) for value in (row, col, distance)):
        return "the plan cannot be judged: no sample has two tokens or more on both sides, or tokens are NaN"
    cosines = f"mean cosine between tokens {row:.3f} on the row side, {col:.3f} on the column side"
    if max(row, col) > TOKEN_COSINE_LIMIT:
        return f"the plan carries hardly any information: tokens have collapsed ({cosines}, limit {TOKEN_COSINE_LIMIT})"
    found = f"total variation {distance:.3f} from the independent plan; {cosines}"
    if distance < PLAN_DISTANCE_LIMIT:
        return f"the plan carries hardly any information: costs vary too little for this beta and iterations ({found})"
    return f"the plan depends on the tokens: {found}"


def _token_cosine(tokens: Tensor, real: Tensor) -> float:
    """Mean cosine between different real tokens of a sample, over samples: (B, n, d), (B, n) -> number."""
    unit = F.normalize(tokens.double(), dim=-1).masked_fill(~real.unsqueeze(2), 0.0)  # (B, n, d)
    count = real.sum(dim=1)  # (B,)
    # The squared norm of the sum of unit vectors is the sum of all cosines, of each token with itself too.
    pairs = unit.sum(dim=1).square().sum(dim=1) - unit.square().sum(dim=(1, 2))  # (B, n, d) -> (B,)
    return (pairs / (count * (count - 1)).clamp_min(1))[count > 1].mean().item()  # the mean of nothing is NaN
