"""The paper audit's arithmetic: averages, counts behind percentages, and which questions a row calls open.

Exact, in whole hundredths of a percent; nothing is trained and no run is read.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor
from typing import NamedTuple

import pandas as pd

from amif_lib.reporting.audit_sources import OURS, SETS, cells, hundredths, test_counts
from amif_lib.reporting.table_rows import dataset_name

DISAGREE = "cells and average disagree"


def averages() -> pd.DataFrame:
    """The Avg column of Tables 2 to 5 recomputed exactly; `verdict` is `ok`, `cut, not rounded` or `DISAGREE`.

    A mean halfway between two printable values may be rounded either way. `readings`, if cells and average disagree:
    the average that the cells give, and the value of each cell that would give the printed average.
    """
    rows = []
    for (table, row, label), group in cells().query("table != 'table1'").groupby(["table", "row", "label"], sort=False):
        by_set = group.set_index("dataset")["hundredths"]
        mean, printed, readings = Fraction(int(by_set[list(SETS)].sum()), len(SETS)), int(by_set["avg"]), ""
        near = abs(printed - mean) <= Fraction(1, 2)
        verdict = "ok" if near else "cut, not rounded" if printed == floor(mean) else DISAGREE
        if verdict == DISAGREE:
            off = int(round(len(SETS) * (mean - printed), -1))  # in hundredths, to the tenth of a point
            single = [f"{dataset_name(n)} {(by_set[n] - off) / 100:.2f} for {by_set[n] / 100:.2f}" for n in SETS]
            readings = f"the average is {float(mean) / 100:.2f}, or a cell is misprinted: {' or '.join(single)}"
        numbers = (float(mean) / 100, printed / 100, float(printed - mean) / 100)
        rows.append((table, row, label, *numbers, verdict, readings))
    columns = ["table", "row", "label", "exact_mean", "printed", "difference", "verdict", "readings"]
    return pd.DataFrame(rows, columns=columns)


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


def numerators() -> pd.DataFrame:
    """The counts behind AMiF's row of Table 1, per set and possible number of test questions.

    A line per solution, or one with empty counts if there is none. `definition`: the definition of closed with the same
    counts. A set with an overall value only has a line per number of right answers that fits.
    """
    rows = []
    for (name, total), group in test_counts().groupby(["data_set", "total"], sort=False):
        about = {"data_set": name, "variant": group["variant"].iloc[0], "total": total}
        printed = [hundredths(f"table1:{OURS}", name, split) for split in ("open", "closed", "overall")]
        if None in printed:
            fitting = [{"overall_correct": k, "verdict": "fits"} for k in counts_printing(total, printed[2])]
        else:
            found = solutions(*printed, int(total))
            verdict = "unique" if len(found) == 1 else f"one of {len(found)}"
            fitting = [one._asdict() | {"verdict": verdict} for one in found]
        for one in fitting or [{"verdict": "no split of the questions prints so"}]:
            if "open_n" in one:
                one["overall_correct"] = one["open_correct"] + one["closed_correct"]
                one["definition"] = " and ".join(group.loc[group["open"] == one["open_n"], "definition"])
            rows.append(about | one)
    counts = [*Split._fields, "overall_correct"]
    frame = pd.DataFrame(rows, columns=["data_set", "variant", "total", *counts, "definition", "verdict"])
    return frame.fillna({"definition": ""}).astype(dict.fromkeys(["total", *counts], "Int64"))


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
