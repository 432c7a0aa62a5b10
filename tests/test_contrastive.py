"""Soft labels and the KL loss against a float64 loop in plain Python, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from amif_lib.core.errors import InputError
from amif_lib.objectives.contrastive import one_hot_labels, similarity, soft_label_kl, soft_labels, teacher_statistics


def loop_labels(similarity, temperature, weight, positives, mask=None):
    """Eq. 5 entry by entry, in Python's double precision."""
    labels = []
    for i, row in enumerate(similarity.tolist()):
        kept = [j for j in range(len(row)) if mask is None or not mask[i, j]]
        total = sum(math.exp(row[j] / temperature) for j in kept)
        labels.append(
            [
                (math.exp(s / temperature) / total + weight * (j == positives[i])) if j in kept else 0.0
                for j, s in enumerate(row)
            ]
        )
    return labels


def loop_kl(logits, labels, mask=None):
    """Each row's sum of H (log H - log P), in Python's double precision."""
    rows = []
    for i, row in enumerate(logits.tolist()):
        kept = [j for j in range(len(row)) if mask is None or not mask[i, j]]
        log_total = math.log(sum(math.exp(row[j]) for j in kept)) if kept else 0.0
        rows.append(sum(labels[i][j] * (math.log(labels[i][j]) - row[j] + log_total) for j in kept if labels[i][j] > 0))
    return rows


def problem(rows=5, columns=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    teacher = torch.rand(rows, columns, generator=g) * 2 - 1
    student = (torch.rand(rows, columns, generator=g) * 2 - 1) / 0.07
    positives = torch.randint(columns, (rows,), generator=g)
    mask = torch.rand(rows, columns, generator=g) < 0.3
    return teacher, student, positives, mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.01, 0.5])
def test_labels_and_loss_equal_the_loop(weight, masked):
    teacher, student, positives, mask = problem()
    mask = mask if masked else None
    labels = soft_labels(teacher, 0.07, weight, positives, mask=mask)
    expected = loop_labels(teacher, 0.07, weight, positives.tolist(), mask)
    torch.testing.assert_close(labels, torch.tensor(expected), rtol=2e-5, atol=1e-7)
    rows = loop_kl(student, expected, mask)
    each = soft_label_kl(student, labels, mask, reduction="none")
    torch.testing.assert_close(each, torch.tensor(rows), rtol=2e-5, atol=1e-6)
    assert soft_label_kl(student, labels, mask).item() == pytest.approx(sum(rows) / len(rows), rel=2e-5)
    assert soft_label_kl(student, labels, mask, reduction="sum").item() == pytest.approx(sum(rows), rel=2e-5)


def test_lambda_zero_is_the_teachers_softmax_and_lambda_adds_at_the_positive_only():
    teacher, _, positives, _ = problem()
    plain, raised = soft_labels(teacher, 0.07, 0.0, positives), soft_labels(teacher, 0.07, 0.25, positives)
    torch.testing.assert_close(plain, F.softmax(teacher / 0.07, dim=1))
    added = torch.zeros_like(plain)
    added[torch.arange(5), positives] = 0.25
    torch.testing.assert_close(raised - plain, added, rtol=0, atol=1e-6)
    torch.testing.assert_close(raised.sum(1), torch.full((5,), 1.25))
    torch.testing.assert_close(soft_labels(teacher, 0.07, 0.25, positives, renormalise=True), raised / 1.25)


def test_one_hot_loss_is_infonce_and_a_cold_teacher_becomes_one_hot():
    teacher, student, positives, _ = problem()
    hard = one_hot_labels(positives, 7)
    assert soft_label_kl(student, hard).item() == pytest.approx(F.cross_entropy(student, positives).item(), rel=1e-6)
    teacher[torch.arange(5), positives] = 1.0  # above every other similarity
    torch.testing.assert_close(soft_labels(teacher, 1e-4, 0.0, positives), hard)


