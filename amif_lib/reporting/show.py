"""What every table notebook shows of its table: `show(table)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from amif_lib.reporting import claims, figures, layout, table_figures, table_notes
from amif_lib.reporting.table_rows import dataset_name
from amif_lib.reporting.table_tests import HOLM
from amif_lib.reporting.tables import Table, store


def show(table: Table) -> list[Path]:
    """Display accuracies, each set by both definitions, each run, paired tests, claims, figure and notes; write the files.

    Needs IPython. Returns the paths of the table's files and of its figure's.
    """
    from IPython.display import Markdown, display

    def section(title: str, words: str, *frames: pd.DataFrame | Styler) -> None:
        display(Markdown(f"### {title}\n\n{words}"), *frames)

    section("Accuracies", f"Overall, protocol `paper`, in percent: {layout.READING}. Rows with a number are compared on the "
            f"same questions with baselines that have no model or see no image. {table_notes.question_sets(table)} "
            f"{table_notes.bold(table)}", styled(*layout.accuracies(table, ["overall"])))  # fmt: skip
    display(Markdown(table_notes.supported_differences(table)))
    section("Each question set by itself", "`paper` chooses among the answers of the test set, `strict@1` among those of the "
            "training questions. *Closed*: the answer is yes or no, or (`/answer_type`) the set's own field says so.")  # fmt: skip
    for dataset in table.datasets:
        display(Markdown(dataset_name(dataset)), layout.both_definitions(table, dataset).set_index("row"))
    section("Each run by itself", "Overall accuracy: mean and spread hide how few trainings stand behind them.",
            layout.each_run(table).set_index("row"))  # fmt: skip
    section("Which differences are real?", "On the same questions: how many only one of two rows answers correctly, the exact "
            "McNemar test on them (a p per run), and an interval from resampling images, because questions on one image are "
            f"not independent. Averages over sets are compared by resampling alone. {HOLM}",
            layout.tests_layout(table).set_index(["row", "against", "protocol"]))  # fmt: skip
    said = claims.table(table.scale, [table.name], {table.name: table})
    section("What the paper's text says of this table", "*Audit* is about the paper's own numbers, *replication* about our "
            "runs of the same rows; neither follows from the other, and replication is judged only on real data at base or "
            f"paper scale. {claims.READING}", claims.layout(said))  # fmt: skip
    figures.use_style()
    drawn = table_figures.save(table)
    section("As a picture", f"{table_figures.caption(table)} A row whose interval reaches the dashed line has not shown that "
            "the model looks at images. Overlapping intervals do not mean that two rows are equal.",
            table_figures.overall(table))  # fmt: skip
    section("How to read it", "\n".join(f"- {note}" for note in table_notes.notes(table)))
    return [*store(table, always=True), *drawn]


def styled(texts: pd.DataFrame, strong: pd.DataFrame) -> Styler:
    """Accuracies for a notebook, the supported ones in bold."""
    return texts.style.apply(lambda _: np.where(strong, "font-weight: bold", ""), axis=None)
