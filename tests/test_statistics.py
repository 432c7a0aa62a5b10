"""Intervals and paired tests against closed forms, brute force and published figures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from amif_lib.core.errors import InputError
from amif_lib.scoring import statistics


@pytest.mark.parametrize(("correct", "n", "low", "high"), [(363, 451, 76.58, 83.88), (4417, 6761, 64.19, 66.46)])
def test_wilson_of_the_headline_row(correct, n, low, high):
    """The paper's headline accuracies on their question counts, and the formula itself."""
    got = statistics.wilson(correct, n)
    assert got == pytest.approx((low / 100, high / 100), abs=6e-5)
    z, share = 1.959963984540054, correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert got == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_impossible_counts(correct, n):
    with pytest.raises(InputError, match="0 <= correct <= n"):
        statistics.wilson(correct, n)


def difference(first, second, images, **options):
    return statistics.bootstrap_mean_difference([(first, second, images)], **options)


def exact_binomial(wins: int, losses: int) -> float:
    n, smaller = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(smaller + 1)) / 2**n)


@pytest.mark.parametrize(
    ("both", "wins", "losses", "neither"), [(10, 5, 0, 3), (2, 9, 4, 1), (0, 3, 3, 0), (4, 0, 0, 4)]
)
def test_mcnemar_is_the_exact_binomial_test(both, wins, losses, neither):
    first = np.repeat([1, 1, 0, 0], [both, wins, losses, neither])
    second = np.repeat([1, 0, 1, 0], [both, wins, losses, neither])
    got = statistics.mcnemar(first, second)
    assert (got.wins, got.losses) == (wins, losses)
    assert got.p == pytest.approx(exact_binomial(wins, losses), abs=1e-12)
    assert statistics.mcnemar([1] * 5, [0] * 5).p == 0.0625  # the paper leads LaPA by 5 of 451 questions


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert len(statistics.holm([])) == 0


def test_combine_seeds():
    assert statistics.combine_seeds([0.2, 0.4, 0.6]) == pytest.approx((0.4, 0.2))
    mean, deviation = statistics.combine_seeds([0.5])
    assert mean == 0.5 and math.isnan(deviation)
    with pytest.raises(InputError):
        statistics.combine_seeds([])


def all_draws(sums, counts):
    """Every equally likely draw of the images with replacement, enumerated."""
    images = range(len(counts))
    return np.array(
        [
            sum(sums[i] for i in draw) / sum(counts[i] for i in draw)
            for draw in itertools.product(images, repeat=len(counts))
        ]
    )


def test_bootstrap_matches_full_enumeration():
    images = ["a", "b", "a", "c", "c", "c", "d"]
    correct = [1, 0, 0, 1, 1, 0, 1]
    got = statistics.bootstrap(correct, images, draws=40_000)
    exact = all_draws([1, 0, 2, 1], [2, 1, 3, 1])
    assert got.value == pytest.approx(4 / 7)
    assert got.low == pytest.approx(np.percentile(exact, 2.5), abs=0.02)
    assert got.high == pytest.approx(np.percentile(exact, 97.5), abs=0.02)


def test_clustering_widens_the_interval_and_singletons_match_the_binomial():
    generator = np.random.default_rng(0)
    per_image = generator.random(120) < 0.6
    correct = np.repeat(per_image, 4)  # four questions per image, all alike: 120 observations, not 480
    clustered = statistics.bootstrap(correct, np.repeat(np.arange(120), 4))
    single = statistics.bootstrap(correct, np.arange(480))
    assert (clustered.high - clustered.low) == pytest.approx(2 * (single.high - single.low), rel=0.12)
    share = correct.mean()
    assert (single.high - single.low) == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 480), rel=0.1)


def test_bootstrap_is_seeded_and_ignores_the_order_of_questions():
    generator = np.random.default_rng(1)
    correct, images = generator.integers(0, 2, 60), generator.integers(0, 20, 60)
    order = generator.permutation(60)
    assert statistics.bootstrap(correct, images) == statistics.bootstrap(correct[order], images[order])


