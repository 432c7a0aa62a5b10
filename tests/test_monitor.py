"""The collapse monitor against hand-computed plans, and loops over token pairs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from amif_lib.objectives import collapse as monitor
from amif_lib.objectives import transport


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
