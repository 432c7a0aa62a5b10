"""What table notebooks share: `read_from(source, …)` chooses the runs, `show(table)` displays a table."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib.pyplot as plt

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored
from amif_lib.experiments.rows import is_judged
from amif_lib.reporting import figures, layout, table_figures
from amif_lib.reporting.table_rows import planned_tables, required_runs
from amif_lib.reporting.tables import Table

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
    figure, data, caption = table_figures.draw(table)
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
