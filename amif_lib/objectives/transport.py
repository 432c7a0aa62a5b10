r"""Local alignment: optimal transport between the tokens of two sides (paper section 3.2.2, Eq. 9-10).

For each sample, with :math:`p` tokens on the row side (image patches) and :math:`t` on the column side (words),

.. math::
    \min_{\mathbf{T} \in \Pi(\mathbf{a}, \mathbf{b})} \langle \mathbf{T}, \mathbf{C} \rangle, \qquad
    \Pi(\mathbf{a}, \mathbf{b}) = \{ \mathbf{T} \in \mathbb{R}_+^{p \times t} :
    \mathbf{T} \mathbf{1} = \mathbf{a},\ \mathbf{T}^\top \mathbf{1} = \mathbf{b} \}.

Masses :math:`\mathbf{a}, \mathbf{b}` are uniform over real tokens and zero on padding. Masks are True (or non-zero) at
a real token, None where all are real. A sample with an empty side has a zero plan. Everything runs in fp32, also under
autocast: in bf16 the plan is off by several per cent.

References
----------
.. [1] Zou, Y. and Yin, Z. "Alignment, Mining and Fusion ...", section 3.2.2.
.. [2] Xie, Y., Wang, X., Wang, R. and Zha, H. (2020). A fast proximal point method for computing exact Wasserstein
       distance. UAI (IPOT).
.. [3] Chen, Y.-C. et al. (2020). UNITER: universal image-text representation learning. ECCV (beta 0.5, 50 iterations).
.. [4] Altschuler, J., Weed, J. and Rigollet, P. (2017). Near-linear time approximation algorithms for optimal transport
       via Sinkhorn iteration. NeurIPS, Algorithm 2.
.. [5] Flamary, R. et al. (2021). POT: Python Optimal Transport. JMLR 22(78).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amif_lib.core.errors import InputError

# Largest range of a row's costs over beta for which the plan itself is iterated. Kernel times scaling may reach the
# exponential of twice this, which must stay a normal fp32 number (above e^-87); beyond it, logarithms.
LARGEST_EXPONENT = 25.0
# Entries that would fall below this stay there. Were they to reach 0, a degenerate problem could lose all entries by
# which its marginals can be met, and its scalings would grow without bound. Far below rounding, next to masses of 1/n.
SMALLEST_ENTRY = 1e-20


def cosine_cost(x: Tensor, y: Tensor) -> Tensor:
    r"""Eq. 10 on L2-normalised tokens: :math:`C_{jk} = 1 - \cos(x_j, y_k)`, between 0 and 2.

    Tokens x (B, p, d) and y (B, t, d) -> (B, p, t), fp32, differentiable. A zero token has cost 1 to everything.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = F.normalize(x.float(), dim=-1), F.normalize(y.float(), dim=-1)
        return 1.0 - x @ y.transpose(1, 2)  # (B, p, d), (B, d, t) -> (B, p, t)


