"""Intervals and paired tests for accuracies over questions that cluster by image.

Shares are fractions in [0, 1] here; tables print percent. Random draws are seeded, so that equal input gives equal
output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from amif_lib.errors import InputError

DRAWS = 2000


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
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    table = [[int((first & second).sum()), wins], [losses, int((~first & ~second).sum())]]
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    return McNemar(wins, losses, float(exact_test(table, exact=True).pvalue))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of a family of p values."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1] if len(p_values) else np.array([])


def combine_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1) over seeds; the latter is NaN for a single seed."""
    if not len(values):
        raise InputError("no seed to combine")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _by_image(correct: ArrayLike, images: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Correct answers and questions per image: (S, C) and (C,). Images are ordered by name, so that pairs line up."""
    correct = np.atleast_2d(np.asarray(correct, dtype=float))  # (S, n)
    names, index = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    if correct.shape[1] != len(index) or not len(index):
        raise InputError(f"bootstrap: {correct.shape[1]} answers, {len(index)} image ids; give one each, at least one")
    sums = np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in correct])  # (S, C)
    return sums, np.bincount(index, minlength=len(names)).astype(float)


@lru_cache(maxsize=32)
def _image_weights(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` images occurs in each bootstrap draw -> (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _seed_mean(per_seed: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mean over seeds drawn with replacement, (draws, S) -> (draws,). One seed is itself."""
    draws, seeds = per_seed.shape
    if seeds == 1:
        return per_seed[:, 0]
    weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)  # (draws, S)
    return (per_seed * weights).sum(1) / seeds


def _draws(groups: list[tuple[np.ndarray, np.ndarray]], draws: int, seed: int) -> list[np.ndarray]:
    """Bootstrap accuracies, one array (draws,) per system; all systems see the same resampled images."""
    weights = _image_weights(len(groups[0][1]), draws, seed)  # (draws, C)
    generator = np.random.default_rng([seed, 1])
    return [_seed_mean((weights @ sums.T) / (weights @ counts)[:, None], generator) for sums, counts in groups]


def _interval(sample: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(sample, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(correct: ArrayLike, images: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Accuracy with a percentile interval from resampling images, crossed with seeds.

    `correct` is (n,) or, for several seeds, (S, n), of 0 and 1; `images` (n,) names each question's image. All answers
    right or all wrong leave nothing to resample: then the interval is Wilson's over the images' number.
    """
    sums, counts = _by_image(correct, images)
    value = float(sums.sum() / (counts.sum() * len(sums)))
    if value in (0.0, 1.0):
        return Estimate(value, *wilson(round(value * len(counts)), len(counts)))
    return Estimate(value, *_interval(_draws([(sums, counts)], draws, seed)[0]))


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, images: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Accuracy of `first` minus `second` on the same questions, images resampled jointly, seeds of each on their own.

    Shapes as in `bootstrap`; the two may have different numbers of seeds. `p` is twice the smaller share of draws on
    either side of no difference, so never below 2 / (draws + 1).
    """
    groups = [_by_image(first, images), _by_image(second, images)]
    value = float(np.mean(np.asarray(first, dtype=float)) - np.mean(np.asarray(second, dtype=float)))
    sample = np.subtract(*_draws(groups, draws, seed))
    below, above = (1 + (sample <= 0).sum()) / (1 + draws), (1 + (sample >= 0).sum()) / (1 + draws)
    return Estimate(value, *_interval(sample), p=float(min(1.0, 2 * min(below, above))))


def bootstrap_mean(parts: Sequence[tuple[ArrayLike, ArrayLike]], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Unweighted mean of the accuracies on several data sets (the paper's Avg), each resampled on its own.

    `parts` holds `(correct, images)` per data set, shapes as in `bootstrap`.
    """
    if not parts:
        raise InputError("no data set to average")
    groups = [_by_image(correct, images) for correct, images in parts]
    value = float(np.mean([sums.sum() / (counts.sum() * len(sums)) for sums, counts in groups]))
    samples = [_draws([group], draws, seed + position)[0] for position, group in enumerate(groups)]
    return Estimate(value, *_interval(np.mean(samples, axis=0)))
