"""Transport plans against POT's network simplex and the algorithm as a loop; the monitor of collapsed tokens."""

from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from amif_lib.core.errors import InputError
from amif_lib.objectives import collapse as monitor
from amif_lib.objectives import transport


def loop_ipot(cost, a, b, beta, iterations):
    """IPOT with one scaling per iteration, without masks, in float64: rows first, columns last."""
    kernel, plan, v = np.exp(-cost / beta), np.ones_like(cost), np.full(len(b), 1 / len(b))
    for _ in range(iterations):
        q = kernel * plan
        u = a / (q @ v)
        v = b / (q.T @ u)
        plan = u[:, None] * q * v[None, :]
    return plan


def uniform(n):
    return np.full(n, 1 / n)


def ragged(seed=0, shapes=((5, 3), (7, 4), (1, 4), (7, 1))):
    """A small padded batch and its problems one by one."""
    g = torch.Generator().manual_seed(seed)
    p, t = max(s[0] for s in shapes), max(s[1] for s in shapes)
    cost = torch.rand(len(shapes), p, t, generator=g)
    row_mask = torch.arange(p) < torch.tensor([[s[0]] for s in shapes])
    col_mask = torch.arange(t) < torch.tensor([[s[1]] for s in shapes])
    return cost, row_mask, col_mask, [cost[i, : s[0], : s[1]].double().numpy() for i, s in enumerate(shapes)]


# --- IPOT ---


@pytest.mark.parametrize(("beta", "gap"), [(0.5, 0.01), (0.1, 0.001)])
def test_plans_at_the_papers_size_meet_their_marginals_and_cost_little_more_than_the_exact_ones(beta, gap):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 324, 768, generator=g), torch.randn(4, 64, 768, generator=g)
    row_mask = torch.arange(324) < torch.tensor([[324], [324], [200], [162]])
    col_mask = torch.arange(64) < torch.tensor([[64], [8], [30], [64]])
    real = row_mask[:, :, None] & col_mask[:, None]
    cost = transport.cosine_cost(x, y).masked_fill(~real, 7.0)  # what padding holds must not matter
    plan, best = transport.ipot(cost, row_mask, col_mask, beta), transport.exact(cost, row_mask, col_mask)
    assert plan.dtype == torch.float32 and plan.shape == cost.shape and not plan.requires_grad
    assert (plan >= 0).all() and plan[~real].abs().max() == 0
    a, b = transport.masses(cost, row_mask, col_mask)
    assert (plan.sum(1) - b).abs().sum(1).max() < 2e-6  # columns are scaled last
    assert (plan.sum(2) - a).abs().sum(1).max() < 1e-3
    found, least = transport.transport_cost(plan, cost), transport.transport_cost(best, cost)
    assert (found > 0.999 * least).all() and (found < (1 + gap) * least).all()


@pytest.mark.parametrize(
    ("low", "high", "beta", "iterations"),
    [(0, 1, 0.3, 1), (0, 1, 0.3, 2), (0, 1, 0.3, 50), (0, 10, 0.5, 10), (-30, 30, 0.5, 10), (-60, 40, 0.5, 10)],
)
def test_masked_batch_equals_the_loop_problem_by_problem(low, high, beta, iterations):
    """Exponents up to 3, and up to 20, 120 and 200: on logarithms above a switch, and beyond what fp32 holds."""
    cost, row_mask, col_mask, blocks = ragged(seed=4)
    plan = transport.ipot(low + (high - low) * cost, row_mask, col_mask, beta=beta, iterations=iterations)
    rtol, atol = (2e-4, 1e-7) if high == 1 else (1e-3, 1e-5)
    for i, block in enumerate(blocks):
        p, t = block.shape
        expected = loop_ipot(low + (high - low) * block, uniform(p), uniform(t), beta, iterations)
        np.testing.assert_allclose(plan[i, :p, :t].numpy(), expected, rtol=rtol, atol=atol)


def test_padding_and_neighbours_never_change_a_plan():
    cost, row_mask, col_mask, blocks = ragged()
    batch = transport.ipot(cost, row_mask, col_mask)
    for i, block in enumerate(blocks):
        p, t = block.shape
        alone = transport.ipot(torch.tensor(block, dtype=torch.float32)[None])
        torch.testing.assert_close(batch[i, :p, :t], alone[0], rtol=1e-6, atol=1e-9)
    wide = torch.full((len(blocks), 11, 9), float("nan"))
    wide[:, ::2, 3:] = float("inf")
    for i, block in enumerate(blocks):
        wide[i, : block.shape[0], : block.shape[1]] = torch.tensor(block)
    padded = transport.ipot(wide, F.pad(row_mask, (0, 4)), F.pad(col_mask, (0, 5)))
    torch.testing.assert_close(padded[:, :7, :4], batch, rtol=1e-6, atol=1e-9)
    assert padded[:, 7:].abs().max() == 0 and padded[:, :, 4:].abs().max() == 0
    # Real tokens need not come first, and an integer attention mask is a mask.
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled = transport.ipot(cost[:, order], row_mask[:, order].long(), col_mask.long())
    torch.testing.assert_close(shuffled, batch[:, order], rtol=1e-6, atol=1e-9)


