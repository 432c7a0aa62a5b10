"""What every table notebook shows of its table: `show(table)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amif_lib.reporting import claims, figures, layout, table_figures, table_notes
from amif_lib.reporting.table_rows import dataset_name
from amif_lib.reporting.table_tests import HOLM
from amif_lib.reporting.tables import Table, store

CELLS = """### Accuracies

Overall, protocol `paper`, in percent: {reading}. The baselines answer the same questions without a model or without
seeing the image. {sets} {bold}"""
DEFINITIONS = """### Each question set by itself

`paper` chooses among the answers of the test set, `strict@1` among those of the training questions. *Closed*: the
answer is yes or no, or (`/answer_type`) the set's own field says so."""
RUNS = """### Each run by itself

Overall accuracy: mean and spread hide how few trainings stand behind them."""
TESTS = """### Which differences are real?

On the same questions: how many only one of two rows answers correctly, the exact McNemar test on them (a p per run),
and an interval from resampling images, because questions on one image are not independent. Averages over sets are
compared by resampling alone. {holm}"""
CLAIMS = """### What the paper's text says of this table

*Audit* is about the paper's own numbers, *replication* about our runs of the same rows; neither follows from the other,
and replication is judged only on real data at base or paper scale. {reading}"""
PICTURE = """### As a picture

{caption} A row whose interval reaches the dashed line has not shown that the model looks at images. Overlapping
intervals do not mean that two rows are equal."""


def show(table: Table) -> list[Path]:
    """Display a table's accuracies, tests, claims, figure and notes (needs IPython), and write its files.

    Returns the paths of the table's files and of its figure's.
    """
    from IPython.display import Markdown, display

    texts, strong = layout.accuracies(table, ["overall"])
    bold = texts.style.apply(lambda _: np.where(strong, "font-weight: bold", ""), axis=None)
    sets = table_notes.question_sets(table)
    display(Markdown(CELLS.format(reading=layout.reading(table), sets=sets, bold=table_notes.bold(table))), bold)
    display(Markdown(table_notes.supported_differences(table)), Markdown(DEFINITIONS))
    for dataset in table.datasets:
        display(Markdown(dataset_name(dataset)), layout.both_definitions(table, dataset).set_index("row"))
    display(Markdown(RUNS), layout.each_run(table).set_index("row"))
    display(Markdown(TESTS.format(holm=HOLM)), layout.tests_layout(table).set_index(["row", "against", "protocol"]))
    said = claims.layout(claims.table(table.scale, [table.name], {table.name: table}))
    display(Markdown(CLAIMS.format(reading=claims.READING)), said)
    figures.use_style()
    drawn = table_figures.save(table)
    display(Markdown(PICTURE.format(caption=table_figures.caption(table))), table_figures.overall(table))
    display(Markdown("### How to read it\n\n" + "\n".join(f"- {note}" for note in table_notes.notes(table))))
    return [*store(table, always=True), *drawn]
