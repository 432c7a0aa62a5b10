"""A collected table for LaTeX, in the paper's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amif_lib.layout import (
    bold_note,
    code_note,
    compact,
    compact_note,
    heading,
    one_training,
    paper_layout,
    row_labels,
)
from amif_lib.table_cells import SPLITS
from amif_lib.table_notes import variance
from amif_lib.table_rows import SCALE_NOTES

if TYPE_CHECKING:
    from amif_lib.tables import Table


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("#", r"\#"),
        ("_", r"\_"),
        ("±", r"$\pm$"),
        ("†", r"$\dagger$"),
        ("→", r"$\to$"),
    ):
        text = text.replace(plain, escaped)
    return text


def latex(table: Table) -> str:
    """The table for LaTeX (booktabs), protocol `paper`: the paper's layout, or, with several question sets, overall
    accuracies alone, one column per set after the average, so that the page is wide enough.
    """
    start, end = "\x01", "\x02"  # survive escaping
    several = len(table.datasets) > 1
    frame = (compact if several else paper_layout)(table, lambda text: f"{start}{text}{end}")
    lines = [" & ".join(map(_tex, frame.columns)) + r" \\", r"\midrule"]
    runs_of = {  # the runs behind a row, question set by question set
        label: "; ".join(f"{line.dataset} {' '.join(line.run_ids)}" for line in table.lines if line.row == row)
        for row, label in row_labels(table).items()
        if any(line.run_ids for line in table.lines if line.row == row)
    }
    kinds = ["row" if number else "baseline" for number in frame["#"]]
    for position, values in enumerate(frame.itertuples(index=False)):
        if position and kinds[position] != kinds[position - 1]:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_tex, values)).replace(start, r"\textbf{").replace(end, "}") + r" \\")
        if runs := runs_of.get(values[1]):
            lines.append(f"% runs: {runs}")
    body = "\n".join(lines)
    alignment = "".join(
        "r" if (several and n > 1) or column.split()[-1] in SPLITS else "l" for n, column in enumerate(frame.columns)
    )
    wide = several or len(frame.columns) > 8
    needs, start_box, end_box = (
        ("booktabs,graphicx", "\\resizebox{\\textwidth}{!}{%\n", "}") if wide else ("booktabs", "", "")
    )
    shown = compact_note(table) if several else "Accuracy in percent with a 95% interval."
    marks = [bold_note(table), one_training(table)]
    if any("†" in label for label in frame["row"]):
        marks.append("†: saw answers or images of the test set in training.")
    if any("(extra)" in label for label in frame["row"]):
        marks.append("(extra): not a row of the paper's.")
    parts = [f"{heading(table)}: {SCALE_NOTES[table.scale]}.", shown, f"Intervals: {variance(table)}", *marks]
    caption = _tex(" ".join(filter(None, [*parts, code_note(table)])))
    return (
        f"% needs \\usepackage{{{needs}}}\n\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
        f"{start_box}\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\n\\bottomrule\n"
        f"\\end{{tabular}}{end_box}\n\\end{{table}}\n"
    )