def test_an_empty_side_gives_a_zero_plan_and_finite_gradients():
    cost, row_mask, col_mask, _ = ragged()
    batch = transport.ipot(cost, row_mask, col_mask)
    row_mask[0], col_mask[1] = False, False
    for scale in (1.0, 1000.0):  # 1000: on logarithms
        leaf = (cost * scale).requires_grad_()
        plan = transport.ipot(leaf, row_mask, col_mask)
        assert plan.isfinite().all() and plan[:2].abs().max() == 0
        transport.transport_cost(plan, leaf).sum().backward()
        assert leaf.grad.isfinite().all() and leaf.grad[:2].abs().max() == 0 and leaf.grad[2:].abs().max() > 0
        if scale == 1.0:
            torch.testing.assert_close(plan[2:], batch[2:])
    assert transport.exact(cost, row_mask, col_mask)[:2].abs().max() == 0
    assert transport.ipot(cost, torch.zeros(4, 7), col_mask).abs().max() == 0


# --- precision and gradients ---


def test_autocast_changes_nothing_and_half_precision_costs_are_solved_in_fp32():
    g = torch.Generator().manual_seed(8)
    x, y = torch.randn(2, 30, 64, generator=g), torch.randn(2, 11, 64, generator=g)
    cost = transport.cosine_cost(x, y)
    plan = transport.ipot(cost)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transport.cosine_cost(x, y), cost) and torch.equal(transport.ipot(cost), plan)
        low = transport.cosine_cost(x.bfloat16(), y.bfloat16())
        assert torch.equal(low, transport.cosine_cost(x.bfloat16().float(), y.bfloat16().float()))
        for dtype in (torch.bfloat16, torch.float16):
            rounded = cost.to(dtype)
            assert torch.equal(transport.ipot(rounded), transport.ipot(rounded.float()))
            assert transport.ipot(rounded).dtype == transport.transport_cost(plan, rounded).dtype == torch.float32


def test_detached_plan_gives_the_envelope_gradient():
    cost, row_mask, col_mask, _ = ragged(seed=9)
    leaf = cost.clone().requires_grad_()
    for solver in (transport.ipot, transport.exact):
        plan = solver(leaf, row_mask, col_mask)
        assert not plan.requires_grad
        (gradient,) = torch.autograd.grad(transport.transport_cost(plan, leaf).sum(), leaf)
        assert torch.equal(gradient, plan)
    block = cost[1].double().numpy()  # the exact plan is the derivative of the minimum
    for j, k in ((0, 0), (3, 2), (6, 3)):
        step = np.zeros_like(block)
        step[j, k] = 1e-6
        up, down = (ot.emd2(uniform(7), uniform(4), block + s) for s in (step, -step))
        assert float(plan[1, j, k]) == pytest.approx((up - down) / 2e-6, abs=1e-4)


# --- costs, exact solver ---


def test_costs_are_eq_10():
    g = torch.Generator().manual_seed(12)
    x, y = torch.randn(2, 3, 5, generator=g), torch.randn(2, 4, 5, generator=g)
    cost, plan = transport.cosine_cost(x, y), torch.rand(2, 3, 4, generator=g)
    for i, j, k in itertools.product(range(2), range(3), range(4)):
        similarity = float(F.cosine_similarity(x[i, j], y[i, k], dim=0))
        assert float(cost[i, j, k]) == pytest.approx(1 - similarity, abs=1e-6)
    assert transport.cosine_cost(torch.zeros(1, 1, 5), y[:1]).unique().tolist() == [1.0]
    expected = [sum(float(plan[i, j, k] * cost[i, j, k]) for j in range(3) for k in range(4)) for i in range(2)]
    torch.testing.assert_close(transport.transport_cost(plan, cost), torch.tensor(expected))


def test_exact_equals_brute_force_and_emd2():
    g = torch.Generator().manual_seed(13)
    square = torch.rand(3, 5, 5, generator=g)
    plan = transport.exact(square)
    for i in range(3):  # with equal masses an optimum is a permutation
        costs = [sum(float(square[i, j, k]) for j, k in enumerate(order)) for order in itertools.permutations(range(5))]
        best = min(costs) / 5
        assert float(transport.transport_cost(plan, square)[i]) == pytest.approx(best, rel=1e-6)
    cost, row_mask, col_mask, blocks = ragged(seed=13)
    cost[~(row_mask[:, :, None] & col_mask[:, None])] = -100.0  # tempting, but padding
    plan = transport.exact(cost, row_mask, col_mask)
    for i, block in enumerate(blocks):
        p, t = block.shape
        assert float(plan[i].sum()) == pytest.approx(float(plan[i, :p, :t].sum()))
        value = float((plan[i, :p, :t].double().numpy() * block).sum())
        assert value == pytest.approx(ot.emd2(uniform(p), uniform(t), block), rel=1e-6)
    cost[2, 0, 1] = float("nan")
    with pytest.raises(InputError, match="sample 2 is not finite"):
        transport.exact(cost, row_mask, col_mask)


