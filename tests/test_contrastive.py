"""Soft labels and the KL loss against a float64 loop in plain Python; hard negatives: frequencies, and what is none."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from amif_lib.objectives.contrastive import similarity, soft_label_kl, soft_labels, teacher_statistics
from amif_lib.objectives.hard_negatives import duplicates, sample


def loop_labels(similar, temperature, weight, positives):
    """Eq. 5 entry by entry, in Python's double precision."""
    labels = []
    for row, positive in zip(similar.tolist(), positives.tolist(), strict=True):
        total = sum(math.exp(s / temperature) for s in row)
        labels.append([math.exp(s / temperature) / total + weight * (j == positive) for j, s in enumerate(row)])
    return labels


def loop_kl(logits, labels):
    """Mean over rows of the sum of H (log H - log P), in Python's double precision."""
    rows = []
    for row, label in zip(logits.tolist(), labels, strict=True):
        log_total = math.log(sum(math.exp(z) for z in row))
        rows.append(sum(h * (math.log(h) - z + log_total) for h, z in zip(label, row, strict=True) if h > 0))
    return sum(rows) / len(rows)


def problem(rows=5, columns=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    teacher = torch.rand(rows, columns, generator=g) * 2 - 1
    student = (torch.rand(rows, columns, generator=g) * 2 - 1) / 0.07
    return teacher, student, torch.randint(columns, (rows,), generator=g)


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.5])
def test_labels_loss_and_gradient_equal_the_loop(weight):
    teacher, student, positives = problem()
    labels = soft_labels(teacher, 0.07, weight, positives)
    expected = loop_labels(teacher, 0.07, weight, positives)
    torch.testing.assert_close(labels, torch.tensor(expected), rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(labels.sum(1), torch.full((5,), 1 + weight))  # Eq. 5 as printed
    logits = student.clone().requires_grad_()
    loss = soft_label_kl(logits, labels)
    assert loss.item() == pytest.approx(loop_kl(student, expected), rel=2e-5)
    loss.backward()
    for i, j in ((0, 0), (2, 3), (4, 6)):
        step = torch.zeros(5, 7, dtype=torch.float64)
        step[i, j] = 1e-5
        up, down = (loop_kl(student.double() + s, expected) for s in (step, -step))
        assert logits.grad[i, j].item() == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5)


def test_one_hot_loss_is_infonce_and_a_cold_teacher_becomes_one_hot():
    teacher, student, positives = problem()
    hard = F.one_hot(positives, 7)
    assert soft_label_kl(student, hard).item() == pytest.approx(F.cross_entropy(student, positives).item(), rel=1e-6)
    teacher[torch.arange(5), positives] = 1.0  # above every other similarity
    torch.testing.assert_close(soft_labels(teacher, 1e-4, 0.0, positives), hard.float())


def test_everything_is_fp32_under_autocast():
    teacher, student, positives = (x.bfloat16() if x.is_floating_point() else x for x in problem())
    a, b = (F.normalize(torch.randn(9, 64, generator=torch.Generator().manual_seed(k)), dim=-1) for k in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        labels, products = soft_labels(teacher, 0.07, 0.01, positives), similarity(a, b)
        loss = soft_label_kl(student, labels)
    assert labels.dtype == loss.dtype == products.dtype == torch.float32
    assert torch.equal(labels, soft_labels(teacher.float(), 0.07, 0.01, positives))
    assert torch.equal(loss, soft_label_kl(student.float(), labels))
    assert (products - a.double() @ b.double().T).abs().max() < 1e-6


def test_zero_labels_give_finite_loss_and_gradient_and_labels_carry_none():
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = soft_label_kl(logits, torch.tensor([[0.5, 0.0, 0.5]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(0.5) + 100.0, rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, 0.0, -0.5]]))
    assert not soft_labels(torch.rand(3, 3, requires_grad=True), 0.07, 0.01, torch.arange(3)).requires_grad


@pytest.mark.parametrize(
    ("labels", "mass", "neighbours", "warning"),
    [
        (torch.full((4, 4), 0.25), 0.25, 4.0, "hardly"),
        (torch.eye(4), 1.0, 1.0, "one-hot"),
        ((torch.eye(4) + torch.eye(4).roll(1, 0)) / 2, 0.5, 2.0, ""),  # half on the positive, half on a neighbour
    ],
)
def test_teacher_statistics_by_hand(labels, mass, neighbours, warning):
    found = teacher_statistics(labels, torch.arange(4))
    assert found["mean_q_ii"] == pytest.approx(mass) and found["effective_neighbours"] == pytest.approx(neighbours)
    assert warning in found["warn"] and bool(found["warn"]) == bool(warning)


# --- hard negatives ---

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
