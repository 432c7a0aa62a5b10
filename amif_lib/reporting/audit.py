"""The paper audit's arithmetic: averages, counts behind percentages, and which questions a row calls open.

Exact, in whole hundredths of a percent; nothing is trained and no run is read.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import floor
from typing import NamedTuple

import pandas as pd

from amif_lib.core import paths
from amif_lib.reporting.audit_sources import OURS, SETS, cells, hundredths, published_files, test_counts


def averages() -> pd.DataFrame:
    """The Avg column of Tables 2 to 5 recomputed exactly; `verdict` is `ok`, `cut, not rounded` or `wrong`.

    `tie`: the exact mean lies halfway between two printable values, so that both are right.
    """
    rows = []
    for (table, row, label), group in cells().query("table != 'table1'").groupby(["table", "row", "label"], sort=False):
        by_set = group.set_index("dataset")["hundredths"]
        mean, printed = Fraction(int(by_set[list(SETS)].sum()), len(SETS)), int(by_set["avg"])
        tie = mean.denominator == 2
        right = {floor(mean), floor(mean) + 1} if tie else {round(mean)}
        verdict = "ok" if printed in right else "cut, not rounded" if printed == floor(mean) else "wrong"
        rows.append((table, row, label, float(mean) / 100, printed / 100, float(printed - mean) / 100, tie, verdict))
    return pd.DataFrame(
        rows, columns=["table", "row", "label", "exact_mean", "printed", "difference", "tie", "verdict"]
    )


class Split(NamedTuple):
    """Right answers and questions, open and closed, that print as the paper's three figures."""

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
    """Every split of `total` questions with every count of right answers that prints as the three given hundredths."""
    return [
        Split(right, n, overall - right, total - n)
        for overall in counts_printing(total, overall_value)
        for n in range(1, total)
        for right in counts_printing(n, open_value)
        if 0 <= overall - right <= total - n and prints_as(overall - right, total - n, closed_value)
    ]


def numerators() -> pd.DataFrame:
    """The counts behind AMiF's row of Table 1, per set and possible number of test questions.

    A line per solution, or one with empty counts where none exists; `definition` names the definition of closed whose
    counts the solution has. A set with an overall figure only has a line per number of right answers that fits.
    """
    rows = []
    for (name, total), group in test_counts().groupby(["data_set", "total"], sort=False):
        printed = [hundredths(f"table1:{OURS}", name, split) for split in ("open", "closed", "overall")]
        about = (name, group["variant"].iloc[0], total)
        if None in printed:
            fitting = counts_printing(total, printed[2])
            rows += [(*about, None, None, None, None, k, "", "fits") for k in fitting]
        else:
            fitting = solutions(*printed, int(total))
            verdict = "unique" if len(fitting) == 1 else f"one of {len(fitting)}"
            for one in fitting:
                fits = [d for d, n in zip(group["definition"], group["open"], strict=True) if n == one.open_n]
                rows.append((*about, *one, one.open_correct + one.closed_correct, " and ".join(fits), verdict))
        if not fitting:
            rows.append((*about, None, None, None, None, None, "", "no split of the questions prints so"))
    columns = ["open_correct", "open_n", "closed_correct", "closed_n", "overall_correct"]
    frame = pd.DataFrame(rows, columns=["data_set", "variant", "total", *columns, "definition", "verdict"])
    return frame.astype(dict.fromkeys(["total", *columns], "Int64"))


def open_share() -> pd.DataFrame:
    """The share of open questions that each row of Table 1 implies: (closed - overall) / (closed - open).

    `low` and `high` allow for rounding: half a hundredth, or half a tenth where all three values end in 0. `nearest` is
    the definition whose real share is nearest, empty where both are equal; `inside`: a real share lies between the two.
    """
    return _open_share(published_files(), str(paths.data_root())).copy()


@lru_cache(maxsize=4)
def _open_share(version: object, root: str) -> pd.DataFrame:
    real = test_counts().query("variant == 'all'").set_index(["data_set", "definition"])
    real, rows = (real["open"] / real["total"]).astype(float), []
    table = cells().query("table == 'table1'")
    for (row, name), group in table.groupby(["row", "dataset"], sort=False):
        printed = group.set_index("split")["hundredths"]
        if len(printed) < 3:
            continue
        half = 5 if (printed % 10 == 0).all() else 0.5
        corners = product(*[(printed[s] - half, printed[s] + half) for s in ("open", "closed", "overall")])
        shares = [(closed - overall) / (closed - opened) for opened, closed, overall in corners]
        share = (printed["closed"] - printed["overall"]) / (printed["closed"] - printed["open"])
        nearest = (real[name] - share).abs().idxmin() if real[name].nunique() > 1 else ""
        inside = bool(real[name].between(min(shares), max(shares)).any())
        both = (real[name, "answer_type"], real[name, "yes_no"])
        rows.append((row, name, share, min(shares), max(shares), *both, nearest, inside))
    columns = ["row", "data_set", "open_share", "low", "high", "answer_type", "yes_no", "nearest", "inside"]
    return pd.DataFrame(rows, columns=columns)


def comparable(name: str, split: str, rival: str) -> bool:
    """Whether AMiF's and a rival's open or closed figures are about the same questions, as far as Table 1 tells."""
    nearest = open_share().set_index(["data_set", "row"])["nearest"]
    return split == "overall" or nearest.get((name, OURS)) == nearest.get((name, rival))
