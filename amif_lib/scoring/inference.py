"""Intervals and paired tests for accuracies over questions that cluster by image or case (`data.load.clusters`).

Shares are fractions in [0, 1] here, percent in tables; random draws are seeded, so equal input gives equal output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from amif_lib.core.errors import InputError

DRAWS = 2000
NAN = float("nan")
# values (n,) or, of several runs, (R, n), and the cluster of each question (n,)
ClusteredValues = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True)
class Estimate:
    """A share or a difference of shares with its 95% interval over clusters."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Contrast:
    """A mean difference with its standard error over replicates and clusters, and what a t distribution makes of it."""

    value: float
    error: float = NAN  # this and the rest are NaN for fewer than three replicates, or if these never differ
    df: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN

    def detectable(self, lines: int) -> float:
        """The smallest true difference found in 80% of repetitions, at Holm's first and hardest step: 5% / `lines`."""
        from statsmodels.stats.power import TTestPower

        size = TTestPower().solve_power(nobs=self.df + 1, alpha=0.05 / lines, power=0.8)  # for df + 1 differences
        return float(size * np.sqrt(self.df + 1) * self.error)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of `correct` out of `n` independent questions; InputError unless 0 <= correct <= n > 0."""
    if not 0 <= correct <= n or n == 0:
        raise InputError(f"{correct} correct of {n}: give 0 <= correct <= n and n > 0")
    from statsmodels.stats.proportion import proportion_confint  # slow to import, and no training needs it

    low, high = proportion_confint(correct, n, method="wilson")
    return float(low), float(high)


def mcnemar_p(wins: ArrayLike, losses: ArrayLike) -> np.ndarray:
    """Exact two-sided McNemar p, where only the first of two systems is right on `wins` questions, only the second on
    `losses` (arrays are broadcast)."""
    from scipy.stats import binom

    wins, losses = np.asarray(wins), np.asarray(losses)
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of a family of p values; NaN where there is no p, which the family does not count."""
    p = np.array(p_values, dtype=float)
    if (known := np.isfinite(p)).any():
        from statsmodels.stats.multitest import multipletests

        p[known] = multipletests(p[known], method="holm")[1]
    return p


def contrast(parts: Sequence[ClusteredValues]) -> Contrast:
    """Difference of two configurations, tested over replicates and clusters at once.

    Args:
        parts: per question set the paired differences (R, n) of R replicates on n questions, and their clusters (n,).
            The sets have the same replicates and each its own clusters; the value is the unweighted mean over sets.
            InputError if replicates differ, or if all questions of a set are in one cluster.

    A result should hold for other replicates and for other clusters, so both are random effects: a two-way table of
    replicates by clusters with one cell each (the sum of its differences). Its mean squares give the variance of the
    mean, (MS_R + MS_I - MS_RI) / (R I), with the degrees of freedom of Satterthwaite (Biometrics Bulletin 2, 1946): the
    quasi-F test of Clark (Journal of Verbal Learning and Verbal Behavior 12, 1973), with one degree of freedom in the
    numerator. Where MS_I <= MS_RI, clusters are estimated to add no variance; their part is then set to 0, which leaves
    the t test over replicates. That choice looks at the same data, yet by simulation the size stays right: 4.4% of
    tests without a true difference are below p = .05 with 5 replicates on one set, 4.7% with 8, 5.5 and 5.2% on four
    sets.
    """
    arrays = [np.atleast_2d(np.asarray(values, dtype=float)) for values, _ in parts]  # (R, n) per set
    if not parts or len({len(values) for values in arrays}) > 1:
        raise InputError("contrast: give at least one question set, each with the same replicates")
    sets, replicates = len(arrays), len(arrays[0])
    means = np.mean([values.mean(1) for values in arrays], axis=0)  # (R,)
    value = float(means.mean())
    if replicates < 3:
        return Contrast(value)
    of_replicates = means.var(ddof=1) / replicates  # MS_R / (R I), of the means over sets
    of_clusters, residual, squares = 0.0, 0.0, 0.0  # MS_I / (R I), MS_RI / (R I), their squares over degrees of freedom
    for values, (_, clusters) in zip(arrays, parts, strict=True):
        sums, counts = _by_cluster(values, clusters)  # (R, I), (I,)
        if (number := len(counts)) == 1:
            raise InputError("contrast: all questions of a set are of one image or case; give a set with several")
        cells = number * (sums - values.mean() * counts) / counts.sum() / sets  # (R, I), weighted by questions
        by_cluster, by_replicate = cells.mean(0), cells.mean(1)  # (I,), (R,)
        rest = cells - by_cluster - by_replicate[:, None] + cells.mean()  # (R, I)
        both, rest_df = by_cluster.var(ddof=1) / number, (replicates - 1) * (number - 1)
        alone = (rest**2).sum() / rest_df / (replicates * number)
        of_clusters, residual = of_clusters + both, residual + alone
        squares += both**2 / (number - 1) + alone**2 / rest_df
    if of_clusters <= residual:
        of_clusters, residual, squares = 0.0, 0.0, 0.0
    variance = of_replicates + of_clusters - residual
    if variance <= 0:  # the two configurations never differ, or always by the same amount
        return Contrast(value)
    from scipy.stats import t

    df = float(variance**2 / (of_replicates**2 / (replicates - 1) + squares))
    error, reach = float(np.sqrt(variance)), float(t.ppf(0.975, df))
    p = float(2 * t.sf(abs(value) / error, df))
    return Contrast(value, error, df, value - reach * error, value + reach * error, p)


