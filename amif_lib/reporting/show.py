"""What every table notebook shows of its table: `show(table)`."""

from __future__ import annotations

from pathlib import Path

from amif_lib.reporting import figures, layout, table_figures
from amif_lib.reporting.tables import Table


def show(table: Table) -> list[Path]:
    """Display a table's parts, figure and notes (needs IPython), and write its files.

    Returns the paths of the table's files and of its figure's.
    """
    from IPython.display import Markdown, display

    for title, frame, texts in layout.parts(table):
        display(Markdown(f"### {title or 'Overall accuracy'}"), frame.set_index("row"), Markdown("\n\n".join(texts)))
    figures.use_style()
    figure, data, caption = table_figures.draw(table)
    display(Markdown(f"### As a picture\n\n{caption}"), figure)
    display(Markdown("### How to read it\n\n" + "\n".join(f"- {note}" for note in layout.notes(table))))
    return [*layout.store(table), *figures.save(figure, table_figures.path(table), data, caption)]
