r"""Collapse monitor: do the tokens still differ, and does the transport plan say anything?

Eq. 9 on positive pairs alone is minimised by making all tokens alike, which costs nothing; and where the cost varies
little against :math:`\beta / n`, IPOT returns almost the independent plan :math:`\mathbf{a} \mathbf{b}^\top`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from amif_lib.objectives import transport

TOKEN_COSINE_LIMIT = 0.95  # mean cosine between the tokens of one side, above which they count as collapsed
PLAN_DISTANCE_LIMIT = 0.05  # total variation from the independent plan, below which a plan says nothing
EXACT_PROBLEMS = 8  # samples of a batch that are solved exactly, on the CPU, one by one


@torch.no_grad()
def collapse(
    x_tokens: Tensor, y_tokens: Tensor, plan: Tensor, row_mask: Tensor | None, col_mask: Tensor | None, cost: Tensor
) -> dict[str, float]:
    r"""Statistics of one batch of transport problems; `verdict` reads them.

    Parameters
    ----------
    x_tokens, y_tokens : Tensor, shape (B, p, d) and (B, t, d)
        Tokens of the row side (image) and of the column side (text).
    plan, cost : Tensor, shape (B, p, t)
    row_mask, col_mask : Tensor, shape (B, p) and (B, t), or None
        True (or non-zero) at a real token.

    Returns
    -------
    dict of float
        - ``row_token_cosine``, ``col_token_cosine``: mean cosine between different real tokens of one side, over
          samples with two tokens or more; 1 is full collapse;
        - ``row_violation``, ``col_violation``: :math:`\|\mathbf{T}\mathbf{1} - \mathbf{a}\|_1` and
          :math:`\|\mathbf{T}^\top\mathbf{1} - \mathbf{b}\|_1`, means over samples, as shares of the total mass 1;
        - ``plan_distance``: :math:`\frac{1}{2} \|\mathbf{T} - \mathbf{a}\mathbf{b}^\top\|_1`, the total variation
          distance from the independent plan, between 0 and 1, over samples with two tokens or more on both sides;
        - ``cost_gap_closed``: the share of the cost gap between the independent plan (0) and the optimal one (1) that
          this plan closes, after rounding it to the marginals, over the first `EXACT_PROBLEMS` of those samples.

        A statistic that no sample allows is NaN.
    """
    a, b = transport.masses(cost, row_mask, col_mask)  # (B, p), (B, t)
    plan, cost = plan.float(), cost.float()
    independent = a.unsqueeze(2) * b.unsqueeze(1)  # (B, p, 1), (B, 1, t) -> (B, p, t)
    used = a.sum(dim=1) > 0  # (B,): both sides have tokens
    free = ((a > 0).sum(dim=1) > 1) & ((b > 0).sum(dim=1) > 1)  # (B,): more than one plan is possible
    few = free.nonzero().squeeze(1)[:EXACT_PROBLEMS]
    return {
        "row_token_cosine": _token_cosine(x_tokens, a > 0),
        "col_token_cosine": _token_cosine(y_tokens, b > 0),
        "row_violation": _mean((plan.sum(dim=2) - a).abs().sum(dim=1), used),  # (B, p, t) -> (B, p) -> (B,)
        "col_violation": _mean((plan.sum(dim=1) - b).abs().sum(dim=1), used),  # (B, p, t) -> (B, t) -> (B,)
        "plan_distance": _mean((plan - independent).abs().sum(dim=(1, 2)) / 2, free),
        "cost_gap_closed": _gap_closed(*(x[few] for x in (plan, independent, cost, a, b))),
    }


def verdict(stats: dict[str, float]) -> str:
    """One sentence on what `collapse` found, for a log or a notebook."""
    row, col, distance = stats["row_token_cosine"], stats["col_token_cosine"], stats["plan_distance"]
    cosines = f"mean cosine between tokens {row:.3f} on the row side, {col:.3f} on the column side"
    if max(row, col) > TOKEN_COSINE_LIMIT:
        return f"the plan carries no information: tokens have collapsed ({cosines}, limit {TOKEN_COSINE_LIMIT})"
    if distance < PLAN_DISTANCE_LIMIT:
        return (
            f"the plan carries no information: its total variation from the independent plan is {distance:.3f} (limit "
            f"{PLAN_DISTANCE_LIMIT}); costs vary too little for this beta and number of iterations"
        )
    if any(math.isnan(value) for value in (row, col, distance)):
        return "the plan cannot be judged: no sample has two tokens or more on both sides, or features are not numbers"
    closed = stats["cost_gap_closed"]
    share = "" if math.isnan(closed) else f" and closes {closed:.0%} of the cost gap between it and the optimal plan"
    return (
        f"the plan depends on the tokens: its total variation from the independent plan is {distance:.2f}{share}; "
        f"{cosines}; marginals missed by {stats['row_violation']:.1%} and {stats['col_violation']:.1%}"
    )


def _token_cosine(tokens: Tensor, real: Tensor) -> float:
    """Mean cosine between different real tokens of a sample, over samples: (B, n, d), (B, n) -> number."""
    unit = F.normalize(tokens.double(), dim=-1).masked_fill(~real.unsqueeze(2), 0.0)
    count = real.sum(dim=1)  # (B,)
    # |sum of unit vectors|^2 holds every ordered pair once and each token with itself.
    pairs = unit.sum(dim=1).square().sum(dim=1) - unit.square().sum(dim=(1, 2))  # (B, n, d) -> (B,)
    return _mean(pairs / (count * (count - 1)).clamp_min(1), count > 1)


def _gap_closed(plan: Tensor, independent: Tensor, cost: Tensor, a: Tensor, b: Tensor) -> float:
    """See `cost_gap_closed` in `collapse`; NaN without a problem, with a cost that is no number, or without a gap."""
    cost = cost.masked_fill((a == 0).unsqueeze(2) | (b == 0).unsqueeze(1), 0.0)
    if not len(plan) or not bool(cost.isfinite().all()):
        return math.nan
    plans = independent, transport.round_to_feasible(plan, a, b), transport.exact(cost, a > 0, b > 0)
    of_independent, of_plan, of_optimal = (float(transport.transport_cost(p, cost).double().sum()) for p in plans)
    gap = of_independent - of_optimal
    # Below rounding there is no gap to close: every plan costs the same.
    return (of_independent - of_plan) / gap if gap > 1e-6 * max(abs(of_independent), abs(of_optimal)) else math.nan


def _mean(values: Tensor, chosen: Tensor) -> float:
    """Mean over the chosen samples; NaN where there is none."""
    return values[chosen].double().mean().item() if bool(chosen.any()) else math.nan
