"""Transport solvers side by side on the four token families: seconds a plan, gap to the optimum, marginals missed.

Families as in UNITER-like models' tokens: *gauss*, isotropic in 768 dimensions; *cone*, around one common direction, as BERT's
tokens are; *clustered*, around twelve topics; *low-rank*, in 16 dimensions. 324 patches (half of the problems with fewer), 8 to
64 words, cosine costs. Gaps are relative to the network simplex, after rounding every plan to its marginals, since an
infeasible plan may cost less than the optimum.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from amif_lib.app.benchmarks.feed import machine, one_thread
from amif_lib.core import paths, progress
from amif_lib.core.files import write_aside
from amif_lib.objectives import transport
from amif_lib.objectives.adaptive_transport import adaptive
from amif_lib.training import compiling

FAMILIES = ("gauss", "cone", "clustered", "low-rank")
PATCHES, WORDS, WIDTH, TOPICS = 324, 64, 768, 12
COMMON, EXACT = "common loop, 50 iterations", "network simplex, one by one"
Masked = tuple[Tensor, Tensor, Tensor]  # cost (B, p, t), row mask (B, p), column mask (B, t)


def write(scale: str, problems: int = 50, repeats: int = 3) -> Path:
    """Measure all solvers on all families, on the CPU with one thread; writes and returns the CSV."""
    target = paths.scale_dir(scale) / "benchmarks" / "transport.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    bar = progress.bar(len(FAMILIES) * len(ways()), "timing transport solvers")
    frame = pd.concat([measure(name, problems, repeats, bar.step).assign(family=name) for name in FAMILIES])
    bar.close()
    frame = frame[["family", *frame.columns.drop("family")]].assign(**machine())
    with write_aside(target) as aside:
        frame.to_csv(aside, index=False)
    return target


def family(name: str, count: int, seed: int = 0) -> Masked:
    """`count` problems of a family; costs are padded to the largest."""
    g = torch.Generator().manual_seed(seed)
    width = 16 if name == "low-rank" else WIDTH
    x, y = torch.randn(count, PATCHES, width, generator=g), torch.randn(count, WORDS, width, generator=g)
    if name == "cone":
        centre = 2 * torch.randn(count, 1, width, generator=g)
        x, y = centre + x, centre + y
    elif name == "clustered":
        topics = torch.randn(count, TOPICS, width, generator=g)
        rows = torch.arange(count)[:, None]
        x = topics[rows, torch.randint(TOPICS, (count, PATCHES), generator=g)] + 0.7 * x
        y = topics[rows, torch.randint(TOPICS, (count, WORDS), generator=g)] + 0.7 * y
    patches = torch.full((count,), PATCHES)
    patches[count // 2 :] = torch.randint(PATCHES // 2, PATCHES + 1, (count - count // 2,), generator=g)
    words = torch.randint(8, WORDS + 1, (count,), generator=g)
    row_mask, col_mask = torch.arange(PATCHES) < patches[:, None], torch.arange(WORDS) < words[:, None]
    return transport.cosine_cost(x, y), row_mask, col_mask


def common_loop(cost: Tensor, row_mask: Tensor, col_mask: Tensor, beta: float = 0.5, iterations: int = 50) -> Tensor:
    """IPOT as vision-language code commonly writes it, from its published description: one batch, matrix-vector products."""
    a, b = transport.masses(cost, row_mask, col_mask)
    real = row_mask.unsqueeze(2) & col_mask.unsqueeze(1)  # (B, p, t)
    kernel = torch.exp(-cost / beta) * real
    plan, v = real.float(), b.unsqueeze(2)  # (B, p, t), (B, t, 1)
    for _ in range(iterations):
        q = kernel * plan
        u = a.unsqueeze(2) / (q @ v).clamp_min(1e-30)  # (B, p, 1)
        v = b.unsqueeze(2) / (q.transpose(1, 2) @ u).clamp_min(1e-30)  # (B, t, 1)
        plan = u * q * v.transpose(1, 2)
    return plan


def log_sinkhorn(cost: Tensor, row_mask: Tensor, col_mask: Tensor, regularisation: float = 0.01) -> Tensor:
    """POT's batched Sinkhorn. It knows no padding: there, masses are as good as zero."""
    import ot

    a, b = (mass.clamp_min(1e-30) for mass in transport.masses(cost, row_mask, col_mask))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge shows in the gap
        return ot.solve_batch(
            cost, reg=regularisation, a=a, b=b, max_iter=50, method="log_sinkhorn", grad="detach"
        ).plan


def compiled_ipot(cost: Tensor, row_mask: Tensor, col_mask: Tensor) -> Tensor:
    """As with $AMIF_COMPILE=1. The first call compiles, outside the measured ones."""
    with compiling.compiled_transport(True):
        return transport.ipot(cost, row_mask, col_mask)


def compiles() -> bool:
    """Whether `compiled_ipot` can run here: on a CPU it takes a C++ compiler."""
    try:
        compiled_ipot(torch.rand(2, 3, 3), torch.ones(2, 3), torch.ones(2, 3))
    except Exception as error:  # of whatever kind the missing tool raises
        print(f"IPOT is not compiled: {' '.join(str(error).split())[:160]}")
        return False
    return True


def ways() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Every solver by what it is called."""
    return {
        COMMON: common_loop,
        "IPOT, beta 0.5, 50 iterations": transport.ipot,
        "IPOT, beta 0.5, 50 iterations, compiled": compiled_ipot,
        "IPOT, beta 0.1, 50 iterations": lambda *problem: transport.ipot(*problem, beta=0.1),
        "POT log_sinkhorn, 0.01, 50 iterations": log_sinkhorn,
        "adaptive, within 1%": adaptive,
        "adaptive, within 0.3%": lambda *problem: adaptive(*problem, 0.003),
        EXACT: transport.exact,
    }


@torch.no_grad()
def measure(name: str, problems: int, repeats: int = 3, done: Callable[[], None] = lambda: None) -> pd.DataFrame:
    """Columns `way, problems, milliseconds_per_plan` (median of `repeats`), `times_common_loop, mean_gap, largest_gap`
    (per cent of the optimal cost) and `row_violation` (share of the mass, mean, before rounding)."""
    cost, row_mask, col_mask = family(name, problems)
    a, b = transport.masses(cost, row_mask, col_mask)
    best = transport.transport_cost(transport.exact(cost, row_mask, col_mask), cost)  # (B,)
    rows = []
    with one_thread():
        for way, solve in ways().items():
            if solve is compiled_ipot and not compiles():
                done()
                continue
            solve(cost[:2], row_mask[:2], col_mask[:2])
            times = []
            for _ in range(repeats):
                start = time.process_time()
                plan = solve(cost, row_mask, col_mask)
                times.append(time.process_time() - start)
            gap = 100 * (transport.transport_cost(transport.round_to_feasible(plan, a, b), cost) - best) / best  # (B,)
            rows.append(
                {
                    "way": way,
                    "problems": problems,
                    "milliseconds_per_plan": 1000 * sorted(times)[repeats // 2] / problems,
                    "mean_gap": float(gap.mean()),
                    "largest_gap": float(gap.max()),
                    "row_violation": float((plan.sum(2) - a).abs().sum(1).mean()),
                }
            )
            done()
    frame = pd.DataFrame(rows)
    common = frame.set_index("way").loc[COMMON, "milliseconds_per_plan"]
    frame.insert(3, "times_common_loop", frame["milliseconds_per_plan"] / common)
    return frame.round(6)
