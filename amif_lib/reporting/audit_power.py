"""The paper audit: which differences a test set of n questions can show at all.

Two systems answer the same questions; those that only one of them answers correctly are *discordant*, and the exact
two-sided McNemar test asks whether they lean to one side. The paper gives no answers per question, so the number of
discordant questions is unknown: every verdict is for the best case (no question lost) or for a stated share of
discordant questions. Sampling of questions only; the paper reports no variance over seeds. Percent and points outside,
fractions inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, reduce

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import bdtr
from scipy.stats import binom, chi2, norm, t

from amif_lib.core.errors import InputError
from amif_lib.reporting import audit
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_sources import OURS, SETS
from amif_lib.scoring import statistics

ALPHA, POWER = 0.05, 0.8
DISCORDANCE = 0.10  # share of discordant questions that verdicts assume unless told otherwise
DISCORDANCES = (0.03, 0.05, 0.10, 0.15, 0.20)
MOST_QUESTIONS = 1_000_000  # a table of powers stops looking there
NODES, WEIGHTS = np.polynomial.legendre.leggauss(120)  # for integrals over probabilities
SEED_SDS = (0.3, 0.5, 1.0)  # points; assumed, since the paper reports none
# The ablation steps that the paper or its tables invite to compare: table, row, reference row, what differs.
STEPS = (
    ("table2", "2", "1", "text-text alignment"),
    ("table2", "3", "2", "multi-view alignment"),
    ("table2", "3", "1", "intra-modality alignment"),
    ("table2", "4", "3", "local alignment"),
    ("table2", "7", "4", "soft labels"),
    ("table2", "7", "5", "intra-modality, soft labels"),
    ("table2", "8", "6", "intra-modality, hard negatives"),
    ("table2", "6", "5", "hard negatives, inter only"),
    ("table2", "8", "7", "hard negatives"),
    ("table3", "1", "2", "equal weights over 1.0, 0.2"),
    ("table3", "1", "3", "equal weights over 0.2, 1.0"),
    ("table3", "1", "4", "equal weights over 1.0, 3.0"),
    ("table3", "1", "5", "equal weights over 3.0, 1.0"),
    ("table4", "2", "1", "CLIP-based encoders"),
    ("table4", "3", "1", "pre-training"),
    ("table4", "3", "2", "pre-training over CLIP-based"),
    ("table4", "4", "3", "question vocabulary"),
    ("table4", "5", "3", "answer vocabulary"),
    ("table4", "5", "4", "answers in place of questions"),
    ("table4", "6", "5", "gate"),
    ("table5", "6", "2", "BioMedCLIP over CLIP"),
    ("table5", "6", "3", "BioMedCLIP over MedCLIP"),
    ("table5", "6", "4", "BioMedCLIP over PubMedCLIP"),
    ("table5", "6", "5", "BioMedCLIP over PMC-CLIP"),
)


def mcnemar_p(wins: ArrayLike, losses: ArrayLike) -> np.ndarray:
    """Exact two-sided McNemar p of `wins` against `losses` discordant questions (arrays are broadcast)."""
    wins, losses = np.asarray(wins), np.asarray(losses)
    return np.minimum(1.0, 2 * binomial_cdf(np.minimum(wins, losses), wins + losses))


def most_losses(discordant: ArrayLike, alpha: float = ALPHA) -> np.ndarray:
    """The most losses among so many discordant questions that still give p < alpha; -1 where even none does not."""
    discordant = np.asarray(discordant)
    return _losses_table(int(discordant.max()).bit_length(), alpha)[discordant]


@lru_cache(maxsize=32)
def _losses_table(bits: int, alpha: float) -> np.ndarray:
    """`most_losses` of 0 to 2^bits - 1 discordant questions: a search for n asks for the same ones many times."""
    discordant = np.arange(2**bits)
    losses = np.floor(discordant / 2 - norm.isf(alpha / 2) * np.sqrt(discordant) / 2)  # near; set right below
    while (high := 2 * binomial_cdf(losses, discordant) >= alpha).any():
        losses = losses - high
    while (low := 2 * binomial_cdf(losses + 1, discordant) < alpha).any():
        losses = losses + low
    return np.maximum(losses, -1).astype(np.int64)


def binomial_cdf(most: ArrayLike, n: ArrayLike, p: ArrayLike = 0.5) -> np.ndarray:
    """P(at most `most` of n), 0 for a negative `most`; the special function itself, without scipy.stats' checks."""
    most = np.asarray(most, dtype=float)
    return np.where(most < 0, 0.0, bdtr(np.maximum(most, 0), n, p))


