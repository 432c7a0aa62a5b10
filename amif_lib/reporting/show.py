"""What table notebooks share: `read_from(source, …)` chooses the runs, `show(table)` displays a table."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored
from amif_lib.experiments.rows import is_judged
from amif_lib.reporting import figures, layout
from amif_lib.reporting.figures import BLUE, GREY, ORANGE, DrawnFigure
from amif_lib.reporting.table_rows import dataset_name, is_baseline, is_synthetic, planned_tables, required_runs
from amif_lib.reporting.tables import Table

LOOKS = {  # marker, colour, name
    "ours": ("o", BLUE, "this kit, 95% interval"),
    "baseline": ("s", GREY, "baseline, 95% interval"),
    "paper": ("D", ORANGE, "printed in the paper"),
}
COLUMNS = ["dataset", "row", "label", "kind", "accuracy", "ci_low", "ci_high", "n_questions"]
ASKED = os.environ.get("FROM", "")  # as this process was started; `read_from` changes the variable


def read_from(source: str, scale: str, *tables: str) -> str:
    """From here on read the user's runs ("runs") or the committed ones ("reference"); returns a sentence on which.

    With "", the user's if every run of `tables` (default: those of the last plan) is finished and FROM=reference was
    not set, or if this scale has no committed ones; else the committed ones. Raises InputError for another `source`.
    """
    if source not in ("", "runs", "reference"):
        raise InputError(f'source = {source!r}: unknown; use "runs", "reference", or "" for what is there')
    os.environ["FROM"] = ""
    if not source and paths.reference(scale).is_dir():
        needed = [run for name in tables or planned_tables(scale) for run in required_runs(name, scale)]
        source = "reference" if ASKED or stored.missing(needed) else "runs"
    if source != "reference":
        return f"Runs: your own, {paths.shown(paths.results() / 'runs')}."
    os.environ["FROM"] = source
    folder, written = paths.shown(paths.reference(scale)), paths.shown(paths.scale_dir(scale))
    return f"Runs: the committed reference, {folder}; files go to {written}."


def show(table: Table) -> list[Path]:
    """Display a table's parts, figure and notes (needs IPython), and write its files.

    Returns the paths of the table's files and of its figure's.
    """
    from IPython.display import Markdown, display

    figures.use_style()
    figure, data, caption = draw(table)
    for place, (title, frame, texts) in enumerate(layout.parts(table)):
        rows = frame.set_index(frame.columns[0]).rename_axis(None)
        title = title or ("Differences named beforehand" if is_judged(table.name) else "Overall accuracy")
        display(Markdown(f"### {title}"), rows, Markdown("\n\n".join(texts)))
        if place == 0:
            display(figure, Markdown(caption))
    plt.close(figure)  # else JupyterLab shows it once more below the cell
    display(Markdown("### How to read it\n\n" + "\n".join(f"- {note}" for note in layout.notes(table))))
    path = paths.scale_dir(table.scale) / "figures" / f"accuracy_{table.name}"
    return [*layout.write(table), *figures.save(figure, path, data, caption)]


def draw(table: Table) -> DrawnFigure:
    """A table's figure: overall accuracy (percent, protocol `paper`) of every row, with 95% intervals.

    There is a panel per question set and one for the average, all with the same axis. The data have the columns
    `COLUMNS`; `kind` is ours, baseline or paper. The paper's numbers are shown for real data only, since beside
    synthetic data they would suggest a comparison.
    """
    ours = table.cells.query("protocol == 'paper' and split == 'overall'")
    ours = ours.assign(kind=["baseline" if is_baseline(row) else "ours" for row in ours["row"]], accuracy=ours["ours"])
    paper = ours[ours["paper"].notna() & ~ours["dataset"].map(is_synthetic)]
    paper = paper.assign(kind="paper", accuracy=paper["paper"], ci_low=float("nan"), ci_high=float("nan"))
    data = pd.concat([part[COLUMNS] for part in (ours, paper) if len(part)], ignore_index=True)
    labels, counts = layout.row_labels(table), data.groupby("dataset")["n_questions"].transform("max")
    panels = data["dataset"].map(dataset_name).str.replace(" (", "\n(") + counts.map("\nn = {:,.0f}".format)
    shown = data.assign(line="", column=panels, value=data["accuracy"], average=~data["dataset"].isin(table.datasets))
    shown["place"] = shown["row"].map(list(labels).index)
    shown = shown.sort_values(["average", "place"], ascending=[False, True], kind="stable")
    figure = figures.estimates(shown.assign(row=shown["row"].map(labels)), LOOKS)
    caption = (
        f"{layout.short_name(table.name)}: overall accuracy under the protocol paper, "
        f"{figures.INTERVALS} {figures.scale_note(table.scale)}"
    )
    return figure, data, caption
