"""A collected table for LaTeX, in the paper's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amif_lib.layout import code_note, heading, paper_layout
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
    """The paper's layout for LaTeX (booktabs), protocol `paper`."""
    start, end = "\x01", "\x02"  # survive escaping
    frame = paper_layout(table, lambda text: f"{start}{text}{end}")
    lines = [" & ".join(map(_tex, frame.columns)) + r" \\", r"\midrule"]
    kinds = ["row" if number else "baseline" for number in frame["#"]]
    for position, values in enumerate(frame.itertuples(index=False)):
        if position and kinds[position] != kinds[position - 1]:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_tex, values)).replace(start, r"\textbf{").replace(end, "}") + r" \\")
    body = "\n".join(lines)
    alignment = "".join("r" if column.split()[-1] in SPLITS else "l" for column in frame.columns)
    wide = len(frame.columns) > 8
    needs, start_box, end_box = (
        ("booktabs,graphicx", "\\resizebox{\\textwidth}{!}{%\n", "}") if wide else ("booktabs", "", "")
    )
    caption = _tex(
        f"{heading(table)}: {SCALE_NOTES[table.scale]}. Accuracy in percent with a 95% interval, {variance(table)} {code_note(table)}"
    )
    return (
        f"% needs \\usepackage{{{needs}}}\n\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
        f"{start_box}\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\n\\bottomrule\n"
        f"\\end{{tabular}}{end_box}\n\\end{{table}}\n"
    )
