"""Contrasts: the comparisons that are named beforehand in `specs/`, tested over replicates and clusters.

p is corrected by Holm over all lines of a table, and nothing else that the kit prints is a finding.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.reporting.table_lines import PAPER, Line
from amif_lib.reporting.table_rows import dataset_name
from amif_lib.reporting.tables import Table
from amif_lib.scoring import inference

VERDICT = 5  # the fewest replicates for a verdict; `inference.contrast` gives an interval from 3 on
COLUMNS = ["contrast", "outcome", "row", "against", "difference", "ci_low", "ci_high", "p", "p_holm", "detectable"]
COLUMNS += ["standard_error", "df", "replicates", "dataset", "n_questions", "finding", "scale"]
METHOD = (
    "A replicate is a fresh pre-training with its fine-tuning. Difference in points, paired by replicate and question; "
    "replicates and images (cases where a set has them) are crossed random effects (quasi-F, Clark 1973, with "
    "Satterthwaite's degrees of freedom), and p is corrected by Holm over all lines of this table. Intervals are those "
    "of one line alone. Detectable is for a finding: the smallest true difference called one in 80% of repetitions, at "
    "the level that Holm's correction asks of a single line. Averages are over the question sets, without weights."
)


def contrasts(table: Table) -> pd.DataFrame:
    """The contrasts that a collected table names, one line per outcome (open and closed average): columns `COLUMNS`.

    Differences, intervals and `detectable` are in points. A contrast of which a row was not run (ROWS=) is left out;
    InputError if its two rows have different numbers of replicates.
    """
    out, tested = [], []
    for named in experiments.table_settings(table.name)["contrasts"].get(table.scale, []):
        both = [[line for line in table.lines if line.row == named[key]] for key in ("row", "against")]
        for split in ("open", "closed") if all(both) else ():
            parts = []
            for line, other in zip(*both, strict=True):
                own, theirs = (per_replicate(each, table.lines, split) for each in (line, other))  # (R, n) each
                if own.shape != theirs.shape:
                    said = f"its rows have {len(own)} and {len(theirs)} replicates; train equally many"
                    raise InputError(f"contrast {named['name']}: {said}")
                if own.shape[1]:
                    parts.append((own - theirs, line.right(PAPER, split)[1]))
            if parts:
                tested.append(one := inference.contrast(parts))
                points = {"difference": one.value, "standard_error": one.error, "ci_low": one.low, "ci_high": one.high}
                line = {"contrast": named["name"], "outcome": split, "row": named["row"], "against": named["against"]}
                line |= {name: 100 * value for name, value in points.items()} | {"p": one.p, "df": one.df}
                line |= {"replicates": len(parts[0][0]), "n_questions": sum(len(clusters) for _, clusters in parts)}
                out.append(line | {"dataset": " ".join(own.dataset for own in both[0]), "scale": table.scale})
    frame = pd.DataFrame(out, columns=COLUMNS)
    if len(frame):
        p = frame["p"].where(frame["replicates"] >= VERDICT)
        frame["p_holm"] = inference.holm(p)
        reached = [one.detectable(p.count()) if known else np.nan for one, known in zip(tested, p.notna(), strict=True)]
        frame["detectable"] = 100 * np.array(reached)
        frame["finding"] = [_finding(line) for line in frame.itertuples()]
    return frame


def per_replicate(line: Line, lines: list[Line], split: str) -> np.ndarray:
    """Right answers (R, n) of a row's replicates under the protocol `paper`, each the mean of its fine-tunings."""
    starts = [[run.parent.seed for run in each.runs if run.parent] for each in lines if each.entry]
    seeds = max((each.count(first) for each in starts for first in each), default=1)  # fine-tunings of a replicate
    replicate = np.array([run.seed // seeds for run in line.runs])
    right = line.right(PAPER, split)[0]  # (S, n)
    return np.stack([right[replicate == number].mean(0) for number in np.unique(replicate)])


def _finding(line: object) -> str:
    if line.replicates < VERDICT:
        return "teaching run" if line.replicates == 1 else f"no verdict from {line.replicates} replicates"
    if np.isnan(line.standard_error):
        return "no difference in any replicate" if line.difference == 0 else "the same difference in every replicate"
    if line.p_holm < 0.05:
        return "higher" if line.difference > 0 else "lower"
    return f"not shown; differences beyond ±{max(abs(line.ci_low), abs(line.ci_high)):.1f} points are excluded"


def sentence(found: pd.DataFrame) -> str:
    """The result of the contrasts in one or two sentences."""
    if not len(found):
        return "No contrast is among the rows that were run."
    replicates = int(found["replicates"].min())
    if replicates == 1:
        return "Teaching run: every configuration was trained once, so the differences say nothing about the method."
    if replicates < VERDICT:
        return f"{replicates} replicates of each configuration: too few for a verdict (at least {VERDICT})."
    shown = found[found["p_holm"] < 0.05]
    listed = "; ".join(f"{x.contrast}, {x.outcome} questions, {x.difference:+.1f} points" for x in shown.itertuples())
    sets, number = found["dataset"].iloc[0].split(), found.groupby("outcome")["n_questions"].max().sum()
    said = f"{len(shown)} of {len(found)} comparisons over {replicates} replicates show a difference"
    said += f" on {number:,} test questions ({', '.join(map(dataset_name, sets))}){': ' * bool(listed)}{listed}."
    rest = found[found["finding"].str.startswith("not shown")]
    reach = rest[["ci_low", "ci_high"]].abs().max(axis=None)
    where = "In each" if len(rest) == len(found) else f"In {len(rest)} others"
    return f"{said} {where}, differences beyond ±{reach:.1f} points are excluded." if len(rest) else said


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """The contrasts as a table of texts, for reading."""

    def text(name: str, form: str) -> pd.Series:
        return found[name].astype(object).map(form.format).where(found[name].notna(), "")

    interval = " [" + text("ci_low", "{:+.1f}") + ", " + text("ci_high", "{:+.1f}") + "]"
    return pd.DataFrame(
        {
            "contrast": found["contrast"],
            "questions": found["outcome"],
            "difference [95% interval]": text("difference", "{:+.1f}") + interval.where(found["ci_low"].notna(), ""),
            "p after Holm": text("p_holm", "{:.3g}"),
            "detectable": text("detectable", "{:.1f}"),
            "finding": found["finding"],
            "replicates": found["replicates"].astype(str),
            "n": text("n_questions", "{:,}"),
        }
    )
