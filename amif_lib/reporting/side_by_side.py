"""Compares a few runs on the same test questions, for a reader who has changed a loss or a setting."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.data import load
from amif_lib.experiments.stored import Run
from amif_lib.scoring import inference, protocols


def side_by_side(runs: Sequence[Run]) -> pd.DataFrame:
    """Open and closed accuracy (percent) of each run and its difference from the first, with 95% intervals.

    With one training each, intervals hold for these trained models, not for their losses, so each row says "teaching
    run". Raises InputError if runs have different test questions.
    """
    scored = [protocols.score(run.predictions, run.candidates, protocols.PROTOCOLS["paper"]) for run in runs]
    rows, first = [], scored[0]
    for run, own in zip(runs, scored, strict=True):
        if own["question_id"].tolist() != first["question_id"].tolist():
            raise InputError(f"run {run.run_id}: has other test questions than run {runs[0].run_id}; leave it out")
        rows.append({"row": run.spec.label, "run": run.run_id})
        for split in ("open", "closed"):
            chosen = protocols.select(own, split, "yes_no")
            right, before = (frame["correct"][chosen].astype(float) for frame in (own, first))
            clusters = load.clusters(run.spec.data.questions, own["image_id"][chosen])
            rows[-1][split] = _text(right, clusters) if clusters else ""
            rows[-1][f"{split}, change"] = _text(right - before, clusters, "+") if clusters and own is not first else ""
        rows[-1]["worth"] = "teaching run"
    return pd.DataFrame(rows).set_index("row")


def _text(values: pd.Series, clusters: list[str], sign: str = "") -> str:
    found = inference.bootstrap(values, clusters)
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"