def smallest_difference(n: int, discordance: float = 0.0, alpha: float = ALPHA) -> float:
    """The smallest difference in points, on n questions, with p < alpha when that share of them is discordant.

    `discordance` 0 asks for the least at all: no question lost. NaN where so few discordant questions cannot do.
    """
    if not discordance:
        discordant = np.arange(1, 200)
        least = discordant[most_losses(discordant, alpha) >= 0][0]
        return 100 * float(least) / n if least <= n else float("nan")
    discordant = round(n * discordance)
    losses = int(most_losses(discordant, alpha)) if discordant else -1
    return 100 * (discordant - 2 * losses) / n if losses >= 0 else float("nan")


def most_discordant(difference: int, alpha: float = ALPHA) -> int:
    """The most discordant questions with which a lead of so many questions has p < alpha; 0 where none will do."""
    if difference < 1:
        return 0
    losses = 0
    while mcnemar_p(difference + losses, losses) < alpha:
        losses += 1
    return difference + 2 * (losses - 1) if losses else 0


def thresholds() -> pd.DataFrame:
    """Smallest significant difference per set and for the average of four: `data_set, n, floor, floor_questions, at_3…`.

    The average's are by the normal approximation, with the same share discordant in every set.
    """
    rows = []
    for name, total in sources.test_counts()[["data_set", "total"]].drop_duplicates().itertuples(index=False):
        found = {f"at_{round(100 * share)}": smallest_difference(int(total), share) for share in DISCORDANCES}
        least = smallest_difference(int(total))
        rows.append(
            {"data_set": name, "n": int(total), "floor": least, "questions": round(least * total / 100)} | found
        )
    found = {f"at_{round(100 * share)}": average_threshold(share) for share in DISCORDANCES}
    rows.append({"data_set": "avg", "n": sum(sizes()), "floor": float("nan"), "questions": None} | found)
    return pd.DataFrame(rows).astype({"questions": "Int64"})


def sizes() -> list[int]:
    """Test questions of the four sets."""
    return [sources.test_size(name) for name in SETS]


def _standard_error(discordance: float, questions: list[int]) -> float:
    """Of the unweighted mean of the sets' paired differences, when they differ by chance alone."""
    return float(np.sqrt(sum(discordance / n for n in questions)) / len(questions))


def average_threshold(discordance: float, alpha: float = ALPHA) -> float:
    """The smallest difference of two Avg columns, in points, with p < alpha; paired, normal approximation."""
    return 100 * float(norm.isf(alpha / 2)) * _standard_error(discordance, sizes())


def unpaired_average_threshold(alpha: float = ALPHA) -> float:
    """As `average_threshold`, had the two systems answered different questions, at the accuracies of AMiF's row."""
    variance = 0.0
    for name, n in zip(SETS, sizes(), strict=True):
        share = sources.hundredths(f"table1:{OURS}", name) / 10_000
        variance += 2 * share * (1 - share) / n
    return 100 * float(norm.isf(alpha / 2)) * float(np.sqrt(variance)) / len(SETS)


def smallest_p(differences: dict[str, int]) -> float:
    """The smallest p that differences of so many questions per set can have: no set has more discordant ones than that.

    One set: exact McNemar. Several: the exact test of the unweighted mean of their differences by sign changes of the
    discordant questions, all of which are enumerated through their counts.
    """
    moved = {name: int(value) for name, value in differences.items() if value}
    if not moved:
        return 1.0
    weights = {name: 1 / sources.test_size(name) for name in moved}
    observed = abs(sum(value * weights[name] for name, value in moved.items()))
    if len({value > 0 for value in moved.values()}) == 1:  # all one way: no other pattern is as extreme
        return min(1.0, 2 * 0.5 ** sum(map(abs, moved.values())))
    parts = []
    for name, value in moved.items():
        wins = np.arange(abs(value) + 1)
        parts.append(((2 * wins - abs(value)) * weights[name], binom.pmf(wins, abs(value), 0.5)))
    total = reduce(np.add.outer, [values for values, _ in parts])
    chance = reduce(np.multiply.outer, [pmf for _, pmf in parts])
    return float(chance[np.abs(total) >= observed - 1e-12].sum())


def in_questions(first: str, second: str, name: str) -> int:
    """The difference of two overall cells in questions of the set, to the nearest."""
    n = sources.test_size(name)
    right = [round(sources.hundredths(cell, name) * n / 10_000) for cell in (first, second)]
    return right[0] - right[1]