# --- the collapse monitor, against hand-computed plans and loops over token pairs ---


def tokens(seed=0, samples=3, rows=6, cols=4, width=8):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(samples, rows, width, generator=g), torch.randn(samples, cols, width, generator=g)
    row_mask = torch.arange(rows) < torch.tensor([[rows], [rows - 2], [rows - 1]])
    col_mask = torch.arange(cols) < torch.tensor([[cols - 1], [cols], [2]])
    return x, y, row_mask, col_mask


def statistics(x, y, row_mask=None, col_mask=None, plan=None, **settings):
    cost = transport.cosine_cost(x, y)
    plan = transport.ipot(cost, row_mask, col_mask, **settings) if plan is None else plan
    return monitor.collapse(x, y, plan, row_mask, col_mask, cost)


def test_token_cosine_equals_the_loop_over_pairs():
    x, y, row_mask, col_mask = tokens()
    stats = statistics(x, y, row_mask, col_mask)
    for key, side, mask in (("row_token_cosine", x, row_mask), ("col_token_cosine", y, col_mask)):
        means = []
        for sample, real in zip(side, mask, strict=True):
            kept = sample[real]
            pairs = [float(F.cosine_similarity(a, b, dim=0)) for a, b in itertools.permutations(kept, 2)]
            means.append(sum(pairs) / len(pairs))
        assert stats[key] == pytest.approx(sum(means) / len(means), abs=1e-6)


def test_distance_by_hand():
    plan = torch.tensor([[[0.4, 0.1], [0.1, 0.4]]])
    assert statistics(torch.eye(2)[None], torch.eye(2)[None], plan=plan)["plan_distance"] == pytest.approx(4 * 0.15 / 2)


def test_matching_orthogonal_tokens_are_an_informative_optimal_plan():
    stats = statistics(torch.eye(8)[None], torch.eye(8)[None], beta=0.05)
    assert stats["plan_distance"] == pytest.approx(1 - 1 / 8, abs=1e-4)
    assert stats["row_token_cosine"] == pytest.approx(0.0, abs=1e-6)
    assert "depends on the tokens" in monitor.verdict(stats)


def test_equal_tokens_carry_no_information():
    x, y, row_mask, col_mask = tokens()
    same = torch.ones(8)
    stats = statistics(same + 0 * x, same + 0 * y, row_mask, col_mask)
    assert stats["row_token_cosine"] == pytest.approx(1.0) and stats["col_token_cosine"] == pytest.approx(1.0)
    assert stats["plan_distance"] < 1e-6
    assert monitor.verdict(stats).startswith("the plan carries hardly any information: tokens have collapsed")
    one_side = statistics(same + 0.05 * x, y, row_mask, col_mask)  # one collapsed side is enough
    assert one_side["row_token_cosine"] > 0.95 > one_side["col_token_cosine"]
    assert "collapsed" in monitor.verdict(one_side)


def test_a_plan_near_the_independent_one_carries_no_information():
    x, y, row_mask, col_mask = tokens()
    stats = statistics(x, y, row_mask, col_mask, beta=50.0, iterations=5)
    assert max(stats["row_token_cosine"], stats["col_token_cosine"]) < 0.5 and stats["plan_distance"] < 0.05
    text = monitor.verdict(stats)
    assert "hardly any information" in text and "independent plan" in text and "collapsed" not in text


def test_padding_never_changes_the_statistics():
    x, y, row_mask, col_mask = tokens()
    stats = statistics(x, y, row_mask, col_mask)
    wide_x, wide_y = F.pad(x, (0, 0, 0, 3), value=5.0), F.pad(y, (0, 0, 0, 2), value=-4.0)
    padded = statistics(wide_x, wide_y, F.pad(row_mask, (0, 3)), F.pad(col_mask, (0, 2)))
    assert padded == pytest.approx(stats, abs=1e-5)
    assert all(isinstance(value, float) for value in stats.values())


def test_samples_without_a_choice_do_not_count():
    x, y, row_mask, col_mask = tokens()
    full = statistics(x[:1], y[:1], row_mask[:1], col_mask[:1])
    row_mask[1], col_mask[2, 1:] = False, False  # an empty side; a single column token
    part = statistics(x, y, row_mask, col_mask)
    assert part["plan_distance"] == pytest.approx(full["plan_distance"], abs=1e-6)
    assert part["col_token_cosine"] == pytest.approx(full["col_token_cosine"], abs=1e-6)
    none = statistics(x[1:], y[1:], row_mask[1:], col_mask[1:])
    assert math.isnan(none["plan_distance"])
    assert "cannot be judged" in monitor.verdict(none)
