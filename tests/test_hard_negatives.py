"""Hard negatives: frequencies, what is never drawn, and independence of how a batch is split."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from amif_lib.core.errors import InputError
from amif_lib.objectives.hard_negatives import duplicates, sample

DRAWS = 40_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frequencies(row, positive, exclude=None, **settings):
    """Counts over columns of many draws from one row."""
    targets = torch.tensor(row).expand(DRAWS, -1)
    excluded = None if exclude is None else torch.tensor(exclude).expand(DRAWS, -1)
    drawn = sample(targets, torch.full((DRAWS,), positive), excluded, seeded(), **settings)
    assert drawn.valid.all() and drawn.skipped == 0
    return torch.bincount(drawn.index, minlength=len(row)).tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_frequencies_follow_the_labels_off_the_positive(temperature):
    row = [0.05, 0.40, 0.20, 0.0, 0.15, 0.10, 0.10]
    exclude = [False, False, False, False, False, True, False]
    counts = frequencies(row, positive=1, exclude=exclude, temperature=temperature)
    weights = [0.0 if j in (1, 5) else value ** (1 / temperature) for j, value in enumerate(row)]
    allowed = [j for j, weight in enumerate(weights) if weight > 0]
    assert [j for j, count in enumerate(counts) if count] == allowed  # not the positive, the excluded, the zero
    expected = [weights[j] / sum(weights) * DRAWS for j in allowed]
    assert chisquare([counts[j] for j in allowed], expected).pvalue > 1e-3
    wrong = [row[j] ** 2.0 / sum(row[k] ** 2.0 for k in allowed) * DRAWS for j in allowed]
    if temperature != 0.5:  # the test can tell another temperature
        assert chisquare([counts[j] for j in allowed], wrong).pvalue < 1e-6


def test_top_k_is_uniform_over_the_highest_allowed():
    row = [0.05, 0.40, 0.20, 0.0, 0.15, 0.10, 0.09]
    counts = frequencies(row, positive=1, exclude=[False, False, True, False, False, False, False], top_k=3)
    assert [j for j, count in enumerate(counts) if count] == [4, 5, 6]
    assert chisquare([counts[j] for j in (4, 5, 6)]).pvalue > 1e-3
    few = frequencies([0.5, 0.3, 0.2, 0.0, 0.0], positive=0, top_k=4)  # only two have mass
    assert few[0] == few[3] == few[4] == 0 and chisquare(few[1:3]).pvalue > 1e-3


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.05}, {"temperature": 20.0}, {"top_k": 5}])
def test_never_the_positive_never_excluded(settings):
    g = seeded(1)
    for _ in range(50):
        targets = torch.softmax(4 * torch.randn(64, 32, generator=g), dim=1)
        positives = torch.randint(32, (64,), generator=g)
        exclude = torch.rand(64, 32, generator=g) < 0.5
        drawn = sample(targets, positives, exclude, g, **settings)
        rows = drawn.valid.nonzero().squeeze(1)
        assert len(rows) > 0
        assert (drawn.index[rows] != positives[rows]).all()
        assert not exclude[rows, drawn.index[rows]].any()


def test_rows_without_an_allowed_negative_are_skipped_and_counted():
    targets = torch.full((4, 3), 1 / 3)
    targets[1] = torch.tensor([0.0, 1.0, 0.0])  # one-hot labels: nothing off the positive
    exclude = torch.zeros(4, 3, dtype=torch.bool)
    exclude[2] = torch.tensor([True, True, False])  # all but the positive
    drawn = sample(targets, torch.tensor([0, 1, 2, 2]), exclude, seeded())
    assert drawn.valid.tolist() == [True, False, False, True] and drawn.skipped == 2
    assert drawn.index[1:3].tolist() == [-1, -1] and (drawn.index[[0, 3]] >= 0).all()
    assert drawn.index.dtype == torch.long
    only = sample(torch.ones(1, 1), torch.zeros(1, dtype=torch.long), None, seeded(), top_k=2)
    assert only.index.tolist() == [-1] and only.skipped == 1


def test_each_draw_inverts_the_cumulative_distribution():
    g = seeded(2)
    targets = torch.rand(200, 9, generator=g, dtype=torch.float64) ** 3
    targets[targets < 0.05] = 0.0
    targets[0, 0], targets[1, 8] = 0.0, 0.0  # columns of zero mass at the ends, met by the numbers at the ends
    positives = torch.randint(1, 8, (200,), generator=g)
    uniform = torch.rand(200, generator=g, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1.0 - 2.0**-53  # the ends of [0, 1)
    drawn = sample(targets, positives, None, uniform=uniform)
    columns = (targets.tolist(), positives.tolist(), uniform.tolist(), drawn.index.tolist())
    for i, (row, positive, u, index) in enumerate(zip(*columns, strict=True)):
        weights = [0.0 if j == positive else weight for j, weight in enumerate(row)]
        before, passed = 0.0, []
        for j, weight in enumerate(weights):
            if weight > 0 and before <= u * sum(weights) < before + weight:
                passed.append(j)
            before += weight
        assert weights[index] > 0
        if i > 1:  # at an end, rounding of the loop's own sum may leave no interval
            assert passed == [index]


def test_draws_do_not_depend_on_how_rows_are_split():
    g = seeded(3)
    targets = torch.softmax(torch.randn(12, 12, generator=g) / 0.3, dim=1)
    positives = torch.arange(12)
    exclude = duplicates(torch.arange(12) // 3, torch.arange(12) % 10)
    uniform = torch.rand(12, generator=seeded(4), dtype=torch.float64)
    whole = sample(targets, positives, exclude, seeded(4))
    for parts in (2, 3, 4):
        size = 12 // parts
        blocks = [
            sample(targets[i : i + size], positives[i : i + size], exclude[i : i + size], uniform=uniform[i : i + size])
            for i in range(0, 12, size)
        ]
        assert torch.cat([block.index for block in blocks]).tolist() == whole.index.tolist()
        assert sum(block.skipped for block in blocks) == whole.skipped
    changed = targets.clone()
    changed[1:] = changed[1:].flip(0)  # other rows' labels, and other rows' lack of an allowed negative, play no part
    changed[5] = 0.0
    assert sample(changed, positives, exclude, seeded(4)).index[0] == whole.index[0]


def test_low_temperature_finds_the_hardest_negative_and_does_not_underflow():
    targets = torch.tensor([[0.9, 1e-30, 3e-30, 2e-30]])
    drawn = sample(targets, torch.tensor([0]), None, seeded(), temperature=0.01)
    assert drawn.index.tolist() == [2]


def test_no_gradient_and_half_precision_targets():
    targets = torch.softmax(torch.randn(4, 4, generator=seeded()), dim=1).requires_grad_()
    drawn = sample(targets.bfloat16(), torch.arange(4), None, seeded())
    assert drawn.valid.all() and not drawn.index.requires_grad


def test_duplicates_equal_the_loop_and_blocks_equal_the_whole():
    g = seeded(5)
    groups, texts = torch.randint(6, (15,), generator=g), torch.randint(8, (15,), generator=g)
    whole = duplicates(groups, texts)
    for i in range(15):
        for j in range(15):
            assert bool(whole[i, j]) == (groups[i] == groups[j] or texts[i] == texts[j])
    assert whole.any() and not whole.all()
    assert torch.equal(duplicates(groups, texts, groups[5:10], texts[5:10]), whole[5:10])
    assert torch.equal(duplicates(None, texts), texts[:, None] == texts)
    assert torch.equal(duplicates(groups, None), groups[:, None] == groups)


def test_what_cannot_be_used_is_named():
    targets, positives = torch.full((2, 3), 0.3), torch.zeros(2, dtype=torch.long)
    broken = targets.clone()
    broken[0, 1] = float("nan")
    for call, word in (
        (lambda: sample(broken, positives, None, seeded()), "non-finite"),
        (lambda: sample(-targets, positives, None, seeded()), "negative"),
        (lambda: sample(targets, positives[:1], None, seeded()), "positive_index"),
        (lambda: sample(targets, positives, torch.zeros(2, 2, dtype=torch.bool), seeded()), "exclude"),
        (lambda: sample(targets, positives, None, seeded(), temperature=0.0), "temperature"),
        (lambda: sample(targets, positives, None, seeded(), top_k=-1), "top_k"),
        (lambda: sample(targets, positives, None, uniform=torch.zeros(3)), "uniform"),
        (lambda: duplicates(None, None), "None"),
        (lambda: duplicates(torch.arange(3), torch.arange(4)), "same rows"),
    ):
        with pytest.raises(InputError, match=word):
            call()


def test_exclude_may_be_of_integers() -> None:
    targets, positive = torch.rand(6, 6).softmax(1), torch.arange(6)
    exclude = torch.rand(6, 6) < 0.3
    drawn = [sample(targets, positive, kind, torch.Generator().manual_seed(3)) for kind in (exclude, exclude.long())]
    assert drawn[0].index.tolist() == drawn[1].index.tolist()