def wilson_table(split: str = "overall") -> pd.DataFrame:
    """Table 1's accuracies of a split with Wilson's 95% intervals: `data_set, row, value, n, low, high`, in percent.

    The number of right answers is the nearest to the printed figure, which for other methods need not be whole. An open
    or closed row is taken to count the questions of the definition that its open share is nearest to.
    """
    nearest = audit.open_share().set_index(["data_set", "row"])["nearest"]
    rows = []
    for cell in sources.cells().query("table == 'table1' and split == @split").itertuples():
        definition = nearest.get((cell.dataset, cell.row)) or "yes_no"
        n = sources.test_size(cell.dataset, split, definition)
        low, high = statistics.wilson(round(cell.hundredths * n / 10_000), n)
        rows.append((cell.dataset, cell.row, cell.value, n, 100 * low, 100 * high))
    return _in_order(pd.DataFrame(rows, columns=["data_set", "row", "value", "n", "low", "high"]))


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """By data set as the paper lists them, else as it was."""
    order = {name: position for position, name in enumerate(SETS)}
    return frame.sort_values("data_set", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def leads() -> pd.DataFrame:
    """AMiF against the best other method, per set and split: rank, lead in points and questions, and what it can show.

    `smallest_p`: with no question lost. `most_discordant`: the largest share of discordant questions, in percent, at
    which the lead is significant. Open and closed leads over a row that counts other questions have neither.
    """
    table = sources.cells().query("table == 'table1'")
    rows = []
    for (name, split), group in table.groupby(["dataset", "split"], sort=False):
        by_row = group.set_index("row")["hundredths"]
        if OURS not in by_row:
            continue
        own, others = int(by_row[OURS]), by_row.drop(OURS)
        rival, n = others.idxmax(), sources.test_size(name, split)
        same = audit.comparable(name, split, rival)
        questions = round(own * n / 10_000) - round(int(others.max()) * n / 10_000)
        can = same and questions > 0
        rows.append(
            {
                "data_set": name,
                "split": split,
                "value": own / 100,
                "rank": 1 + int((others > own).sum()),
                "rival": rival,
                "rival_value": int(others.max()) / 100,
                "lead": (own - int(others.max())) / 100,
                "n": n,
                "questions": questions if same else None,
                "rival_prints": bool(audit.counts_printing(n, int(others.max()))),
                "same_questions": same,
                "smallest_p": float(mcnemar_p(questions, 0)) if can else float("nan"),
                "most_discordant": 100 * most_discordant(questions) / n if can else float("nan"),
            }
        )
    return _in_order(pd.DataFrame(rows).astype({"questions": "Int64"}))


def steps(discordance: float = DISCORDANCE) -> pd.DataFrame:
    """Every ablation step (`STEPS`) on every set and on average, against what the set can show.

    Columns `table, row, reference, step, data_set, difference` (points), `questions`, `smallest_p`, `needed` (smallest
    significant difference at this share of discordant questions) and `verdict`: `cannot be significant` (whatever the
    answers were), `within noise` (at this share), `beyond noise` or `no gain`. Averages are the recomputed ones.
    """
    _check_share(discordance)
    rows = []
    needed = {name: smallest_difference(sources.test_size(name), discordance) for name in SETS}
    needed["avg"] = average_threshold(discordance)
    for table, row, reference, step in STEPS:
        cells = f"{table}:{row}", f"{table}:{reference}"
        points = {n: (sources.hundredths(cells[0], n) - sources.hundredths(cells[1], n)) / 100 for n in SETS}
        moved = {name: in_questions(*cells, name) for name in SETS}
        points["avg"] = sum(points.values()) / len(SETS)
        for name, difference in points.items():
            p = smallest_p(moved if name == "avg" else {name: moved[name]})
            verdict = (
                "no gain"
                if difference <= 0
                else "cannot be significant"
                if p >= ALPHA
                else "beyond noise"
                if difference >= needed[name]
                else "within noise"
            )
            rows.append((table, row, reference, step, name, difference, moved.get(name), p, needed[name], verdict))
    columns = ["table", "row", "reference", "step", "data_set", "difference", "questions", "smallest_p", "needed"]
    return pd.DataFrame(rows, columns=[*columns, "verdict"]).astype({"questions": "Int64"}).round({"difference": 4})


def _check_share(discordance: float) -> None:
    if not 0 < discordance < 1:
        raise InputError(f"discordance {discordance}: give the share of discordant questions, between 0 and 1, as 0.1")


# --- power ---


def power(n: int, difference: float, discordance: float, alpha: float = ALPHA) -> float:
    """Exact power of McNemar's test: n questions, a true difference and a true share of discordant questions (fractions).

    The number of discordant questions is binomial, and so are the wins among them; what lies beyond eight standard
    deviations of the former is left out (below 1e-14). Raises InputError where the difference exceeds the discordance.
    """
    if not 0 < abs(difference) <= discordance < 1 or n < 1:
        raise InputError(f"power: difference {difference}, discordance {discordance}, n {n}: give 0 < |d| <= share < 1")
    mean, spread = n * discordance, 8 * np.sqrt(n * discordance * (1 - discordance)) + 8
    discordant = np.arange(max(1, int(mean - spread)), min(n, int(mean + spread)) + 1)
    losses = most_losses(discordant, alpha)
    win = (1 + difference / discordance) / 2
    reject = binomial_cdf(losses, discordant, 1 - win) + binomial_cdf(losses, discordant, win)
    return float(binom.pmf(discordant, n, discordance) @ reject)


@cache
def questions_needed(difference: float, discordance: float, wanted: float = POWER, alpha: float = ALPHA) -> int:
    """The number of questions from which the exact power reaches `wanted`, found by bisection; fractions as in `power`."""
    z = norm.isf(alpha / 2) + norm.isf(1 - wanted)
    return _first(lambda n: power(n, difference, discordance, alpha) >= wanted, discordance * (z / difference) ** 2)


def _first(enough: Callable[[int], bool], near: float) -> int:
    """The smallest number from which `enough` holds, by bisection from a bracket around `near`."""
    low, high = int(0.9 * near), max(2, int(1.1 * near) + 2)
    while not enough(high):
        low, high = high, 2 * high
    while low > 1 and enough(low):
        low, high = low // 2, low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def seeds_power(difference: float, sd: float, runs: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided two-sample t test with so many runs of each system; runs spread by `sd` (same unit).

    Integrated over the pooled variance, since the noncentral t of the usual libraries fails for large effects.
    """
    if sd <= 0 or runs < 2:
        raise InputError(f"seeds: sd {sd}, runs {runs}: give sd > 0 and at least 2 runs")
    freedom = 2 * (runs - 1)
    spread = np.sqrt(chi2.ppf((NODES + 1) / 2, freedom) / freedom)  # of the pooled sd, over its true value
    shift, bar = abs(difference) / sd * np.sqrt(runs / 2), t.isf(alpha / 2, freedom) * spread
    return float(WEIGHTS @ (norm.sf(bar - shift) + norm.cdf(-bar - shift)) / 2)


@cache
def seeds_needed(difference: float, sd: float, wanted: float = POWER, alpha: float = ALPHA) -> int:
    """Runs of each of two systems to show a difference of their means with that power (`seeds_power`).

    They speak of this test set alone: more seeds never make up for too few questions.
    """
    near = 2 * ((norm.isf(alpha / 2) + norm.isf(1 - wanted)) * sd / difference) ** 2
    return _first(lambda runs: runs > 1 and seeds_power(difference, sd, runs, alpha) >= wanted, near)


def power_table(discordance: float = DISCORDANCE, wanted: float = POWER) -> pd.DataFrame:
    """For every step that gains, taken at its printed size: power on the set, questions for `wanted`, seeds for `wanted`.

    `questions_needed` is exact for a set; for the average it is `times_the_sets`, how many times the four test sets.
    `seeds_at_…` are runs of each row when single runs spread by that many points. Empty where the difference exceeds
    the share of discordant questions, or where more than a million questions were needed.
    """
    rows = []
    z = float(norm.isf(ALPHA / 2) + norm.isf(1 - wanted))
    for line in steps(discordance).query("difference > 0").itertuples():
        share = line.difference / 100
        row = {key: getattr(line, key) for key in ("table", "row", "reference", "step", "data_set", "difference")}
        if line.data_set == "avg":
            row["times_the_sets"] = (z * _standard_error(discordance, sizes()) / share) ** 2
        elif share <= discordance:
            n = sources.test_size(line.data_set)
            row |= {"n": n, "power": power(n, share, discordance)}
            if discordance * (z / share) ** 2 < MOST_QUESTIONS:  # about the number that will be found
                row["questions_needed"] = questions_needed(share, discordance, wanted)
                row["times_the_sets"] = row["questions_needed"] / n
        row |= {f"seeds_at_{sd}": seeds_needed(line.difference, sd, wanted) for sd in SEED_SDS}
        rows.append(row)
    frame = pd.DataFrame(rows)
    whole = ["n", "questions_needed", *(f"seeds_at_{sd}" for sd in SEED_SDS)]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def power_curve(wanted: float = POWER) -> pd.DataFrame:
    """What differences take: `difference` (points), `needs` (`questions` or `seeds`), `given` (discordance or sd), `number`."""
    rows = []
    for points in np.geomspace(0.2, 4, 16):
        for share in (0.05, 0.10, 0.20):
            rows.append((points, "questions", share, questions_needed(points / 100, share, wanted)))
        for sd in SEED_SDS:
            rows.append((points, "seeds", sd, seeds_needed(points, sd, wanted)))
    return pd.DataFrame(rows, columns=["difference", "needs", "given", "number"])
