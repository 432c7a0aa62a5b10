"""The paper audit's arithmetic: counts behind percentages, and which questions a row calls open.

Exact, in whole hundredths of a percent; nothing is trained and no run is read.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pandas as pd

from amif_lib.reporting.audit_sources import OURS, cells, test_counts

DISAGREE = "cells and average disagree"  # a verdict


class Split(NamedTuple):
    """Numbers of right answers and of questions, open and closed, which give the paper's three percentages."""

    open_correct: int
    open_n: int
    closed_correct: int
    closed_n: int


def prints_as(correct: int, n: int, value: int) -> bool:
    """Whether `correct` of `n` is printed as `value` hundredths of a percent, rounded (ties either way) or cut."""
    rest = 10_000 * correct - value * n
    return abs(2 * rest) <= n or 0 <= rest < n


def counts_printing(n: int, value: int) -> list[int]:
    """Every number of right answers of `n` questions that prints as `value` hundredths of a percent."""
    near = value * n // 10_000
    return [k for k in range(max(0, near - 1), min(n, near + 2) + 1) if prints_as(k, n, value)]


def solutions(open_value: int, closed_value: int, overall_value: int, total: int) -> list[Split]:
    """Every split of `total` questions, with right answers, that gives the three values (hundredths of a percent)."""
    return [
        Split(right, n, overall - right, total - n)
        for overall in counts_printing(total, overall_value)
        for n in range(1, total)
        for right in counts_printing(n, open_value)
        if 0 <= overall - right <= total - n and prints_as(overall - right, total - n, closed_value)
    ]


def open_share() -> pd.DataFrame:
    """The share of open questions that each row of Table 1 implies: (closed - overall) / (closed - open).

    `low` and `high` allow for rounding by half a hundredth, or half a tenth if all three values end in 0. `nearest`:
    the definition of closed whose real share is nearest, empty if both are equal; `fits`: it is from `low` to `high`.
    """
    real = test_counts().query("variant == 'all'").set_index(["data_set", "definition"])
    real, rows = (real["open"] / real["total"]).astype(float), []
    for (row, name), group in cells().query("table == 'table1'").groupby(["row", "dataset"], sort=False):
        printed = group.set_index("split")["hundredths"]
        if len(printed) < 3:
            continue
        half = 5 if (printed % 10 == 0).all() else 0.5
        corners = product(*[(printed[s] - half, printed[s] + half) for s in ("open", "closed", "overall")])
        shares = [(closed - overall) / (closed - opened) for opened, closed, overall in corners]
        share = (printed["closed"] - printed["overall"]) / (printed["closed"] - printed["open"])
        nearest = (real[name] - share).abs().idxmin()
        fits = bool(min(shares) <= real[name, nearest] <= max(shares))
        both = (real[name, "answer_type"], real[name, "yes_no"])
        rows.append((row, name, share, min(shares), max(shares), *both, nearest if both[0] != both[1] else "", fits))
    columns = ["row", "data_set", "open_share", "low", "high", "answer_type", "yes_no", "nearest", "fits"]
    return pd.DataFrame(rows, columns=columns)


def comparable(name: str, split: str, rival: str) -> bool:
    """Whether AMiF's and a rival's open or closed accuracies count the same questions, judged by `open_share`."""
    if split == "overall":
        return True
    nearest = open_share().set_index(["data_set", "row"])["nearest"]
    return nearest.get((name, OURS)) == nearest.get((name, rival))
