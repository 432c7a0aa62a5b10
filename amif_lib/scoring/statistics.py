"""Intervals and paired tests for accuracies over questions that cluster by image.

Shares are fractions in [0, 1] here, percent in tables; random draws are seeded, so equal input gives equal output.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from amif_lib.core.errors import InputError

DRAWS = 2000  # for intervals
TEST_DRAWS = 10_000  # for differences: Holm over m comparisons needs p values below .05 / m


@dataclass(frozen=True)
class Estimate:
    """A share or a difference of shares with its 95% interval; `p` is two-sided, for differences only."""

    value: float
    low: float
    high: float
    p: float = float("nan")


@dataclass(frozen=True)
class McNemar:
    """Questions that only the first system answers correctly (`wins`), only the second (`losses`), and the exact p."""

    wins: int
    losses: int
    p: float


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of `correct` out of `n` independent questions; InputError unless 0 <= correct <= n > 0."""
    if not 0 <= correct <= n or n == 0:
        raise InputError(f"{correct} correct of {n}: give 0 <= correct <= n and n > 0")
    from statsmodels.stats.proportion import proportion_confint  # slow to import, and no training needs it

    low, high = proportion_confint(correct, n, alpha=1 - level, method="wilson")
    return float(low), float(high)


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test of two systems on the same questions; both (n,) of 0 and 1."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"paired test: shapes {first.shape}, {second.shape}; give the same questions, equally ordered")
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    return McNemar(wins, losses, float(exact_test([[0, wins], [losses, 0]], exact=True).pvalue))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of a family of p values."""
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        return np.array([])
    gc.freeze()  # multipletests collects garbage each time, which takes long where many runs are loaded
    try:
        return multipletests(p_values, method="holm")[1]
    finally:
        gc.unfreeze()


def combine_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1) over seeds; the latter is NaN for a single seed."""
    if not len(values):
        raise InputError("no seed to combine")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def detectable(difference: Estimate, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at 5% finds with this power: (z_0.975 + z_power) SE.

    SE is the bootstrap's, its interval's half width over z_0.975 (Bloom, Evaluation Review 19(5), 1995). NaN where
    the two systems never differ, which says nothing of a difference.
    """
    z = NormalDist().inv_cdf
    return (z(0.975) + z(power)) * (difference.high - difference.low) / 2 / z(0.975) or float("nan")


# --- bootstrap: images are resampled, and runs within pre-trainings ------------------------------------------------


def bootstrap(
    correct: ArrayLike,
    images: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
    pretrainings: Sequence[int] | None = None,
) -> Estimate:
    """Accuracy with a percentile interval from resampling images, crossed with seeds.

    `correct` is (n,) or, for several runs, (S, n), of 0 and 1; `images` (n,) names each question's image. Runs of
    several pre-trainings, named in `pretrainings` (S,), are drawn in two steps: pre-trainings, then runs of each.
    All answers right or all wrong leave nothing to resample: then the interval is Wilson's over the images' number.
    """
    sums, counts = _by_image(correct, images)
    value = float(sums.sum() / (counts.sum() * len(sums)))
    if value in (0.0, 1.0):
        return Estimate(value, *wilson(round(value * len(counts)), len(counts)))
    return bootstrap_mean([(correct, images)], draws, seed, pretrainings)


def bootstrap_mean(
    parts: Sequence[tuple[ArrayLike, ArrayLike]],
    draws: int = DRAWS,
    seed: int = 0,
    pretrainings: Sequence[int] | None = None,
) -> Estimate:
    """Unweighted mean of the accuracies on several data sets (the paper's Avg), each resampled on its own.

    `parts` holds `(correct, images)` per data set, shapes as in `bootstrap`; sets share the draw of pre-trainings.
    """
    if not parts:
        raise InputError("no data set to average")
    samples = [
        _accuracies(*part, draws, (seed + n, seed + n, seed), pretrainings) for n, part in enumerate(parts)
    ]  # (draws,) each
    sample = np.mean(samples, axis=0).clip(0, 1)  # widened for few seeds, a draw may leave [0, 1]
    return Estimate(float(np.mean([np.mean(correct) for correct, _ in parts])), *_interval(sample))


def bootstrap_mean_difference(
    parts: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    draws: int = TEST_DRAWS,
    seed: int = 0,
    pretrainings: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
) -> Estimate:
    """Unweighted mean over data sets of the paired differences in accuracy, first minus second.

    `parts` holds `(first, second, images)` per data set, shapes as in `bootstrap`; the two may have different numbers
    of runs. Within a set they see the same resampled images, seeds of each are drawn apart, and so are the sets.
    `pretrainings` names those of the first's and of the second's runs. `p` is twice the smaller share of
    draws on either side of no difference, so never below 2 / (draws + 1).
    """
    if not parts:
        raise InputError("no data set to compare on")
    samples = []
    for n, (first, second, images) in enumerate(parts):
        ours = _accuracies(first, images, draws, (seed + n, seed + n, seed), pretrainings[0])
        theirs = _accuracies(second, images, draws, (seed + n, seed + n + 1000, seed), pretrainings[1])
        samples.append(ours - theirs)  # (draws,)
    sample, value = np.mean(samples, axis=0), np.mean([np.mean(first) - np.mean(second) for first, second, _ in parts])
    return Estimate(float(value), *_interval(sample), p=_two_sided(sample))


def bootstrap_against(
    correct: ArrayLike,
    images: ArrayLike,
    level: float,
    draws: int = TEST_DRAWS,
    seed: int = 0,
    pretrainings: Sequence[int] | None = None,
) -> Estimate:
    """Accuracy minus a fixed `level` (a share that is only printed), with interval and p; the level has no variance."""
    sample = _accuracies(correct, images, draws, (seed, seed, seed), pretrainings) - level
    return Estimate(float(np.mean(correct)) - level, *_interval(sample), p=_two_sided(sample))


def resampled_sums(values: ArrayLike, images: ArrayLike, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Sum of `values` (S, n) over the questions of resampled images, drawn as `bootstrap` draws them -> (draws, S)."""
    sums, counts = _by_image(values, images)
    return _image_weights(len(counts), draws, seed).astype(float) @ sums.T


def over_runs(
    per_run: np.ndarray, pretrainings: Sequence[int] | None = None, seed: int = 0, pretraining_seed: int | None = None
) -> np.ndarray:
    """Mean over runs drawn with replacement, (draws, S) -> (draws,). One run is itself; equal calls draw the same runs.

    `pretrainings` names each run's pre-training: those are drawn first, then runs within each. Their draws depend on
    `pretraining_seed` alone, so that systems and data sets that share pre-trainings share the draw. What a mean of S
    drawn runs is off the mean of all is widened by sqrt(S / (S - 1)): plain draws have (S - 1) / S of the variance.
    """
    draws, runs = per_run.shape
    if runs == 1:
        return per_run[:, 0]
    names, group = np.unique([0] * runs if pretrainings is None else pretrainings, return_inverse=True)
    if len(group) != runs or len(set(np.bincount(group))) > 1:
        raise InputError(f"bootstrap: {runs} runs of {len(names)} pre-trainings; give each as many fine-tuning seeds")
    cube = per_run[:, np.argsort(group, kind="stable")].reshape(draws, len(names), -1)  # (draws, P, F)
    out = cube.mean((1, 2))  # (draws,)
    if (first := len(names)) > 1:
        generator = np.random.default_rng([seed if pretraining_seed is None else pretraining_seed, 2])
        cube = np.take_along_axis(cube, generator.integers(first, size=cube.shape[:2])[:, :, None], axis=1)
        out = out + np.sqrt(first / (first - 1)) * (cube.mean((1, 2)) - out)
    if (own := cube.shape[2]) > 1:
        generator = np.random.default_rng([seed, 1])
        weights = generator.multinomial(own, np.full(own, 1 / own), size=cube.shape[:2]) / own  # (draws, P, F)
        out = out + np.sqrt(own / (own - 1)) * ((cube * weights).sum(2) - cube.mean(2)).mean(1)
    return out


def _accuracies(
    correct: ArrayLike, images: ArrayLike, draws: int, seeds: tuple[int, int, int], pretrainings: Sequence[int] | None
) -> np.ndarray:
    """Bootstrap accuracies (draws,). `seeds` are those of images, runs and pre-trainings; equal ones draw the same."""
    sums, counts = _by_image(correct, images)  # (S, C), (C,)
    both = np.vstack([sums, counts]).astype(np.float32)  # (S + 1, C): small whole numbers, exact
    drawn = (_image_weights(len(counts), draws, seeds[0]) @ both.T).astype(float)  # (draws, S + 1)
    return over_runs(drawn[:, :-1] / drawn[:, -1:], pretrainings, seeds[1], seeds[2])


def _by_image(correct: ArrayLike, images: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Correct answers and questions per image: (S, C) and (C,). Images are ordered by name, so that pairs line up."""
    correct = np.atleast_2d(np.asarray(correct, dtype=float))  # (S, n)
    names, index = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    if correct.shape[1] != len(index) or not len(index):
        raise InputError(f"bootstrap: {correct.shape[1]} answers, {len(index)} image ids; give one each, at least one")
    sums = np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in correct])  # (S, C)
    return sums, np.bincount(index, minlength=len(names)).astype(float)


@lru_cache(maxsize=40)  # four question sets with their splits: every row of every table uses them
def _image_weights(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` images occurs in each bootstrap draw -> (draws, count)."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn.astype(np.float32)  # small whole numbers: exact


def _interval(sample: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(sample, [2.5, 97.5])
    return float(low), float(high)


def _two_sided(sample: np.ndarray) -> float:
    """Twice the smaller share of draws on either side of no difference, never below 2 / (draws + 1)."""
    sample = np.where(np.abs(sample) < 1e-12, 0.0, sample)  # what rounding makes of equal accuracies
    below, above = (1 + (sample <= 0).sum()) / (1 + len(sample)), (1 + (sample >= 0).sum()) / (1 + len(sample))
    return float(min(1.0, 2 * min(below, above)))
