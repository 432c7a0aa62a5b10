"""One figure per table: overall accuracy of every row on each question set, the average first."""

from __future__ import annotations

import pandas as pd

from amif_lib.reporting import figures
from amif_lib.reporting.figures import BLUE, GREY, ORANGE, DrawnFigure
from amif_lib.reporting.layout import row_labels, short_name
from amif_lib.reporting.table_rows import dataset_name, is_baseline, is_synthetic
from amif_lib.reporting.tables import Table

LOOKS = {  # marker, colour, name
    "ours": ("o", BLUE, "this kit, 95% interval"),
    "baseline": ("s", GREY, "baseline, 95% interval"),
    "paper": ("D", ORANGE, "printed in the paper"),
}
COLUMNS = ["dataset", "row", "label", "kind", "accuracy", "ci_low", "ci_high", "n_questions"]


def draw(table: Table) -> DrawnFigure:
    """Accuracy (percent, protocol `paper`) with 95% intervals, a panel per question set and one for the average.

    The data have the columns `COLUMNS`; `kind` is ours, baseline or paper. The paper's numbers are shown for real data
    only, since beside synthetic data they would suggest a comparison. All panels have the same axis.
    """
    ours = table.cells.query("protocol == 'paper' and split == 'overall'")
    ours = ours.assign(kind=["baseline" if is_baseline(row) else "ours" for row in ours["row"]], accuracy=ours["ours"])
    paper = ours[ours["paper"].notna() & ~ours["dataset"].map(is_synthetic)]
    paper = paper.assign(kind="paper", accuracy=paper["paper"], ci_low=float("nan"), ci_high=float("nan"))
    data = pd.concat([part[COLUMNS] for part in (ours, paper) if len(part)], ignore_index=True)
    labels, counts = row_labels(table), data.groupby("dataset")["n_questions"].transform("max")
    panels = data["dataset"].map(dataset_name).str.replace(" (", "\n(") + counts.map("\nn = {:,.0f}".format)
    shown = data.assign(line="", column=panels, value=data["accuracy"], average=~data["dataset"].isin(table.datasets))
    shown["place"] = shown["row"].map(list(labels).index)
    shown = shown.sort_values(["average", "place"], ascending=[False, True], kind="stable")
    figure = figures.estimates(shown.assign(row=shown["row"].map(labels)), LOOKS)
    caption = (
        f"{short_name(table.name)}: overall accuracy under the protocol paper, "
        f"{figures.INTERVALS} {figures.scale_note(table.scale)}"
    )
    return figure, data, caption
