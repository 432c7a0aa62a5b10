"""The paper audit: what the published numbers say of themselves and of the annotation files; nothing is trained.

Accuracies are percent; arithmetic on printed numbers is exact, in whole hundredths. `audit_sources` reads, `audit_power`
says what is within reach of chance, `audit_claims` judges the prose.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binom

from amif_lib.core import paths
from amif_lib.reporting.audit_sources import OURS, SETS, cells, hundredths, test_counts, version


def averages() -> pd.DataFrame:
    """The Avg column of Tables 2 to 5 recomputed exactly; `verdict` is `ok`, `cut, not rounded` or `wrong`.

    `tie`: the exact mean lies halfway between two printable values, so that both are right.
    """
    rows = []
    for (table, row), group in cells().query("table != 'table1'").groupby(["table", "row"], sort=False):
        by_set = group.set_index("dataset")["hundredths"]
        mean, printed = Fraction(int(by_set[list(SETS)].sum()), len(SETS)), int(by_set["avg"])
        tie = (2 * mean).denominator == 1 and mean.denominator == 2
        right = {floor(mean), floor(mean) + 1} if tie else {round(mean)}
        verdict = "ok" if printed in right else "cut, not rounded" if printed == floor(mean) else "wrong"
        rows.append(
            {
                "table": table,
                "row": row,
                "label": group["label"].iloc[0],
                "exact_mean": float(mean) / 100,
                "printed": printed / 100,
                "difference": float(printed - mean) / 100,
                "tie": tie,
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)


# --- numerators behind the percentages ---


class Split(NamedTuple):
    """Right answers and questions, open and closed, that print as given; `printing` is `rounded` or `cut`."""

    open_correct: int
    open_n: int
    closed_correct: int
    closed_n: int
    printing: str


def prints_as(correct: int, n: int, value: int) -> str:
    """How `correct` of `n` becomes `value` hundredths of a percent: `rounded`, `cut` (towards zero), or empty."""
    rest = 10_000 * correct - value * n
    return "rounded" if abs(2 * rest) <= n else "cut" if 0 <= rest < n else ""


def counts_printing(n: int, value: int) -> list[int]:
    """Every number of right answers of `n` questions that prints as `value` hundredths of a percent, either way."""
    near = value * n // 10_000
    return [k for k in range(max(0, near - 1), min(n, near + 2) + 1) if prints_as(k, n, value)]


def solutions(open_value: int, closed_value: int, overall_value: int, total: int) -> list[Split]:
    """Every split of `total` questions and every count of right answers that prints as the three given hundredths.

    Exhaustive over splits; each figure may be rounded or cut, and `printing` is `cut` where one of them must be.
    """
    found = []
    for overall in counts_printing(total, overall_value):
        for n in range(1, total):
            for right in counts_printing(n, open_value):
                rest, m = overall - right, total - n
                if 0 <= rest <= m and prints_as(rest, m, closed_value):
                    ways = (prints_as(right, n, open_value), prints_as(rest, m, closed_value))
                    ways += (prints_as(overall, total, overall_value),)
                    found.append(Split(right, n, rest, m, "cut" if "cut" in ways else "rounded"))
    return found


def numerators() -> pd.DataFrame:
    """The counts behind AMiF's row of Table 1, per set and possible number of test questions.

    A line per solution, or one with empty counts where none exists. `definition` names the definition of closed whose
    counts the solution has. A set with an overall figure only has a line per size that fits.
    """
    counts, rows = test_counts(), []
    for (name, total), group in counts.groupby(["data_set", "total"], sort=False):
        printed = [hundredths(f"table1:{OURS}", name, split) for split in ("open", "closed", "overall")]
        variant = group["variant"].iloc[0]
        if None in printed:
            for k in counts_printing(total, printed[2]) or [None]:
                verdict = "fits" if k is not None else "no number of right answers prints so"
                rows.append((name, variant, total, None, None, None, None, k, "", verdict))
            continue
        solved = solutions(*printed, int(total))
        for one in solved:
            fits = [d for d, n in zip(group["definition"], group["open"], strict=True) if n == one.open_n]
            verdict = "unique" if len(solved) == 1 else f"one of {len(solved)}"
            overall = one.open_correct + one.closed_correct
            rows.append((name, variant, total, *one[:4], overall, " and ".join(fits), verdict))
        if not solved:
            rows.append((name, variant, total, None, None, None, None, None, "", "no split of the questions prints so"))
    columns = ["open_correct", "open_n", "closed_correct", "closed_n", "overall_correct"]
    frame = pd.DataFrame(rows, columns=["data_set", "variant", "total", *columns, "definition", "verdict"])
    return frame.astype(dict.fromkeys(["total", *columns], "Int64"))


def forced_closed(name: str = "slake") -> pd.DataFrame:
    """What the closed accuracy would have to be, given the printed open and overall ones, under each definition.

    A line per possible pair of counts: `definition, open_correct, open_n, overall_correct, total, closed_correct,
    closed_n, closed, printed`. `printable` says whether any count of the closed questions prints as the paper's value.
    """
    rows = []
    printed = {s: hundredths(f"table1:{OURS}", name, s) for s in ("open", "closed", "overall")}
    for line in test_counts().query("data_set == @name and variant == 'all'").itertuples():
        printable = bool(counts_printing(line.closed, printed["closed"]))
        for right in counts_printing(line.open, printed["open"]):
            for overall in counts_printing(line.total, printed["overall"]):
                closed = overall - right
                share = 100 * closed / line.closed
                known = (line.definition, right, line.open, overall, line.total, closed, line.closed, share)
                rows.append((*known, printed["closed"] / 100, printable))
    head = ["definition", "open_correct", "open_n", "overall_correct", "total", "closed_correct", "closed_n", "closed"]
    return pd.DataFrame(rows, columns=[*head, "printed", "printable"])


# --- two definitions of closed in one table ---


def open_share() -> pd.DataFrame:
    """The share of open questions that each row of Table 1 implies: (closed - overall) / (closed - open).

    `low` and `high` allow for rounding: half a hundredth, or half a tenth where all three values end in 0. `nearest` is
    the definition whose real share is nearest; where both are equal, the set has one definition and it is empty.
    `inside`: a definition's real share lies between `low` and `high`.
    """
    return _open_share(version(), str(paths.data_root())).copy()


@lru_cache(maxsize=4)
def _open_share(version: object, root: str) -> pd.DataFrame:
    counts, rows = test_counts(), []
    table = cells().query("table == 'table1' and split in ['open', 'closed', 'overall']")
    for (row, name), group in table.groupby(["row", "dataset"], sort=False):
        printed = group.set_index("split")["hundredths"]
        if len(printed) < 3:
            continue
        half = 5 if (printed % 10 == 0).all() else 0.5
        corners = np.array(
            np.meshgrid(*[[printed[s] - half, printed[s] + half] for s in ("open", "closed", "overall")])
        )
        shares = (corners[1] - corners[2]) / (corners[1] - corners[0])
        real = counts.query("data_set == @name and variant == 'all'").set_index("definition")
        real = (real["open"] / real["total"]).astype(float)
        share = (printed["closed"] - printed["overall"]) / (printed["closed"] - printed["open"])
        nearest = (real - share).abs().idxmin() if real.nunique() > 1 else ""
        inside = bool(real.between(shares.min(), shares.max()).any())
        rows.append(
            (row, name, share, shares.min(), shares.max(), real["answer_type"], real["yes_no"], nearest, inside)
        )
    columns = ["row", "data_set", "open_share", "low", "high", "answer_type", "yes_no", "nearest", "inside"]
    return pd.DataFrame(rows, columns=columns)


def comparable(name: str, split: str, rival: str) -> bool:
    """Whether AMiF's and a rival's open or closed figures are about the same questions, as far as Table 1 tells."""
    if split == "overall":
        return True
    nearest = open_share().query("data_set == @name").set_index("row")["nearest"]
    return nearest.get(OURS) == nearest.get(rival)


def rescored(name: str = "vqa_rad") -> pd.DataFrame:
    """AMiF's figures under `answer_type`, for each number of the closed questions that are not yes/no and were right.

    Columns `between_right, between, open, closed`, `below`: published open figures that the rescored one falls below.
    Needs the counts behind the printed figures: those of `numerators`, else those that open and overall force; empty
    where these are not exactly one.
    """
    counts = test_counts().query("data_set == @name and variant == 'all'").set_index("definition")
    known = numerators().query("data_set == @name and variant == 'all' and definition == 'yes_no'")
    if known.empty:
        known = forced_closed(name).query("definition == 'yes_no'")
    columns = ["between_right", "between", "open", "closed", "below"]
    if len(known) != 1:
        return pd.DataFrame(columns=columns)
    one, between = known.iloc[0], int(counts["open"]["yes_no"] - counts["open"]["answer_type"])
    others = cells().query("table == 'table1' and dataset == @name and split == 'open' and row != @OURS")
    rows = []
    for right in range(between + 1):
        score = 100 * (one["open_correct"] - right) / counts["open"]["answer_type"]
        closed = 100 * (one["closed_correct"] + right) / counts["closed"]["answer_type"]
        below = others.loc[others["value"] > round(score, 2), "row"]
        rows.append((right, between, float(score), float(closed), ", ".join(below)))
    return pd.DataFrame(rows, columns=columns)


# --- ablation tables ---


def printable_share(most_runs: int = 5) -> pd.DataFrame:
    """How many distinct ablation values of a set are k/n for some k, for the mean of 1 to `most_runs` runs.

    `chance` is the number that as many random two-decimal percentages would reach on average, `p` the probability that
    they reach `fit` or more. Printing is rounded or cut for single runs, and rounded for means.
    """
    found, rows = cells().query("table != 'table1'"), []
    sizes = test_counts()[["data_set", "total"]].drop_duplicates().to_records(index=False)
    for name, total in sizes:
        values = sorted(set(found.loc[found["dataset"] == name, "hundredths"]))
        for runs in range(1, most_runs + 1):
            n = int(total) * runs
            printed = _printed_values(n, cut=runs == 1)
            fit, share = len(printed.intersection(values)), len(printed) / 10_001
            p = binom.sf(fit - 1, len(values), share)
            rows.append((name, int(total), runs, len(values), fit, len(values) * share, float(p)))
    return pd.DataFrame(rows, columns=["data_set", "total", "runs", "values", "fit", "chance", "p"])


def _printed_values(n: int, cut: bool) -> set[int]:
    """Every hundredth of a percent that some k of n prints as, rounded (ties up), or cut too."""
    right = np.arange(n + 1, dtype=np.int64)
    rounded = (20_000 * right + n) // (2 * n)
    return set(rounded.tolist()) | (set((10_000 * right // n).tolist()) if cut else set())
