r"""Local alignment: optimal transport between the tokens of two sides (paper section 3.2.2, Eq. 9-10).

For each sample, with :math:`p` tokens on the row side (image patches), :math:`t` on the column side (words) and masses
:math:`\mathbf{a}, \mathbf{b}` that are uniform over real tokens and zero on padding,

.. math::
    \min_{\mathbf{T} \in \Pi(\mathbf{a}, \mathbf{b})} \langle \mathbf{T}, \mathbf{C} \rangle, \qquad
    \Pi(\mathbf{a}, \mathbf{b}) = \{ \mathbf{T} \in \mathbb{R}_+^{p \times t} :
    \mathbf{T} \mathbf{1} = \mathbf{a},\ \mathbf{T}^\top \mathbf{1} = \mathbf{b} \}.

References
----------
.. [1] Xie, Y., Wang, X., Wang, R. and Zha, H. (2020). A fast proximal point method for computing exact Wasserstein
       distance. UAI (IPOT).
.. [2] Chen, Y.-C. et al. (2020). UNITER: universal image-text representation learning. ECCV (beta 0.5, 50 iterations).
.. [3] Flamary, R. et al. (2021). POT: Python Optimal Transport. JMLR 22(78).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amif_lib.core.errors import InputError

# Largest cost / beta for which IPOT iterates on the plan itself: kernel times scaling can fall to exp(-2 * this), which
# must stay a normal fp32 number (above exp(-87)). For larger ones, IPOT iterates on logarithms.
LARGEST_EXPONENT = 25.0
SMALLEST_ENTRY = 1e-20  # an entry at 0 would stay 0, and a degenerate problem could no longer meet its marginals


def cosine_cost(x: Tensor, y: Tensor) -> Tensor:
    r"""Eq. 10 on L2-normalised tokens: :math:`C_{jk} = 1 - \cos(x_j, y_k)`, between 0 and 2.

    Tokens x (B, p, d) and y (B, t, d) -> (B, p, t), fp32, differentiable. A zero token has cost 1 to everything.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = F.normalize(x.float(), dim=-1), F.normalize(y.float(), dim=-1)
        return 1.0 - x @ y.transpose(1, 2)  # (B, p, d), (B, d, t) -> (B, p, t)


