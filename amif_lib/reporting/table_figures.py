"""One figure per table: overall accuracy of every row on each question set, the average first."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from amif_lib.core import paths
from amif_lib.reporting import figures
from amif_lib.reporting.layout import row_labels, short_name
from amif_lib.reporting.table_rows import dataset_name, is_baseline, is_synthetic
from amif_lib.reporting.tables import Table

LOOKS = {  # marker, colour, name
    "ours": ("o", figures.BLUE, "this kit, 95% interval"),
    "baseline": ("s", figures.GREY, "baseline, 95% interval"),
    "paper": ("D", figures.ORANGE, "printed in the paper"),
}
COLUMNS = ["dataset", "row", "label", "kind", "accuracy", "ci_low", "ci_high", "n_questions"]


def overall_data(table: Table) -> pd.DataFrame:
    """What `overall` shows, columns `COLUMNS` with `kind` ours, baseline or paper; percent, protocol `paper`.

    The paper's numbers are there for real data only: one axis with synthetic data would suggest a comparison.
    """
    ours = table.cells.query("protocol == 'paper' and split == 'overall'")
    ours = ours.assign(kind=["baseline" if is_baseline(row) else "ours" for row in ours["row"]], accuracy=ours["ours"])
    paper = ours[ours["paper"].notna() & ~ours["dataset"].map(is_synthetic)]
    paper = paper.assign(kind="paper", accuracy=paper["paper"], ci_low=float("nan"), ci_high=float("nan"))
    return pd.concat([part[COLUMNS] for part in (ours, paper) if len(part)], ignore_index=True)


def overall(table: Table) -> Figure:
    """Accuracy with 95% intervals, a panel per question set and one for the average, rows from top to bottom.

    Dashed: the baseline that never saw an image. All panels have the same axis, so that sets can be compared.
    """
    data, labels = overall_data(table), row_labels(table)
    data["row"] = pd.Categorical(data["row"], [row for row in labels if row in set(data["row"])])
    data["average"] = ~data["dataset"].isin(table.datasets)
    data = data.sort_values(["average", "row"], ascending=[False, True], kind="stable")
    n = data.groupby("dataset")["n_questions"].transform("max").map("\nn = {:,.0f}".format)
    panels = data["dataset"].map(dataset_name).str.replace(" (", "\n(") + n
    texts = data.assign(line="", column=panels, value=data["accuracy"])
    texts["row"] = [" ".join(labels[row]).strip() for row in data["row"]]
    figure = figures.estimates(texts, LOOKS)
    for axis, (_, part) in zip(figure.axes, data.groupby("dataset", sort=False), strict=True):
        blind = part.loc[part["row"].astype(str).str.startswith("question_only"), "accuracy"]
        axis.vlines(blind, *axis.get_ylim(), color=figures.GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    return figure


def caption(table: Table) -> str:
    """The caption of `overall`, with the variance that the intervals hold and the scale."""
    return (
        f"{short_name(table.name)}: overall accuracy under the protocol paper, "
        f"{figures.intervals(table.cells['n_seeds'])} Dashed: the full model trained and tested on blank images. "
        f"{figures.scale_note(table.scale)}"
    )


def save(table: Table) -> list[Path]:
    """Draw and write `results/<scale>/figures/accuracy_<table>` as PDF, SVG, PNG, with its data and caption."""
    figure = overall(table)
    stem = paths.scale_dir(table.scale) / "figures" / f"accuracy_{table.name}"
    written = figures.save(figure, stem, overall_data(table), caption(table))
    plt.close(figure)
    return written
