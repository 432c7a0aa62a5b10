"""A few runs on the same test questions beside each other, for a reader who has changed something."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.experiments.stored import Run
from amif_lib.scoring import protocols, statistics


def side_by_side(runs: Sequence[Run]) -> pd.DataFrame:
    """Accuracy of each run and its difference from the first, percent, open and closed, with 95% intervals over images.

    One training each: the intervals hold for these trained models and not for their losses, so each row says "teaching
    run". Raises InputError where runs are of other test questions.
    """
    scored = [protocols.score(run.predictions, run.candidates, protocols.PROTOCOLS["paper"]) for run in runs]
    rows, first = [], scored[0]
    for run, own in zip(runs, scored, strict=True):
        if own["question_id"].tolist() != first["question_id"].tolist():
            raise InputError(f"run {run.run_id}: has other test questions than run {runs[0].run_id}")
        rows.append({"row": run.spec.label, "run": run.run_id})
        for split in ("open", "closed"):
            chosen = protocols.select(own, split, "yes_no")
            right, before, images = own["correct"][chosen], first["correct"][chosen], own["image_id"][chosen]
            rows[-1][split] = _text(right.astype(float), images) if len(right) else ""
            change = right.astype(float) - before
            rows[-1][f"{split}, change"] = _text(change, images, "+") if own is not first and len(right) else ""
        rows[-1]["worth"] = "teaching run"
    return pd.DataFrame(rows).set_index("row")


def _text(values: pd.Series, images: pd.Series, sign: str = "") -> str:
    found = statistics.bootstrap(values, images)
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"