def test_a_student_equal_to_the_labels_has_loss_zero_and_no_gradient():
    teacher, _, positives, _ = problem()
    logits = (teacher / 0.07).requires_grad_()
    loss = soft_label_kl(logits, soft_labels(teacher, 0.07, 0.0, positives))
    loss.backward()
    assert abs(loss.item()) < 1e-6 and logits.grad.abs().max() < 1e-6


def test_raw_labels_have_one_plus_lambda_times_the_gradient_of_renormalised_ones():
    teacher, student, positives, _ = problem()
    weight, gradients, losses = 0.3, [], []
    for renormalise in (False, True):
        logits = student.clone().requires_grad_()
        loss = soft_label_kl(logits, soft_labels(teacher, 0.07, weight, positives, renormalise=renormalise))
        loss.backward()
        gradients.append(logits.grad), losses.append(loss.item())
    torch.testing.assert_close(gradients[0], (1 + weight) * gradients[1], rtol=1e-5, atol=1e-8)
    floor = (1 + weight) * math.log(1 + weight)  # the raw loss where the student equals the renormalised labels
    assert losses[0] == pytest.approx((1 + weight) * losses[1] + floor, rel=1e-5)
    assert (1.01 * math.log(1.01)) == pytest.approx(0.01005, abs=1e-5)


def test_gradient_is_that_of_the_float64_loss():
    teacher, student, positives, _ = problem()
    labels = soft_labels(teacher, 0.07, 0.01, positives)
    logits = student.clone().requires_grad_()
    soft_label_kl(logits, labels).backward()
    for i, j in ((0, 0), (2, 3), (4, 6)):
        step = torch.zeros(5, 7, dtype=torch.float64)
        step[i, j] = 1e-5
        up, down = (sum(loop_kl(student.double() + s, labels.tolist())) / 5 for s in (step, -step))
        assert logits.grad[i, j].item() == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5)


def test_a_block_of_rows_equals_those_rows_of_the_whole():
    teacher, student, positives, mask = problem(rows=8, columns=8)
    whole = soft_labels(teacher, 0.07, 0.01, positives, mask=mask)
    losses = []
    for block in (slice(0, 4), slice(4, 8)):
        part = soft_labels(teacher[block], 0.07, 0.01, positives[block], mask=mask[block])
        torch.testing.assert_close(part, whole[block], rtol=0, atol=0)
        losses.append(soft_label_kl(student[block], part, mask[block]))
    torch.testing.assert_close(torch.stack(losses).mean(), soft_label_kl(student, whole, mask))


def test_half_precision_input_is_computed_in_fp32():
    teacher, student, positives, _ = problem()
    low_teacher, low_student = teacher.bfloat16(), student.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        labels = soft_labels(low_teacher, 0.07, 0.01, positives)
        loss = soft_label_kl(low_student, labels)
    assert labels.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(labels, soft_labels(low_teacher.float(), 0.07, 0.01, positives), rtol=0, atol=0)
    torch.testing.assert_close(loss, soft_label_kl(low_student.float(), labels), rtol=0, atol=0)


def test_masked_diagonal_takes_lambda_and_gradient_away_and_keeps_everything_finite():
    """The text-text setting: the diagonal leaves both distributions; with one sample nothing is left."""
    teacher, student, _, _ = problem(rows=6, columns=6)
    diagonal, positives = torch.eye(6, dtype=torch.bool), torch.arange(6)
    labels = soft_labels(teacher, 0.07, 0.01, positives, mask=diagonal)
    torch.testing.assert_close(labels, soft_labels(teacher, 0.07, 5.0, positives, mask=diagonal))
    assert labels.diagonal().abs().max() == 0
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    logits = student.clone().requires_grad_()
    soft_label_kl(logits, labels, diagonal).backward()
    assert logits.grad.isfinite().all() and logits.grad.diagonal().abs().max() == 0 and logits.grad.abs().max() > 0
    moved = student + 9.0 * torch.eye(6)  # what stands on the diagonal plays no part
    torch.testing.assert_close(soft_label_kl(moved, labels, diagonal), soft_label_kl(student, labels, diagonal))
    alone = torch.ones(1, 1, requires_grad=True)
    nothing = soft_labels(alone, 0.07, 0.01, torch.zeros(1, dtype=torch.long), mask=torch.ones(1, 1, dtype=torch.bool))
    loss = soft_label_kl(alone, nothing, torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    assert nothing.item() == 0 and loss.item() == 0 and alone.grad.item() == 0
    assert one_hot_labels(positives, 6, mask=diagonal).sum() == 0


def test_zero_labels_give_finite_loss_and_gradient():
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = soft_label_kl(logits, torch.tensor([[0.5, 0.0, 0.5]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(0.5) + 100.0, rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, 0.0, -0.5]]))


