"""One figure per table: overall accuracy of every row on each question set, the average first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.reporting import figures
from amif_lib.reporting.layout import short_name
from amif_lib.reporting.table_notes import variance
from amif_lib.reporting.table_rows import SCALE_NOTES, is_synthetic, short_dataset_name

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from amif_lib.reporting.tables import Table

WIDTH, LEFT, LINE = 1.75, 3.3, 0.27  # inches: of a panel, for the labels, per row
LETTERS = 38  # of a label, above which it takes two lines


def overall_data(table: Table) -> pd.DataFrame:
    """What `overall` shows: `dataset, row, label, kind (ours|baseline|paper), accuracy, ci_low, ci_high, n_questions`.

    Percent, protocol `paper`. The paper's numbers are there for real data only: one axis with synthetic data would suggest
    a comparison.
    """
    cells = table.cells[(table.cells["protocol"] == "paper") & (table.cells["split"] == "overall")]
    kinds = {line.row: "ours" if line.kind == "row" else "baseline" for line in table.lines}
    about = ["dataset", "row", "label", "kind", "accuracy", "ci_low", "ci_high", "n_questions"]
    ours = cells.assign(kind=cells["row"].map(kinds), accuracy=cells["ours"])[about]
    if any(map(is_synthetic, table.datasets)):
        return ours.reset_index(drop=True)
    paper = cells[cells["paper"].notna()].assign(kind="paper", ci_low=np.nan, ci_high=np.nan)
    others = pd.DataFrame(columns=about)
    if table.name == "table1":  # other people's methods
        known = table.published.query("split == 'overall'")
        known = known[known["dataset"].isin(table.datasets) & ~known["row"].isin({x.paper_row for x in table.lines})]
        others = known.assign(kind="paper", accuracy=known["value"], ci_low=np.nan, ci_high=np.nan, n_questions=np.nan)
    parts = [part for part in (others[about], ours, paper.assign(accuracy=paper["paper"])[about]) if len(part)]
    return pd.concat(parts, ignore_index=True)


def overall(table: Table) -> Figure:
    """Accuracy with 95% intervals, a panel per question set and one for the average, rows from top to bottom.

    Dashed: the baseline that never saw an image. The axes of all panels are alike, so that sets can be compared.
    """
    data = overall_data(table)
    rows = data.drop_duplicates("row").set_index("row")
    gap = int((rows["kind"] != "baseline").sum())  # baselines start below a gap
    order = [*rows.index[rows["kind"] != "baseline"], *rows.index[rows["kind"] == "baseline"]]
    height = {row: -(place + (0.6 if place >= gap else 0)) for place, row in enumerate(order)}
    averages = [name for name in dict.fromkeys(data["dataset"]) if name not in table.datasets]
    panels = [*averages, *table.datasets]
    figure, axes = plt.subplots(
        1, len(panels), sharey=True, sharex=True, squeeze=False,
        figsize=(LEFT + WIDTH * len(panels), 1.1 + LINE * (len(order) + 1)),
    )  # fmt: skip
    low = max(0.0, float(np.nanmin(data[["accuracy", "ci_low"]].to_numpy())) - 3)
    high = min(100.0, float(np.nanmax(data[["accuracy", "ci_high"]].to_numpy())) + 3)
    for axis, dataset in zip(axes[0], panels, strict=True):
        part = data[data["dataset"] == dataset]
        for kind, marker in figures.MARKERS.items():
            own = part[part["kind"] == kind]
            y, colour, paper = own["row"].map(height), figures.COLOURS[kind], kind == "paper"
            axis.hlines(y, own["ci_low"], own["ci_high"], color=colour, linewidth=1.5, zorder=2)
            face = "white" if paper else colour
            axis.scatter(
                own["accuracy"], y, marker=marker, s=26, zorder=4 if paper else 3, facecolor=face, edgecolor=colour
            )
        blind = part[part["row"].str.startswith("question_only")]["accuracy"]
        for value in blind:
            axis.axvline(value, color=figures.BASELINE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        n = part["n_questions"].dropna().iloc[0]
        axis.set_title(f"{short_dataset_name(dataset)}\nn = {n:,.0f}".replace(" (", "\n("), fontsize=9)
        axis.set(xlabel="accuracy, %", xlim=(low, high), ylim=(min(height.values()) - 0.6, 0.6))
        axis.set_yticks(list(height.values()), [_label(table, rows, row) for row in height], fontsize=8)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
    names = {"ours": "this kit, 95% interval", "baseline": "baseline, 95% interval", "paper": "printed in the paper"}
    shown = [kind for kind in figures.MARKERS if kind in set(data["kind"])]
    handles = [
        plt.Line2D(
            [], [], marker=figures.MARKERS[kind], color=figures.COLOURS[kind], linestyle="" if kind == "paper" else "-",
            markerfacecolor="white" if kind == "paper" else figures.COLOURS[kind], label=names[kind],
        )
        for kind in shown
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def _label(table: Table, rows: pd.DataFrame, row: str) -> str:
    label = str(rows.loc[row, "label"])
    numbered = any(line.row == row and line.kind == "row" for line in table.lines) and table.name.startswith("table")
    label = f"#{row} {label}" if numbered and table.name != "table1" and row.isdigit() else label
    if len(label) <= LETTERS:
        return label
    cut = label.rfind(" ", 0, LETTERS)
    return f"{label[:cut]}\n{label[cut + 1 :]}"


def caption(table: Table) -> str:
    """The caption of `overall`, with the variance that the intervals hold and the scale."""
    sets = ", phantom sets in the layout of the real ones" if any(map(is_synthetic, table.datasets)) else ""
    return (
        f"{short_name(table.name)}: overall accuracy under the protocol paper{sets}, with 95% intervals from resampling "
        f"images; {variance(table)} Dashed: the full model trained and tested on blank images. "
        f"{SCALE_NOTES[table.scale][0].upper()}{SCALE_NOTES[table.scale][1:]}."
    )


def save(table: Table) -> list[Path]:
    """Draw and write `results/<scale>/figures/accuracy_<table>` as PDF, SVG, PNG, with its data and caption."""
    figure = overall(table)
    stem = paths.scale_dir(table.scale) / "figures" / f"accuracy_{table.name}"
    written = figures.save(figure, stem, overall_data(table), caption(table))
    plt.close(figure)
    return written
