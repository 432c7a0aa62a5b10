r"""Transport plans of a stated accuracy: entropic transport whose regularisation shrinks until the duality gap is small.

No single setting of `transport.ipot` is accurate on every kind of token: what it reaches depends on the spread of the cost
over :math:`\beta / n`, which differs a hundredfold between tokens on a cone (BERT-like) and tokens in clusters. Here each
sample is solved until it is provably good enough: the cost of the plan, made feasible, is held against the value of a
feasible point of the dual problem,

.. math::
    \max_{\mathbf{f}, \mathbf{g}} \langle \mathbf{a}, \mathbf{f} \rangle + \langle \mathbf{b}, \mathbf{g} \rangle
    \quad \text{with} \quad f_j + g_k \le C_{jk},

which no plan can undercut. Sinkhorn's potentials give such a point for nothing: a c-transform of each side [1]_. Samples that
are done leave the batch; scalings are absorbed into the potentials at every stage, so that fp32 is enough [2]_.

References
----------
.. [1] Peyré, G. and Cuturi, M. (2019). Computational Optimal Transport. Foundations and Trends in Machine Learning,
       sections 3.2 (c-transforms) and 4.4 (bounds).
.. [2] Schmitzer, B. (2019). Stabilized sparse scaling algorithms for entropy regularized transport problems. SIAM J. Sci.
       Comput. 41(3).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from amif_lib.core.errors import InputError
from amif_lib.objectives.transport import masses, round_to_feasible, transport_cost

SCALINGS = 20  # of rows and columns, before the gap is looked at
FIRST = 0.3  # first regularisation, in standard deviations of a sample's costs
SHRINK = 4.0  # regularisation is divided by this once it, and no longer infeasibility, makes most of the gap
ROUNDING = 1e-5  # gap in standard deviations of the costs that is as good as none: a plan may cost nothing at all
TINY = 1e-30  # a kernel's row that has underflowed is not divided by


@torch.no_grad()
def adaptive(
    cost: Tensor,
    row_mask: Tensor | None = None,
    col_mask: Tensor | None = None,
    tolerance: float = 0.01,
    *,
    row_mass: Tensor | None = None,
    col_mass: Tensor | None = None,
    most_stages: int = 200,
) -> Tensor:
    r"""Feasible plans whose cost is within `tolerance` of the least possible, relative to it; certified, sample by sample.

    Parameters
    ----------
    cost : Tensor, shape (B, p, t)
        Any floating type; what it holds at padding is not read.
    row_mask, col_mask : Tensor, shape (B, p) and (B, t), optional
        True (or non-zero) at a real token.
    tolerance : float
        Largest (cost - bound) / abs(cost), above 0. What fp32 cannot tell from 0 (`ROUNDING`) is always allowed.
    row_mass, col_mass : Tensor, optional
        Masses, see `transport.masses`.
    most_stages : int
        Of `SCALINGS` scalings each, after which the best plan so far is returned with a warning that says its gap.

    Returns
    -------
    Tensor, shape (B, p, t)
        fp32, without gradient; both marginals exact to rounding; zero at padding and for a sample with an empty side.

    Raises
    ------
    InputError
        If a shape or the tolerance cannot be used, or the cost of a real token pair is not finite.
    """
    if not tolerance > 0:
        raise InputError(f"tolerance is {tolerance}; an adaptive plan needs a value above 0")
    with torch.autocast(cost.device.type, enabled=False):
        rows, cols = masses(cost, row_mask, col_mask, row_mass, col_mass)  # (B, p), (B, t)
        real = (rows > 0).unsqueeze(2) & (cols > 0).unsqueeze(1)  # (B, p, 1), (B, 1, t) -> (B, p, t)
        finite = torch.where(real, cost.float(), 0.0)
        if not bool(finite.isfinite().all()):
            raise InputError("cost holds non-finite values at real tokens; look at the features before")
        cost = torch.where(real, finite, torch.inf)
        number = real.sum((1, 2)).clamp_min(1)  # (B, p, t) -> (B,)
        mean = finite.sum((1, 2)) / number
        spread = torch.where(real, (finite - mean[:, None, None]) ** 2, 0.0).sum((1, 2)) / number
        regularisation = FIRST * spread.sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        lowest = cost.amin(2)  # (B, p, t) -> (B, p)
        f, g = torch.where(lowest < torch.inf, lowest, 0.0), torch.zeros_like(cols)  # potentials (B, p) and (B, t)
        plan = torch.zeros_like(finite)
        least, bound = (
            torch.full_like(mean, torch.inf),
            torch.full_like(mean, -torch.inf),
        )  # primal and dual values (B,)
        open_ = real.flatten(1).any(1).nonzero().squeeze(1)  # samples not done yet
        for _ in range(most_stages):
            if not len(open_):
                return plan
            a, b, c, eps = rows[open_], cols[open_], cost[open_], regularisation[open_].unsqueeze(1)
            found, f[open_], g[open_] = _scaled(c, a, b, f[open_], g[open_], eps)
            bound[open_] = torch.fmax(bound[open_], _dual_value(c, a, b, f[open_]))
            feasible = round_to_feasible(found, a, b)
            c = finite[open_]
            value, raw = transport_cost(feasible, c), transport_cost(found, c)
            better = value < least[open_]
            plan[open_[better]], least[open_[better]] = feasible[better], value[better]
            by_marginals, by_entropy = (value - raw).abs(), (raw - bound[open_]).abs()
            regularisation[open_] /= torch.where(by_marginals < by_entropy / 2, SHRINK, 1.0)
            allowed = torch.maximum(tolerance * least[open_].abs(), ROUNDING * spread[open_].sqrt())
            open_ = open_[~(least[open_] - bound[open_] <= allowed)]
        if len(open_):
            gap = float(((least - bound) / least.abs())[open_].max())
            warnings.warn(
                f"adaptive transport: {len(open_)} of {len(cost)} plans are within {gap:.2%} of the optimum and not within "
                f"{tolerance:.2%}; allow a larger tolerance, or use the exact solver",
                stacklevel=2,
            )
        return plan


def _scaled(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropic plan (b, p, t) after `SCALINGS` scalings of rows, then columns, from potentials f and g; the new potentials."""
    plan = torch.exp((f.unsqueeze(2) + g.unsqueeze(1) - cost) / eps.unsqueeze(2))  # (b, p, t), 0 at padding
    u, v = torch.ones_like(a), torch.ones_like(b)
    # Sums instead of matrix products: faster on a CPU, and the same on hardware that rounds those.
    for _ in range(SCALINGS):
        rows = a / plan.sum(2).clamp_min(TINY)  # (b, p, t) -> (b, p)
        plan.mul_(rows.unsqueeze(2))
        columns = b / plan.sum(1).clamp_min(TINY)  # (b, p, t) -> (b, t)
        plan.mul_(columns.unsqueeze(1))
        u, v = u * rows, v * columns
    f = f + torch.where(a > 0, eps * u.clamp(TINY, 1 / TINY).log(), 0.0)
    g = g + torch.where(b > 0, eps * v.clamp(TINY, 1 / TINY).log(), 0.0)
    return plan, f, g


def _dual_value(cost: Tensor, a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """(b,): value of the dual point that f's c-transforms give, which is feasible whatever f is."""
    g = torch.where(b > 0, (cost - f.unsqueeze(2)).amin(1), 0.0)  # (b, p, t) -> (b, t)
    f = torch.where(a > 0, (cost - g.unsqueeze(1)).amin(2), 0.0)  # (b, p, t) -> (b, p)
    return (a * f).sum(1) + (b * g).sum(1)
