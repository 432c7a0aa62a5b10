"""What every table notebook shows of its table: `show(table)`."""

from __future__ import annotations

from pathlib import Path

from amif_lib.reporting import figures, layout, table_figures, table_notes
from amif_lib.reporting.tables import Table, store

CELLS = """### Accuracies

Overall, in percent: {reading} The baselines answer the same questions without a model or without the right image.
{sets} {trainings}"""
TESTS = """### Differences on the same questions

Between these trained models: an interval from resampling images, the smallest difference that so many images could have
shown, how many questions only one of the two answers correctly, and McNemar's exact p (one per training). Another
training may come out otherwise; what may be said of the method is said by the contrasts (`make contrasts`)."""


def show(table: Table) -> list[Path]:
    """Display a table's accuracies, differences, figure and notes (needs IPython), and write its files.

    Returns the paths of the table's files and of its figure's.
    """
    from IPython.display import Markdown, display

    about = {"sets": table_notes.question_sets(table), "trainings": table_notes.trainings(table)}
    display(Markdown(CELLS.format(reading=layout.READING, **about)))
    display(layout.accuracies(table, ["overall"]).set_index("row"), Markdown(table_notes.looking(table)))
    display(Markdown("Open and closed:"), layout.accuracies(table, ["open", "closed"]).set_index("row"))
    display(Markdown(TESTS), layout.tests_layout(table).set_index("row"))
    if len(table.published):
        display(Markdown("### What the paper prints, on the real data sets"), layout.published(table).set_index("row"))
    figures.use_style()
    drawn = table_figures.save(table)
    display(Markdown(f"### As a picture\n\n{table_figures.caption(table)}"), table_figures.overall(table))
    display(Markdown("### How to read it\n\n" + "\n".join(f"- {note}" for note in table_notes.notes(table))))
    return [*store(table, always=True), *drawn]
