"""Hard negatives: frequencies, what is never drawn, and the probabilities that are given back."""

from __future__ import annotations

import torch
from scipy.stats import chisquare

from amif_lib.objectives.hard_negatives import duplicates, sample

DRAWS = 40_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_frequencies_follow_the_labels_off_the_positive():
    row, exclude = [0.05, 0.40, 0.20, 0.0, 0.15, 0.10, 0.10], torch.tensor([0, 0, 0, 0, 0, 1, 0]).bool()
    positives = torch.full((DRAWS,), 1)
    targets = torch.tensor(row).expand(DRAWS, -1)
    drawn = sample(targets, positives, exclude.expand(DRAWS, -1), seeded())
    counts = torch.bincount(drawn.index, minlength=len(row)).tolist()
    weights = [0.0 if j in (1, 5) else value for j, value in enumerate(row)]
    allowed = [j for j, weight in enumerate(weights) if weight > 0]
    assert drawn.valid.all() and [j for j, count in enumerate(counts) if count] == allowed
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    torch.testing.assert_close(drawn.probabilities[0], shares)
    assert chisquare([counts[j] for j in allowed], [float(shares[j]) * DRAWS for j in allowed]).pvalue > 1e-3
    wrong = [row[j] ** 2.0 / sum(row[k] ** 2.0 for k in allowed) * DRAWS for j in allowed]
    assert chisquare([counts[j] for j in allowed], wrong).pvalue < 1e-6  # the test can tell another distribution


def test_rows_without_an_allowed_negative_are_marked():
    targets = torch.full((4, 3), 1 / 3)
    targets[1] = torch.tensor([0.0, 1.0, 0.0])  # one-hot labels: nothing off the positive
    exclude = torch.zeros(4, 3, dtype=torch.bool)
    exclude[2] = torch.tensor([True, True, False])  # all but the positive
    drawn = sample(targets, torch.tensor([0, 1, 2, 2]), exclude, seeded())
    assert drawn.valid.tolist() == [True, False, False, True] and drawn.index[1:3].tolist() == [-1, -1]
    assert (drawn.index[[0, 3]] >= 0).all() and drawn.index.dtype == torch.long
    torch.testing.assert_close(drawn.probabilities.sum(1), drawn.valid.double())
    assert sample(torch.ones(1, 1), torch.zeros(1, dtype=torch.long), None, seeded()).index.tolist() == [-1]


def test_a_draw_depends_on_its_own_row_only():
    targets = torch.softmax(torch.randn(12, 12, generator=seeded(3)) / 0.3, dim=1)
    positives, exclude = torch.arange(12), duplicates(torch.arange(12) // 3, torch.arange(12) % 10)
    whole = sample(targets, positives, exclude, seeded(4))
    changed = targets.clone()
    changed[1:] = changed[1:].flip(0)
    changed[5] = 0.0
    assert sample(changed, positives, exclude.long(), seeded(4)).index[0] == whole.index[0]


def test_small_labels_are_drawn_and_half_precision_carries_no_gradient():
    targets = torch.tensor([[0.9, 0.0, 1e-30, 0.0]])
    assert sample(targets, torch.tensor([0]), None, seeded()).index.tolist() == [2]
    targets = torch.softmax(torch.randn(4, 4, generator=seeded()), dim=1).requires_grad_()
    drawn = sample(targets.bfloat16(), torch.arange(4), None, seeded())
    assert drawn.valid.all() and not drawn.probabilities.requires_grad


def test_duplicates_equal_the_loop():
    groups, texts = torch.randint(6, (15,), generator=seeded(5)), torch.randint(8, (15,), generator=seeded(6))
    whole = duplicates(groups, texts)
    assert whole.any() and not whole.all()
    for i in range(15):
        for j in range(15):
            assert bool(whole[i, j]) == (groups[i] == groups[j] or texts[i] == texts[j])
