"""The paper audit: which differences the exact McNemar test can show on a test set of n questions.

The paper gives no answers per question, so a verdict is for the best case (no question lost) or for a stated share of
*discordant* questions, those that only one of the two systems answers correctly.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom, norm

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.reporting import audit
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_sources import OURS, SETS

ALPHA = 0.05  # for chance over questions; the spread over seeds comes on top
DISCORDANCE = 0.10  # share of discordant questions that verdicts assume unless told otherwise


def mcnemar_p(wins: ArrayLike, losses: ArrayLike) -> np.ndarray:
    """Exact two-sided McNemar p of `wins` against `losses` discordant questions (arrays are broadcast)."""
    wins, losses = np.asarray(wins), np.asarray(losses)
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))


def most_losses(discordant: ArrayLike, alpha: float = ALPHA) -> np.ndarray:
    """The most losses among so many discordant questions that still give p < alpha; -1 where even none does not."""
    return binom.ppf(alpha / 2, discordant, 0.5) - 1  # ppf: the smallest number with a tail of at least alpha / 2


def smallest_difference(n: int, discordance: float = 0.0, alpha: float = ALPHA) -> float:
    """The smallest difference in points, on n questions, with p < alpha when that share of them is discordant.

    `discordance` 0 asks for the least at all: no question lost. NaN where so few discordant questions cannot do.
    """
    if not discordance:
        least = 1 + int(np.argmax(most_losses(np.arange(1, 200), alpha) >= 0))
        return 100 * least / n if least <= n else float("nan")
    discordant = round(n * discordance)
    losses = int(most_losses(discordant, alpha)) if discordant else -1
    return 100 * (discordant - 2 * losses) / n if losses >= 0 else float("nan")


def most_discordant(difference: int, alpha: float = ALPHA) -> int:
    """The most discordant questions with which a lead of so many questions has p < alpha; 0 where none will do."""
    losses = 0
    while difference > 0 and mcnemar_p(difference + losses, losses) < alpha:
        losses += 1
    return difference + 2 * (losses - 1) if losses else 0


def sizes() -> list[int]:
    """Test questions of the four sets."""
    return [sources.test_size(name) for name in SETS]


def standard_error(discordance: float) -> float:
    """Of the unweighted mean of the four sets' paired differences, when they differ by chance alone; a fraction."""
    return float(np.sqrt(sum(discordance / n for n in sizes())) / len(SETS))


def needed(dataset: str, discordance: float, alpha: float = ALPHA) -> float:
    """The smallest significant difference in points on a set; of two Avg columns by the normal approximation."""
    if not 0 < discordance < 1:
        raise InputError(f"discordance {discordance}: give the share of discordant questions, between 0 and 1, as 0.1")
    if dataset == "avg":
        return 100 * float(norm.isf(alpha / 2)) * standard_error(discordance)
    return smallest_difference(sources.test_size(dataset), discordance, alpha)


def in_questions(first: str, second: str, name: str, split: str = "overall") -> int:
    """The difference of two cells in questions of the set, to the nearest."""
    n = sources.test_size(name, split)
    right = [round(sources.hundredths(cell, name, split) * n / 10_000) for cell in (first, second)]
    return right[0] - right[1]


def smallest_p(differences: dict[str, int]) -> float:
    """The smallest p that differences of so many questions per set can have: no set has more discordant ones than that.

    One set: exact McNemar. Several: the exact test of the unweighted mean of their differences by sign changes of the
    discordant questions, all of which are enumerated through their counts.
    """
    moved = {name: int(value) for name, value in differences.items() if value}
    if len({value > 0 for value in moved.values()}) < 2:  # all one way: no other pattern is as extreme
        return min(1.0, 2 * 0.5 ** sum(map(abs, moved.values())))
    weights = {name: 1 / sources.test_size(name) for name in moved}
    observed = abs(sum(value * weights[name] for name, value in moved.items()))
    wins = {name: np.arange(abs(value) + 1) for name, value in moved.items()}
    total = reduce(np.add.outer, [(2 * wins[name] - abs(value)) * weights[name] for name, value in moved.items()])
    chance = reduce(np.multiply.outer, [binom.pmf(wins[name], abs(value), 0.5) for name, value in moved.items()])
    return float(chance[np.abs(total) >= observed - 1e-12].sum())


def leads() -> pd.DataFrame:
    """AMiF against the best other method, per set and split: rank, lead in points and questions, and what it can show.

    `smallest_p`: with no question lost. `most_discordant`: the largest share of discordant questions, in percent, at
    which the lead is significant. Open and closed leads over a row that counts other questions have neither.
    """
    rows = []
    for (name, split), group in sources.cells().query("table == 'table1'").groupby(["dataset", "split"], sort=False):
        by_row = group.set_index("row")["hundredths"]
        own, others = by_row.get(OURS), by_row.drop(OURS, errors="ignore")
        if own is None:
            continue
        rival, best, n = others.idxmax(), int(others.max()), sources.test_size(name, split)
        questions, same = round(own * n / 10_000) - round(best * n / 10_000), audit.comparable(name, split, rival)
        can = same and questions > 0
        rows.append(
            {
                "data_set": name,
                "split": split,
                "value": own / 100,
                "rank": 1 + int((others > own).sum()),
                "rival": rival,
                "rival_value": best / 100,
                "lead": (own - best) / 100,
                "n": n,
                "questions": questions if same else None,
                "rival_prints": bool(audit.counts_printing(n, best)),
                "same_questions": same,
                "smallest_p": float(mcnemar_p(questions, 0)) if can else float("nan"),
                "most_discordant": 100 * most_discordant(questions) / n if can else float("nan"),
            }
        )
    frame = pd.DataFrame(rows).astype({"questions": "Int64"})
    return frame.sort_values("data_set", key=lambda names: names.map(SETS.index), kind="stable", ignore_index=True)


def steps(discordance: float = DISCORDANCE) -> pd.DataFrame:
    """Every ablation step (`results/paper/steps.csv`) on every set and on average, against what the set can show.

    Columns `table, row, reference, step, data_set, difference` (points), `questions`, `smallest_p`, `needed` (smallest
    significant difference at this share of discordant questions) and `verdict`: `cannot be significant` (whatever the
    answers were), `within noise` (at this share), `beyond noise` or `no gain`. Averages are the recomputed ones.
    """
    least, rows = {name: needed(name, discordance) for name in (*SETS, "avg")}, []
    for step in pd.read_csv(paths.published() / "steps.csv", dtype=str).itertuples(index=False):
        first, second = f"{step.table}:{step.row}", f"{step.table}:{step.reference}"
        moved = {name: in_questions(first, second, name) for name in SETS}
        for name, bar in least.items():
            difference = round(sources.points(first, name) - sources.points(second, name), 4)
            p = smallest_p(moved if name == "avg" else {name: moved[name]})
            verdict = "beyond noise" if difference >= bar else "within noise"
            verdict = "no gain" if difference <= 0 else "cannot be significant" if p >= ALPHA else verdict
            rows.append((*step, name, difference, moved.get(name), p, bar, verdict))
    columns = [
        "table",
        "row",
        "reference",
        "step",
        "data_set",
        "difference",
        "questions",
        "smallest_p",
        "needed",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns).astype({"questions": "Int64"})
