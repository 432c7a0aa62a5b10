"""One figure per table: overall accuracy of every row on each question set, the average first."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from amif_lib.core import paths
from amif_lib.reporting import figures
from amif_lib.reporting.layout import row_labels, short_name
from amif_lib.reporting.table_notes import seed_counts, variance
from amif_lib.reporting.table_rows import SCALE_NOTES, dataset_name, is_baseline, is_synthetic
from amif_lib.reporting.tables import Table

KINDS = {"ours": "this kit, 95% interval", "baseline": "baseline, 95% interval", "paper": "printed in the paper"}
COLUMNS = ["dataset", "row", "label", "kind", "accuracy", "ci_low", "ci_high", "n_questions"]


def overall_data(table: Table) -> pd.DataFrame:
    """What `overall` shows, columns `COLUMNS` with `kind` ours, baseline or paper; percent, protocol `paper`.

    The paper's numbers are there for real data only: one axis with synthetic data would suggest a comparison.
    """
    ours = table.cells.query("protocol == 'paper' and split == 'overall'")
    ours = ours.assign(kind=["baseline" if is_baseline(row) else "ours" for row in ours["row"]], accuracy=ours["ours"])
    if any(map(is_synthetic, table.datasets)):
        return ours[COLUMNS].reset_index(drop=True)
    unknown = {"kind": "paper", "ci_low": np.nan, "ci_high": np.nan}
    paper = ours[ours["paper"].notna()].assign(accuracy=lambda frame: frame["paper"], **unknown)
    others = table.published[table.published["dataset"].isin(table.datasets) & (table.published["split"] == "overall")]
    others = (
        others[~others["row"].isin({line.paper_row for line in table.lines})] if table.name == "table1" else others[:0]
    )
    others = others.assign(accuracy=others["value"], n_questions=np.nan, **unknown)
    return pd.concat([part[COLUMNS] for part in (others, ours, paper) if len(part)], ignore_index=True)


def overall(table: Table) -> Figure:
    """Accuracy with 95% intervals, a panel per question set and one for the average, rows from top to bottom.

    Dashed: the baseline that never saw an image. All panels have the same axis, so that sets can be compared.
    """
    data, labels = overall_data(table), row_labels(table)
    rows = [row for row in labels if row in set(data["row"])]
    height = {row: -place - 0.6 * is_baseline(row) for place, row in enumerate(rows)}  # baselines below a gap
    averages = [name for name in data["dataset"].unique() if name not in table.datasets]
    panels = [*averages, *table.datasets]
    size = (3.3 + 1.75 * len(panels), 1.1 + 0.27 * (len(rows) + 1))
    figure, axes = plt.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False, figsize=size)
    for axis, dataset in zip(axes[0], panels, strict=True):
        part = data[data["dataset"] == dataset]
        for kind, marker in figures.MARKERS.items():
            own, colour = part[part["kind"] == kind], figures.COLOURS[kind]
            y, face = own["row"].map(height), "white" if kind == "paper" else colour
            axis.hlines(y, own["ci_low"], own["ci_high"], color=colour, linewidth=1.5, zorder=2)
            shown = KINDS[kind] if kind in set(data["kind"]) else None
            axis.scatter(own["accuracy"], y, 26, facecolor=face, edgecolor=colour, marker=marker, zorder=3, label=shown)
        for value in part.loc[part["row"].str.startswith("question_only"), "accuracy"]:
            axis.axvline(value, color=figures.BASELINE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axis.set_title(
            f"{dataset_name(dataset)}\nn = {part['n_questions'].max():,.0f}".replace(" (", "\n("), fontsize=9
        )
        axis.set(xlabel="accuracy, %", ylim=(min(height.values()) - 0.6, 0.6))
        axis.set_yticks(list(height.values()), [" ".join(labels[row]).strip() for row in height], fontsize=8)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=len(names))
    return figure


def caption(table: Table) -> str:
    """The caption of `overall`, with the variance that the intervals hold and the scale."""
    return (
        f"{short_name(table.name)}: overall accuracy under the protocol paper with 95% intervals from resampling images; "
        f"{variance(*seed_counts(table.lines))} Dashed: the full model trained and tested on blank images. Scale "
        f"{table.scale}: {SCALE_NOTES[table.scale]}."
    )


def save(table: Table) -> list[Path]:
    """Draw and write `results/<scale>/figures/accuracy_<table>` as PDF, SVG, PNG, with its data and caption."""
    figure = overall(table)
    stem = paths.scale_dir(table.scale) / "figures" / f"accuracy_{table.name}"
    written = figures.save(figure, stem, overall_data(table), caption(table))
    plt.close(figure)
    return written
