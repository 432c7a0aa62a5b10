"""Soft labels and the KL loss against a float64 loop in plain Python, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from amif_lib.objectives.contrastive import similarity, soft_label_kl, soft_labels, teacher_statistics


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
