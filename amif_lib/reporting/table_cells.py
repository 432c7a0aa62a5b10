"""The cells of a collected table: accuracies with intervals over images and seeds, averages, each seed's own accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from amif_lib.reporting.table_rows import PAPER_SETS, Line, is_synthetic, real_name
from amif_lib.scoring import protocols, statistics

if TYPE_CHECKING:
    from amif_lib.reporting.tables import Table

KEYS = ["table", "row", "label", "dataset", "split", "protocol"]
COLUMNS = [
    *KEYS,
    "ours",
    "ours_sd",
    "n_seeds",
    "n_questions",
    "ci_low",
    "ci_high",
    "paper",
    "delta",
    "run_ids",
    "scale",
]
SEED_COLUMNS = [*KEYS, "pretrain_seed", "seed", "run_id", "ours", "scale"]
SPLITS = ("open", "closed", "overall")


def cells(table: Table) -> pd.DataFrame:
    """One line per cell, columns `COLUMNS`, accuracies in percent (see `tables.table`)."""
    rows = [cell for line in table.lines for cell in _cells(table, line)]
    if len(table.datasets) > 1:
        rows += _averages(table)
    return pd.DataFrame(rows, columns=COLUMNS)


def _cells(table: Table, line: Line) -> list[dict[str, object]]:
    out = []
    for protocol in line.protocols:
        for definition in protocols.DEFINITIONS:
            for split in SPLITS:
                right, images = table.answers(line, protocol, split, definition)
                own = definition == protocol.closed
                if not len(images) or (split == "overall" and not own):
                    continue
                estimate = statistics.bootstrap(right, images, pretrainings=line.pretrainings)
                _, deviation = statistics.combine_seeds(right.mean(1))
                shown = protocol.title if own else f"{protocol.title}/{definition}"
                out.append(_cell(table, line, line.dataset, split, shown, estimate, deviation, len(images)))
    return out


def _cell(
    table: Table,
    line: Line,
    dataset: str,
    split: str,
    protocol: str,
    estimate: statistics.Estimate,
    deviation: float,
    questions: int,
    run_ids: Sequence[str] | None = None,
) -> dict[str, object]:
    paper = published(table, line.paper_row, dataset, split) if protocol == "paper" else np.nan
    like_for_like = table.scale in ("base", "paper") and not any(map(is_synthetic, table.datasets))
    return {
        "table": table.name,
        "row": line.row,
        "label": line.label,
        "dataset": dataset,
        "split": split,
        "protocol": protocol,
        "ours": 100 * estimate.value,
        "ours_sd": 100 * deviation,
        "n_seeds": len(line.answers),
        "n_questions": questions,
        "ci_low": 100 * estimate.low,
        "ci_high": 100 * estimate.high,
        "paper": paper,
        "delta": 100 * estimate.value - paper if like_for_like else np.nan,
        "run_ids": " ".join(line.run_ids if run_ids is None else run_ids),
        "scale": table.scale,
    }


def published(table: Table, paper_row: str, dataset: str, split: str) -> float:
    """The paper's number for a row, question set (or `avg`) and split of this table; NaN where it prints none."""
    known = table.published
    here = (known["row"] == paper_row) & (known["dataset"] == real_name(dataset)) & (known["split"] == split)
    return float(known["value"][here].iloc[0]) if here.any() else np.nan


def average_name(table: Table) -> str:
    """What the column `dataset` calls the average: `avg` over the paper's four sets, else marked as partial."""
    whole = {real_name(dataset) for dataset in table.datasets} == set(PAPER_SETS)
    return "avg" if whole else f"avg ({len(table.datasets)} of {len(PAPER_SETS)} sets)"


def on_all_sets(table: Table) -> dict[str, list[Line]]:
    """The lines by row, of those rows that have every question set of the table."""
    rows = {row: [line for line in table.lines if line.row == row] for row in dict.fromkeys(x.row for x in table.lines)}
    return {row: lines for row, lines in rows.items() if len(lines) == len(table.datasets)}


def _averages(table: Table) -> list[dict[str, object]]:
    """The paper's Avg: the unweighted mean of the overall accuracies, marked where it spans fewer than its sets."""
    name, out = average_name(table), []
    for lines in on_all_sets(table).values():
        for protocol in min((line.protocols for line in lines), key=len):  # strict only if no set leaks
            parts = [table.answers(line, protocol) for line in lines]
            runs = range(min(len(line.answers) for line in lines))
            _, deviation = statistics.combine_seeds(
                [np.mean([right[run].mean() for right, _ in parts]) for run in runs]
            )
            estimate = statistics.bootstrap_mean(parts, pretrainings=lines[0].pretrainings)
            ids = list(dict.fromkeys(run_id for line in lines for run_id in line.run_ids))
            questions = sum(len(images) for _, images in parts)
            out.append(_cell(table, lines[0], name, "overall", protocol.title, estimate, deviation, questions, ids))
    return out


def seeds(table: Table) -> pd.DataFrame:
    """Each run's own accuracy, in percent, columns `SEED_COLUMNS`: what mean and spread of a cell are made of."""
    rows = []
    for line in (x for x in table.lines if x.drawn):
        for protocol in line.protocols:
            for split in SPLITS:
                right, _ = table.answers(line, protocol, split)
                if not right.size:
                    continue
                about = (table.name, line.row, line.label, line.dataset, split, protocol.title)
                for column, (pretraining, seed) in enumerate(line.drawn):
                    of_run = (pretraining, seed, line.run_ids[column], 100 * right[column].mean(), table.scale)
                    rows.append((*about, *of_run))
    return pd.DataFrame(rows, columns=SEED_COLUMNS).astype({"pretrain_seed": "Int64", "seed": "Int64"})