def detectable(difference: Estimate) -> float:
    """The smallest true difference whose interval leaves out 0 in 80% of repetitions: (z_0.975 + z_0.8) SE.

    SE is half the width of the bootstrap's interval over z_0.975 (Bloom, Evaluation Review 19(5), 1995). This is of one
    difference alone, whatever their number. NaN if the two systems never differ, since the error is then unknown.
    """
    z = NormalDist().inv_cdf
    return (z(0.975) + z(0.8)) * (difference.high - difference.low) / 2 / z(0.975) or NAN


# --- bootstrap: clusters are resampled, runs are not ---------------------------------------------------------------


def bootstrap(values: ArrayLike, clusters: ArrayLike, draws: int = DRAWS) -> Estimate:
    """Accuracy, or mean paired difference, with a percentile interval from resampling clusters.

    `values` is (n,) or, for several runs, (R, n), of which the mean over runs is taken; `clusters` (n,) names each
    question's cluster. All answers right or all wrong leave nothing to resample: then the interval is Wilson's over the
    number of clusters.
    """
    found = bootstrap_mean([(values, clusters)], draws)
    if found.value in (0.0, 1.0) and found.low == found.high:
        count = len(np.unique(np.asarray(clusters, dtype=str)))
        return Estimate(found.value, *wilson(round(found.value * count), count))
    return found


def bootstrap_mean(parts: Sequence[ClusteredValues], draws: int = DRAWS) -> Estimate:
    """Unweighted mean over data sets (the paper's Avg), with an interval from resampling each set's clusters."""
    if not parts:
        raise InputError("there is no data set to average; give one or more")
    samples, means = [], []
    for number, (values, clusters) in enumerate(parts):
        whole = np.atleast_2d(np.asarray(values, dtype=float)).mean(0)  # (n,)
        sums, counts = _by_cluster(whole, clusters)  # (1, I), (I,)
        weights = _cluster_weights(len(counts), draws, number)  # (draws, I)
        samples.append(weights @ sums[0] / (weights @ counts))  # (draws,)
        means.append(whole.mean())
    low, high = np.percentile(np.mean(samples, axis=0), [2.5, 97.5])
    return Estimate(float(np.mean(means)), float(low), float(high))


def _by_cluster(values: ArrayLike, clusters: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sum of values and number of questions per cluster: (S, I) and (I,). Clusters are ordered by name."""
    values = np.atleast_2d(np.asarray(values, dtype=float))  # (S, n)
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if values.shape[1] != len(index) or not len(index):
        raise InputError(f"{values.shape[1]} answers, {len(index)} clusters; give one cluster per answer")
    sums = np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in values])  # (S, I)
    return sums, np.bincount(index, minlength=len(names)).astype(float)


@lru_cache(maxsize=40)  # four question sets with their splits: every row of every table uses them
def _cluster_weights(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` clusters occurs in each bootstrap draw -> (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