def masses(cost: Tensor, row_mask: Tensor | None, col_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Uniform marginals (B, p) and (B, t), fp32: 1/n on a side's n real tokens, 0 on padding, all 0 where one is empty.

    Parameters as for `ipot`; of the cost only shape and device are read.
    """
    samples, p, t = cost.shape
    rows = cost.new_ones(samples, p, dtype=torch.float32) if row_mask is None else row_mask.bool().float()  # (B, p)
    cols = cost.new_ones(samples, t, dtype=torch.float32) if col_mask is None else col_mask.bool().float()  # (B, t)
    n, m = rows.sum(1, keepdim=True), cols.sum(1, keepdim=True)  # (B, 1)
    both = (n > 0) & (m > 0)  # (B, 1)
    return rows / n.clamp_min(1.0) * both, cols / m.clamp_min(1.0) * both


def ipot(
    cost: Tensor,
    row_mask: Tensor | None = None,
    col_mask: Tensor | None = None,
    beta: float = 0.5,
    iterations: int = 50,
) -> Tensor:
    r"""Approximately optimal plans by the inexact proximal point method (IPOT [2]_), one scaling per iteration.

    .. math::
        \mathbf{T}^{(n+1)} = \mathop{\arg\min}_{\mathbf{T} \in \Pi(\mathbf{a}, \mathbf{b})}
        \langle \mathbf{T}, \mathbf{C} \rangle + \beta\, \mathrm{KL}(\mathbf{T} \| \mathbf{T}^{(n)}),

    each step solved by one row and one column scaling of
    :math:`e^{-\mathbf{C} / \beta} \odot \mathbf{T}^{(n)}`. n iterations come close to the entropic plan of
    regularisation :math:`\beta / n`. The order is that of UNITER [3]_, which the paper follows: rows (image) first,
    columns (text) last. So **the column marginal is exact** to rounding, and the row marginal is met only in the limit;
    `round_to_feasible` mends it.

    Parameters
    ----------
    cost : Tensor, shape (B, p, t)
        :math:`\mathbf{C}`; any floating type; what it holds at padding is not read.
    row_mask, col_mask : Tensor, shape (B, p) and (B, t), optional
        True (or non-zero) at a real token.
    beta : float
        Proximal weight :math:`\beta > 0`. How close a plan gets to the optimum depends on the spread of the cost over
        :math:`\beta / n`.
    iterations : int
        n > 0.

    Returns
    -------
    Tensor, shape (B, p, t)
        fp32, without gradient (`transport_cost` then has the envelope theorem's); zero at padding and for a sample with
        an empty side.
    """
    with torch.autocast(cost.device.type, enabled=False), torch.no_grad():
        rows, cols = masses(cost, row_mask, col_mask)
        real = (rows > 0).unsqueeze(2) & (cols > 0).unsqueeze(1)  # (B, p, 1), (B, 1, t) -> (B, p, t)
        cost = cost.float().masked_fill(~real, torch.inf)
        # The first row scaling undoes any constant added to a row, so that its minimum may be 0; this bounds exp().
        lowest = cost.amin(dim=2, keepdim=True)  # (B, p, t) -> (B, p, 1)
        exponent = torch.where(real, cost - torch.where(lowest < torch.inf, lowest, 0.0), 0.0) / beta
        rows, cols = rows.unsqueeze(2), cols.unsqueeze(1)  # (B, p, 1), (B, 1, t)
        if exponent.numel() and float(exponent.max()) > LARGEST_EXPONENT:
            return _scale_logarithms(exponent, real, rows, cols, iterations)
        return _scale(exponent, real, rows, cols, iterations)


def _scale(exponent: Tensor, real: Tensor, rows: Tensor, cols: Tensor, iterations: int) -> Tensor:
    """IPOT's iterations on the plan itself. Sums instead of matrix products: the same on hardware that rounds those."""
    no_row, no_col = (rows == 0).float(), (cols == 0).float()  # keeps a padded sum of 0 from being divided by
    kernel = torch.exp(-exponent)  # (B, p, t)
    plan, floor = real.float(), real * SMALLEST_ENTRY
    scaling = cols  # (B, 1, t): what the column scaling of the step before has come to
    for _ in range(iterations):
        plan.mul_(kernel).mul_(scaling)
        plan.mul_(rows / (plan.sum(dim=2, keepdim=True) + no_row))  # (B, p, t) -> (B, p, 1)
        change = cols / (plan.sum(dim=1, keepdim=True) + no_col)  # (B, p, t) -> (B, 1, t)
        plan.mul_(change).clamp_min_(floor)
        scaling = scaling * change
    return plan


def _scale_logarithms(exponent: Tensor, real: Tensor, rows: Tensor, cols: Tensor, iterations: int) -> Tensor:
    """The same iterations on logarithms: several times slower, for costs whose exponential leaves fp32's range."""
    has_row, has_col = rows > 0, cols > 0
    log_rows = torch.where(has_row, rows, 1.0).log()
    log_cols = torch.where(has_col, cols, 1.0).log()
    plan = torch.where(real, 0.0, -1e30)  # finite, since -inf - (-inf) is NaN; exp() of it is 0
    scaling = log_cols  # (B, 1, t)
    for _ in range(iterations):
        plan = plan - exponent + scaling
        plan = plan + torch.where(has_row, log_rows - plan.logsumexp(dim=2, keepdim=True), 0.0)
        change = torch.where(has_col, log_cols - plan.logsumexp(dim=1, keepdim=True), 0.0)  # (B, p, t) -> (B, 1, t)
        scaling = scaling + change
        plan = plan + change
    return plan.exp()


@torch.no_grad()
def exact(cost: Tensor, row_mask: Tensor | None = None, col_mask: Tensor | None = None) -> Tensor:
    """Optimal plans by POT's network simplex [5]_, sample after sample on the CPU, in float64.

    Parameters and result as for `ipot`: (B, p, t), fp32, on the cost's device, without gradient. Raises RuntimeError
    where the solver did not reach the optimum.
    """
    import ot  # POT is needed for this function alone

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
        a, b = (a[r] / a.sum()).numpy(), (b[c] / b.sum()).numpy()  # (p',), (t',): sums equal in float64
        plan, log = ot.emd(a, b, block.numpy(), numItermax=10_000_000, log=True)
        if log["warning"]:
            raise RuntimeError(f"network simplex did not finish on sample {i}: {log['warning']}")
        plans[i, r.unsqueeze(1), c] = torch.from_numpy(plan)
    return plans.to(cost.device, torch.float32)


def transport_cost(plan: Tensor, cost: Tensor) -> Tensor:
    r"""Cost of a plan, the summand of Eq. 9: :math:`\langle \mathbf{T}_i, \mathbf{C}_i \rangle`.

    With a detached plan the gradient is :math:`\mathbf{T}` with respect to the cost: at the optimum this is the
    gradient of the minimum itself (envelope theorem).

    Plan and cost (B, p, t), the cost finite at padding too -> (B,), fp32; Eq. 9 is its mean.
    """
    return (plan.float() * cost.float()).sum(dim=(1, 2))  # (B, p, t) -> (B,)


def round_to_feasible(plan: Tensor, row_mass: Tensor, col_mass: Tensor) -> Tensor:
    r"""A plan near the given one with exactly the given marginals (Algorithm 2 of [4]_).

    Rows, then columns, that carry too much are scaled down; the mass that is missing then is spread as the independent
    plan of what is missing. Costs of approximate plans compare fairly only after this: an infeasible plan may cost less
    than the optimum.

    Plan (B, p, t), masses (B, p) and (B, t) of equal sums (see `masses`) -> (B, p, t), in the plan's type.
    """
    a, b = row_mass.to(plan.dtype).unsqueeze(2), col_mass.to(plan.dtype).unsqueeze(1)  # (B, p, 1), (B, 1, t)
    for mass, dim in ((a, 2), (b, 1)):
        total = plan.sum(dim=dim, keepdim=True)
        plan = plan * torch.where(total > mass, mass / total.clamp_min(torch.finfo(plan.dtype).tiny), 1.0)
    missing_a = (a - plan.sum(dim=2, keepdim=True)).clamp_min(0.0)  # (B, p, 1)
    missing_b = (b - plan.sum(dim=1, keepdim=True)).clamp_min(0.0)  # (B, 1, t)
    total = missing_a.sum(dim=1, keepdim=True)  # (B, 1, 1)
    return plan + missing_a * missing_b / torch.where(total > 0, total, 1.0)