def test_all_right_or_all_wrong_still_has_an_interval():
    got = statistics.bootstrap(np.zeros(30), np.repeat(np.arange(10), 3))
    assert (got.value, got.low) == (0, 0) and got.high == pytest.approx(statistics.wilson(0, 10)[1])
    assert statistics.bootstrap(np.ones(4), [1, 1, 2, 3]).low == pytest.approx(statistics.wilson(3, 3)[0])


def test_seeds_widen_the_interval():
    images = np.arange(200)
    base = np.random.default_rng(2).integers(0, 2, 200)
    same = statistics.bootstrap(np.stack([base, base, base]), images)
    one = statistics.bootstrap(base, images)
    assert (same.low, same.high) == pytest.approx((one.low, one.high), abs=0.01)
    apart = np.stack([base, np.maximum(base, images % 2 == 0), base * (images % 3 > 0)])
    spread = statistics.bootstrap(apart, images)
    assert spread.value == pytest.approx(apart.mean())
    assert spread.high - spread.low > 1.3 * (one.high - one.low)


def test_paired_difference_uses_the_pairing():
    generator = np.random.default_rng(3)
    images = np.repeat(np.arange(150), 3)
    second = generator.integers(0, 2, 450)
    first = second.copy()
    first[np.flatnonzero(second == 0)[:18]] = 1  # 18 questions better, none worse
    got = difference(first, second, images)
    assert got.value == pytest.approx(18 / 450)
    assert 0 < got.low < got.value < got.high and got.p < 0.01
    back = difference(second, first, images)
    assert (back.value, back.low, back.high) == pytest.approx((-got.value, -got.high, -got.low))
    three = difference(np.stack([first, second, second]), second, images)  # the two may have different numbers of runs
    assert three.value == pytest.approx(6 / 450)
    nothing = difference(second, second, images)
    assert (nothing.value, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)


def test_bootstrap_false_positive_rate_on_equal_systems():
    """Two systems that differ by clustered chance alone: the p value rejects at about its nominal rate."""
    generator = np.random.default_rng(4)
    images = np.repeat(np.arange(60), 4)
    rejected = 0
    for _ in range(200):
        lean = generator.random(60)[images]  # an image favours one system or the other
        first, second = generator.random(240) < lean, generator.random(240) < generator.permutation(lean)
        rejected += difference(first, second, images, draws=500).p < 0.05
    assert rejected / 200 < 0.11


def test_paired_tests_refuse_different_lengths():
    with pytest.raises(InputError, match="same questions"):
        statistics.mcnemar([1, 0], [1])
    with pytest.raises(InputError, match="image ids"):
        statistics.bootstrap([1, 0], ["a"])
    for function in (statistics.bootstrap_mean, statistics.bootstrap_mean_difference):
        with pytest.raises(InputError, match="no data set"):
            function([])


def test_means_over_data_sets_match_full_enumeration():
    """Two sets of three and two images: every joint draw is enumerated, 27 x 4 of them."""
    sets = [
        ([1, 1, 0, 1, 1], [0, 1, 0, 0, 1], ["a", "a", "b", "c", "c"]),
        ([1, 0, 1], [1, 1, 0], ["d", "e", "e"]),
    ]
    got = statistics.bootstrap_mean_difference(sets, draws=40_000)
    assert got.value == pytest.approx((2 / 5 + 0 / 3) / 2)
    mean = statistics.bootstrap_mean([(first, images) for first, _, images in sets])
    assert mean.value == pytest.approx((4 / 5 + 2 / 3) / 2) and mean.low < mean.value < mean.high
    gaps = []
    for first, second, images in sets:
        names, gap = sorted(set(images)), []
        for draw in itertools.product(names, repeat=len(names)):
            chosen = [n for name in draw for n, image in enumerate(images) if image == name]
            gap.append(np.mean([first[n] - second[n] for n in chosen]))
        gaps.append(gap)
    exact = np.array([(a + b) / 2 for a in gaps[0] for b in gaps[1]])
    assert got.low == pytest.approx(np.percentile(exact, 2.5), abs=0.02)
    assert got.high == pytest.approx(np.percentile(exact, 97.5), abs=0.02)
    smaller = min((exact <= 1e-12).mean(), (exact >= -1e-12).mean())
    assert got.p == pytest.approx(min(1, 2 * smaller), abs=0.02)


