"""The paper audit: which differences the exact McNemar test can show on a test set of n questions.

The paper gives no answers per question, so a verdict is for the best case (no question lost) or for a stated share of
*discordant* questions, those that only one of the two systems answers correctly.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom, norm

from amif_lib.core import paths
from amif_lib.reporting import audit
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_sources import OURS, SETS
from amif_lib.scoring.inference import mcnemar_p

ALPHA = 0.05  # for chance over questions; the spread over seeds comes on top
DISCORDANCE = 0.10  # share of discordant questions that verdicts assume unless told otherwise
NOT_AT_BEST = "p >= .05 even if none is lost"  # a verdict by the exact two-sided test


def most_losses(discordant: ArrayLike) -> np.ndarray:
    """The most losses with which p < `ALPHA`, by number of discordant questions; -1 if not even 0 losses suffice."""
    return binom.ppf(ALPHA / 2, discordant, 0.5) - 1  # ppf: the smallest number whose lower tail is >= ALPHA / 2


def smallest_difference(n: int, discordance: float = 0.0) -> float:
    """The smallest difference in points on n questions that has p < `ALPHA`, if this share of them is discordant.

    With `discordance` 0, the smallest in the best case: no question is lost. NaN if too few questions are discordant.
    """
    least = 1 + int(np.argmax(most_losses(np.arange(1, 200)) >= 0))  # discordant questions
    discordant = round(n * discordance) if discordance else min(n, least)
    losses = int(most_losses(discordant)) if discordant else -1
    return 100 * (discordant - 2 * losses) / n if losses >= 0 else float("nan")


def most_discordant(difference: int) -> int:
    """The most discordant questions with which a lead of so many questions has p < `ALPHA`; 0 if it never has."""
    losses = 0
    while difference > 0 and mcnemar_p(difference + losses, losses) < ALPHA:
        losses += 1
    return difference + 2 * (losses - 1) if losses else 0


def standard_error(discordance: float) -> float:
    """Standard error (a fraction) of the mean of the four sets' paired differences, if these are chance alone."""
    return float(np.sqrt(sum(discordance / n for n in map(sources.test_size, SETS))) / len(SETS))


def needed(dataset: str, discordance: float) -> float:
    """The smallest significant difference in points on a set; for `avg`, by the normal approximation."""
    if dataset == "avg":
        return 100 * float(norm.isf(ALPHA / 2)) * standard_error(discordance)
    return smallest_difference(sources.test_size(dataset), discordance)


def in_questions(first: str, second: str, name: str, split: str, n: int) -> int:
    """The difference of two cells in questions out of `n`, each rounded to whole questions."""
    right = [round(sources.hundredths(cell, name, split) * n / 10_000) for cell in (first, second)]
    return right[0] - right[1]


def asked(first: str, second: str, name: str, split: str) -> int:
    """The number of test questions behind two cells: overall, a known size of the set at which both are k of n.

    VQA-2019 is used with 500 questions or with 375, without those on abnormality. Otherwise it is the default files'.
    """
    if split != "overall":
        return sources.test_size(name, split)
    sizes = sources.test_counts().query("data_set == @name")["total"].unique()
    figures = [sources.hundredths(cell, name) for cell in (first, second)]
    return int(next((n for n in sizes if all(audit.counts_printing(int(n), value) for value in figures)), sizes[0]))


def leads() -> pd.DataFrame:
    """AMiF against the best other method, per set and split: rank, lead in points and questions, and what it can show.

    `n`: the number of questions behind both cells. `smallest_p`: the exact two-sided McNemar p if no question is lost,
    and `mid_p` its mid-p. `most_discordant`: the largest share of discordant questions, in percent, at which the lead
    is significant by the exact test. These are empty if the rival's row counts other questions.
    """
    rows = []
    for (name, split), group in sources.cells().query("table == 'table1'").groupby(["dataset", "split"], sort=False):
        by_row = group.set_index("row")["hundredths"]
        if OURS not in by_row:
            continue
        own, others = by_row[OURS], by_row.drop(OURS)
        first, second = f"table1:{OURS}", f"table1:{others.idxmax()}"
        n, same = asked(first, second, name, split), audit.comparable(name, split, others.idxmax())
        questions = in_questions(first, second, name, split, n)
        p = float(mcnemar_p(questions, 0)) if same and questions > 0 else float("nan")
        about = {"data_set": name, "split": split, "value": own / 100, "rank": 1 + int((others > own).sum())}
        about |= {"rival": others.idxmax(), "rival_value": others.max() / 100, "lead": (own - others.max()) / 100}
        about |= {"n": n, "questions": questions if same else None, "same_questions": same}
        discordant = 100 * most_discordant(questions) / n if p == p else float("nan")
        rows.append(about | {"smallest_p": p, "mid_p": p / 2, "most_discordant": discordant})
    frame = pd.DataFrame(rows).astype({"questions": "Int64"})
    return frame.sort_values("data_set", key=lambda names: names.map(SETS.index), kind="stable", ignore_index=True)


def steps(discordance: float = DISCORDANCE) -> pd.DataFrame:
    """Every ablation step (`results/paper/steps.csv`) on every set and on average, against what the set can show.

    `difference` in points (of averages: of the cells' means) and in `questions`; `smallest_p`, exact, no question lost;
    `needed`, the smallest significant difference at this share of discordant questions; and `verdict`: `NOT_AT_BEST`,
    `within noise` (at this share), `beyond noise` or `no gain`.
    """
    rows = []
    for step in pd.read_csv(paths.published() / "steps.csv", dtype=str).itertuples(index=False):
        first, second = f"{step.table}:{step.row}", f"{step.table}:{step.reference}"
        for name in (*SETS, "avg"):
            difference = round(sources.points(first, name) - sources.points(second, name), 4)
            n = 0 if name == "avg" else sources.test_size(name)
            moved = in_questions(first, second, name, "overall", n) if n else None
            p = float("nan") if moved is None else float(mcnemar_p(max(0, moved), 0))
            verdict = "beyond noise" if difference >= needed(name, discordance) else "within noise"
            verdict = "no gain" if difference <= 0 else NOT_AT_BEST if p >= ALPHA else verdict
            rows.append((*step, name, difference, moved, p, needed(name, discordance), verdict))
    columns = ["table", "row", "reference", "step", "data_set", "difference", "questions", "smallest_p", "needed"]
    return pd.DataFrame(rows, columns=[*columns, "verdict"]).astype({"questions": "Int64"})
