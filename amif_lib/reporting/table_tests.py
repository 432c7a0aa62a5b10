"""Differences of a table's rows to their references and baselines, on the trained models at hand: descriptive only.

What may be said of the method is said by contrasts (`reporting.contrasts`), over replicates.
"""

from __future__ import annotations

import pandas as pd

from amif_lib.reporting.table_rows import MODEL_BASELINES
from amif_lib.reporting.tables import KEYS, PAPER, SPLITS, Line, average_name, on_all_sets
from amif_lib.scoring import statistics

COLUMNS = [*KEYS, "against", "against_label", "difference", "ci_low", "ci_high", "detectable"]
COLUMNS += ["wins", "losses", "mcnemar_p", "n_seeds", "n_questions", "scale"]


def tests(name: str, scale: str, lines: list[Line]) -> pd.DataFrame:
    """One line per comparison and split under the protocol `paper`, columns `COLUMNS`.

    `difference` is in points, its 95% interval from resampling images; `detectable` the smallest difference between
    such models that these images show in 80% of draws. `wins`, `losses` (questions that only the first, only the second
    has right) and McNemar's exact p are given for two single trainings on one question set.
    """
    pairs, out = comparisons(lines), []
    for line, other in pairs:
        out += [_compare([line], [other], line.dataset, split) for split in SPLITS]
    whole = on_all_sets(lines)
    for row, against in dict.fromkeys((line.row, other.row) for line, other in pairs):
        if row in whole and against in whole:
            out += [_compare(whole[row], whole[against], average_name(lines), split) for split in SPLITS]
    about = {"table": name, "protocol": PAPER.title, "scale": scale}
    frame = pd.DataFrame([row for row in out if row], columns=COLUMNS).assign(**about)
    return frame.astype({"wins": "Int64", "losses": "Int64", "mcnemar_p": float})


def comparisons(lines: list[Line]) -> list[tuple[Line, Line]]:
    """Each row with its references, each headline row with the baselines beside it."""
    out = []
    for line in (line for line in lines if line.kind == "row"):
        beside = [other for other in lines if other.dataset == line.dataset]
        out += [(line, other) for row in line.references for other in beside if other.row == row]
        for other in (other for other in beside if line.headline and other.kind == "baseline"):
            if other.headline in ("", line.headline) or other.row.startswith(MODEL_BASELINES[0]):
                out.append((line, other))
    return out


def _compare(first: list[Line], second: list[Line], dataset: str, split: str) -> dict[str, object]:
    """One comparison; `first` and `second` hold a line per question set, the runs of each are paired in order."""
    parts, runs, test = [], 0, None
    for line, other in zip(first, second, strict=True):
        (own, images), (theirs, _) = line.right(PAPER, split), other.right(PAPER, split)
        if len(images):
            runs = min(len(own), len(theirs)) if len(theirs) > 1 else len(own)  # one baseline is paired with all
            parts.append((own[:runs] - theirs[:runs], images))
            test = statistics.mcnemar(own[0], theirs[0]) if runs == len(first) == 1 else None
    if not parts:
        return {}
    gap = statistics.bootstrap_mean(parts)
    return {
        "row": first[0].row,
        "label": first[0].label,
        "dataset": dataset,
        "split": split,
        "against": second[0].row,
        "against_label": second[0].label,
        "difference": 100 * gap.value,
        "ci_low": 100 * gap.low,
        "ci_high": 100 * gap.high,
        "detectable": 100 * statistics.detectable(gap),
        "wins": test and test.wins,
        "losses": test and test.losses,
        "mcnemar_p": test and test.p,
        "n_seeds": runs,
        "n_questions": sum(len(images) for _, images in parts),
    }