def test_pretrainings_are_drawn_before_their_fine_tunings():
    """Runs that agree within a pre-training and differ between two: the draw has the variance of two, not of six runs.

    The pre-trainings are 0.1 off their mean: variance 0.1^2 * 2 / (2 - 1) between them, 0.1^2 * 6 / 5 as six runs.
    """
    images = np.arange(400)
    right = np.stack([images < 400 * share for share in (0.4, 0.4, 0.4, 0.6, 0.6, 0.6)])
    nested = statistics.bootstrap(right, images, draws=20_000, pretrainings=[0, 0, 0, 1, 1, 1])
    flat = statistics.bootstrap(right, images, draws=20_000)
    sampling = 0.25 / 400  # binomial, near enough
    for got, between in ((nested, 2 * 0.1**2 / 2), (flat, 1.2 * 0.1**2 / 6)):
        width = (got.high - got.low) / (2 * 1.96)
        assert width == pytest.approx(math.sqrt(sampling + between), rel=0.15)
    order = [3, 0, 4, 1, 5, 2]  # the order of runs does not matter, only which pre-training each has
    again = statistics.bootstrap(right[order], images, draws=20_000, pretrainings=[1, 0, 1, 0, 1, 0])
    assert again == nested
    with pytest.raises(InputError, match="as many fine-tuning seeds"):
        statistics.bootstrap(right, images, pretrainings=[0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize(("accuracies", "pretrainings"), [((0.2, 0.8), None), ((0.2, 0.5, 0.8), None),
                                                          ((0.2, 0.8), [0, 1])])  # fmt: skip
def test_few_seeds_have_the_sample_variance(accuracies, pretrainings):
    """The same images in each draw, so that only runs vary: the mean's variance is s^2 / S with ddof 1, by hand."""
    per_run = np.tile(accuracies, (40_000, 1))
    sample = statistics.over_runs(per_run, pretrainings)
    assert sample.mean() == pytest.approx(np.mean(accuracies), abs=0.005)
    assert sample.var() == pytest.approx(np.var(accuracies, ddof=1) / len(accuracies), rel=0.03)
    if len(accuracies) == 2:  # drawn twice the first, one each, twice the second: 0.5 -+ sqrt(2) * 0.3
        assert sorted(set(sample.round(6))) == pytest.approx([0.5 - 0.3 * 2**0.5, 0.5, 0.5 + 0.3 * 2**0.5], abs=1e-5)


def test_shared_pretrainings_cancel_in_a_difference():
    """Two rows on the same two pre-trainings, a constant step apart: only images vary, and they are paired."""
    images = np.arange(100)
    low = np.stack([images < 40, images < 60])
    high = np.stack([images < 50, images < 70])
    shared = difference(high, low, images, pretrainings=([0, 1], [0, 1]))
    assert shared.value == pytest.approx(0.1)
    assert (shared.high - shared.low) / (2 * 1.96) == pytest.approx(math.sqrt(0.1 * 0.9 / 100), rel=0.25)
    apart = difference(high, low, images)  # as if they were fine-tunings: drawn on their own
    assert apart.high - apart.low > 1.5 * (shared.high - shared.low)


def test_against_a_printed_level():
    rng = np.random.default_rng(3)
    right, images = rng.random(200) < 0.7, np.repeat(range(50), 4)
    plain = statistics.bootstrap(right, images, draws=10_000)
    got = statistics.bootstrap_against(right, images, 0.5)
    assert (got.value, got.low, got.high) == pytest.approx((plain.value - 0.5, plain.low - 0.5, plain.high - 0.5))
    assert got.p < 0.001 < 0.3 < statistics.bootstrap_against(right, images, float(plain.value)).p