def masses(cost: Tensor, row_mask: Tensor | None, col_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Uniform marginals (B, p) and (B, t), fp32: 1/n on the n real tokens of a side, 0 on padding.

    Both are 0 everywhere if a side has no token. Parameters as for `ipot`; of the cost only shape and device are used.
    """
    samples, p, t = cost.shape
    rows = cost.new_ones(samples, p, dtype=torch.float32) if row_mask is None else row_mask.bool().float()  # (B, p)
    cols = cost.new_ones(samples, t, dtype=torch.float32) if col_mask is None else col_mask.bool().float()  # (B, t)
    n, m = rows.sum(1, keepdim=True), cols.sum(1, keepdim=True)  # (B, 1) each
    both = (n > 0) & (m > 0)  # (B, 1)
    return rows / n.clamp_min(1.0) * both, cols / m.clamp_min(1.0) * both  # (B, p), (B, t)


def ipot(
    cost: Tensor,
    row_mask: Tensor | None = None,
    col_mask: Tensor | None = None,
    beta: float = 0.5,
    iterations: int = 50,
) -> Tensor:
    r"""Approximately optimal plans by the inexact proximal point method (IPOT [1]_), one scaling per iteration.

    .. math::
        \mathbf{T}^{(n+1)} = \mathop{\arg\min}_{\mathbf{T} \in \Pi(\mathbf{a}, \mathbf{b})}
        \langle \mathbf{T}, \mathbf{C} \rangle + \beta\, \mathrm{KL}(\mathbf{T} \| \mathbf{T}^{(n)})

    After n iterations the plan is close to the entropic plan of regularisation :math:`\beta / n`. As in UNITER [2]_,
    which the paper follows, rows (image) are scaled first and columns (text) last: **the column marginal is exact** up
    to rounding, the row marginal only in the limit.

    Parameters
    ----------
    cost : Tensor, shape (B, p, t)
        :math:`\mathbf{C}`; any floating type; values at padding are ignored.
    row_mask, col_mask : Tensor, shape (B, p) and (B, t), optional
        True (or non-zero) at a real token; None where all are real.
    beta : float
        Proximal weight :math:`\beta > 0`.
    iterations : int
        n > 0.

    Returns
    -------
    Tensor, shape (B, p, t)
        fp32, without gradient; zero at padding and for a sample with an empty side.
    """
    with torch.autocast(cost.device.type, enabled=False), torch.no_grad():  # in bf16, plans are off by several %
        rows, cols = masses(cost, row_mask, col_mask)
        real = (rows > 0).unsqueeze(2) & (cols > 0).unsqueeze(1)  # (B, p, 1), (B, 1, t) -> (B, p, t)
        cost = cost.float().masked_fill(~real, torch.inf)
        # Row scaling cancels a constant that is added to a row; shifting each minimum to 0 keeps exp() within range.
        lowest = cost.amin(dim=2, keepdim=True)  # (B, p, t) -> (B, p, 1)
        exponent = torch.where(real, cost - torch.where(lowest < torch.inf, lowest, 0.0), 0.0) / beta  # (B, p, t)
        rows, cols = rows.unsqueeze(2), cols.unsqueeze(1)  # (B, p, 1), (B, 1, t)
        wide = exponent.numel() and float(exponent.max()) > LARGEST_EXPONENT
        return (_scale_logarithms if wide else _scale)(exponent, real, rows, cols, iterations)


def _scale(exponent: Tensor, real: Tensor, rows: Tensor, cols: Tensor, iterations: int) -> Tensor:
    """IPOT's iterations on the plan itself, with sums: hardware may round the inputs of matrix products (TF32)."""
    no_row, no_col = (rows == 0).float(), (cols == 0).float()  # 1 at padding, where a sum is 0: avoids 0 / 0
    kernel = torch.exp(-exponent)  # (B, p, t)
    plan, floor = real.float(), real * SMALLEST_ENTRY
    scaling = cols  # (B, 1, t): sigma of IPOT, from which each iteration's column scaling starts
    for _ in range(iterations):
        plan.mul_(kernel).mul_(scaling)
        plan.mul_(rows / (plan.sum(dim=2, keepdim=True) + no_row))  # (B, p, t) -> (B, p, 1)
        change = cols / (plan.sum(dim=1, keepdim=True) + no_col)  # (B, p, t) -> (B, 1, t)
        plan.mul_(change).clamp_min_(floor)
        scaling = scaling * change
    return plan


def _scale_logarithms(exponent: Tensor, real: Tensor, rows: Tensor, cols: Tensor, iterations: int) -> Tensor:
    """The same iterations on logarithms: several times slower, for costs whose exponential leaves fp32's range."""
    log_rows, log_cols = (torch.where(x > 0, x, 1.0).log() for x in (rows, cols))  # (B, p, 1), (B, 1, t)
    plan = torch.where(real, 0.0, -1e30)  # (B, p, t); finite, since -inf - (-inf) is NaN; exp() of it is 0
    scaling = log_cols  # (B, 1, t)
    for _ in range(iterations):
        plan = plan - exponent + scaling
        plan = plan + torch.where(rows > 0, log_rows - plan.logsumexp(dim=2, keepdim=True), 0.0)  # + (B, p, 1)
        change = torch.where(cols > 0, log_cols - plan.logsumexp(dim=1, keepdim=True), 0.0)  # (B, p, t) -> (B, 1, t)
        scaling, plan = scaling + change, plan + change
    return plan.exp()


@torch.no_grad()
def exact(cost: Tensor, row_mask: Tensor | None = None, col_mask: Tensor | None = None) -> Tensor:
    """Optimal plans by POT's network simplex [3]_, one sample after the other on the CPU, in float64.

    Parameters and result as for `ipot`: (B, p, t), fp32, on the cost's device, without gradient. Raises InputError if a
    cost is not finite, RuntimeError if the solver does not reach the optimum.
    """
    import ot  # POT, which no other function needs

    rows, cols = masses(cost, row_mask, col_mask)
    rows, cols, costs = rows.cpu().double(), cols.cpu().double(), cost.cpu().double()
    plans = torch.zeros(cost.shape, dtype=torch.float64)
    for i, (a, b) in enumerate(zip(rows, cols, strict=True)):
        r, c = a.nonzero().squeeze(1), b.nonzero().squeeze(1)  # (p', 1) -> (p',): real tokens
        if not len(r):
            continue
        block = costs[i][r][:, c]  # (p', t')
        if not bool(block.isfinite().all()):
            raise InputError(f"the cost of sample {i} is not finite; look for NaN in its tokens")
        a, b = (a[r] / a.sum()).numpy(), (b[c] / b.sum()).numpy()  # (p',), (t',): POT wants equal sums in float64
        plan, log = ot.emd(a, b, block.numpy(), numItermax=10_000_000, log=True)
        if log["warning"]:
            raise RuntimeError(f"network simplex did not finish on sample {i}: {log['warning']}")
        plans[i, r.unsqueeze(1), c] = torch.from_numpy(plan)
    return plans.to(cost.device, torch.float32)


def transport_cost(plan: Tensor, cost: Tensor) -> Tensor:
    r"""Cost of a plan, the summand of Eq. 9: :math:`\langle \mathbf{T}_i, \mathbf{C}_i \rangle`.

    With a detached plan the gradient with respect to the cost is :math:`\mathbf{T}`; at the optimum this is the
    gradient of the minimum itself (envelope theorem).

    Plan and cost (B, p, t), the cost finite at padding too -> (B,), fp32; Eq. 9 is its mean.
    """
    return (plan.float() * cost.float()).sum(dim=(1, 2))  # (B, p, t) -> (B,)