def test_labels_carry_no_gradient():
    similarity = torch.rand(3, 3, requires_grad=True)
    assert not soft_labels(similarity, 0.07, 0.01, torch.arange(3)).requires_grad


def test_teacher_statistics_by_hand():
    positives = torch.arange(4)
    flat = teacher_statistics(torch.full((4, 4), 0.25), positives)
    assert (flat["mean_q_ii"], flat["effective_neighbours"]) == (pytest.approx(0.25), pytest.approx(4.0))
    assert "hardly" in flat["warn"]
    peaked = teacher_statistics(torch.eye(4), positives)
    assert (peaked["mean_q_ii"], peaked["effective_neighbours"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert "one-hot" in peaked["warn"]
    two = torch.zeros(4, 4)  # half on the positive, half on its neighbour: two effective neighbours
    two[torch.arange(4), positives], two[torch.arange(4), (positives + 1) % 4] = 0.6, 0.6  # rows need not sum to 1
    useful = teacher_statistics(two, positives)
    assert (useful["mean_q_ii"], useful["effective_neighbours"]) == (pytest.approx(0.5), pytest.approx(2.0))
    assert useful["warn"] == ""


@pytest.mark.parametrize(("gap", "expected"), [(0.15, 0.0258), (0.2, 0.0507)])
def test_teacher_statistics_on_gaussian_similarities(gap, expected):
    """Negatives of standard deviation .05 around a positive `gap` higher: E[Q_ii] has a closed form to first order."""
    n, tau = 256, 0.07
    g = torch.Generator().manual_seed(0)
    similarity = 0.05 * torch.randn(n, n, generator=g)
    similarity.fill_diagonal_(gap)
    odds = math.exp(gap / tau) / ((n - 1) * math.exp((0.05 / tau) ** 2 / 2))
    assert odds / (1 + odds) == pytest.approx(expected, rel=0.05)
    stats = teacher_statistics(soft_labels(similarity, tau, 0.0, torch.arange(n)), torch.arange(n))
    assert stats["mean_q_ii"] == pytest.approx(odds / (1 + odds), rel=0.05) and stats["warn"] == ""


def test_what_cannot_be_used_is_named():
    teacher, student, positives, mask = problem()
    for call, word in (
        (lambda: soft_labels(teacher, 0.0, 0.01, positives), "temperature"),
        (lambda: soft_labels(teacher, 0.07, -0.01, positives), "positive_weight"),
        (lambda: soft_labels(teacher, 0.07, 0.01, positives[:2]), "positive_index"),
        (lambda: soft_labels(teacher, 0.07, 0.01, positives, mask=mask[:2]), "mask"),
        (lambda: soft_label_kl(student, teacher[:2]), "targets"),
        (lambda: soft_label_kl(student, teacher, mask[:, :2]), "mask"),
        (lambda: soft_label_kl(student, teacher, reduction="median"), "median"),
    ):
        with pytest.raises(InputError, match=word):
            call()


def test_similarities_are_fp32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(9, 64, generator=generator), dim=-1) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity(a, b)
    exact = a.double() @ b.double().T
    assert found.dtype == torch.float32 and (found - exact).abs().max() < 1e-6
