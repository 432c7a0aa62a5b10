"""A collected table for LaTeX, in the paper's layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from amif_lib.reporting.layout import (
    bold_note,
    code_note,
    compact,
    compact_note,
    heading,
    one_training,
    paper_layout,
    row_labels,
    short_dataset_name,
    supported_differences,
)
from amif_lib.reporting.table_cells import SPLITS
from amif_lib.reporting.table_notes import variance
from amif_lib.reporting.table_rows import SCALE_NOTES, is_synthetic, real_name

if TYPE_CHECKING:
    from amif_lib.reporting.tables import Table


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
    """The table for LaTeX (booktabs), protocol `paper`: the paper's layout.

    With several question sets there is one column per set after the average, overall accuracies alone, as in the paper's
    Tables 2 to 5; where the paper prints open and closed ones too (Table 1), one per set and split (`_by_split`).
    """
    if len(table.datasets) > 1 and set(table.published["split"]) > {"overall"}:
        return _by_split(table)
    start, end = "\x01", "\x02"  # survive escaping
    several = len(table.datasets) > 1
    frame = (compact if several else paper_layout)(table, lambda text: f"{start}{text}{end}")
    lines = [" & ".join(map(_tex, frame.columns)) + r" \\", r"\midrule"]
    runs_of = {  # the runs behind a row, question set by question set
        label: "; ".join(f"{line.dataset} {' '.join(line.run_ids)}" for line in table.lines if line.row == row)
        for row, label in row_labels(table).items()
        if any(line.run_ids for line in table.lines if line.row == row)
    }
    rows_of = {label: row for row, label in row_labels(table).items()}
    kinds = ["row" if number else "baseline" for number in frame["#"]]
    for position, values in enumerate(frame.itertuples(index=False)):
        if position and kinds[position] != kinds[position - 1]:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_tex, values)).replace(start, r"\textbf{").replace(end, "}") + r" \\")
        if runs := runs_of.get(values[1]):
            lines += [f"% runs: {runs}", *_each_run(table, rows_of[values[1]])]
    body = "\n".join(lines)
    alignment = "".join(
        "r" if (several and n > 1) or column.split()[-1] in SPLITS else "l" for n, column in enumerate(frame.columns)
    )
    wide = several or len(frame.columns) > 8
    needs, start_box, end_box = (
        ("booktabs,graphicx", "\\resizebox{\\textwidth}{!}{%%\n", "}") if wide else ("booktabs", "", "")
    )
    shown = compact_note(table) if several else "Accuracy in percent with a 95% interval."
    return _environment(table, needs, alignment, f"{start_box}%s{end_box}", body, shown, frame["row"])


def _environment(
    table: Table, needs: str, alignment: str, box: str, body: str, shown: str, labels: Iterable[str]
) -> str:
    """The table environment around rows; `shown` says how to read a cell."""
    labels = list(labels)
    marks = [bold_note(table), one_training(table)]
    if any("†" in label for label in labels):
        marks.append("†: saw answers or images of the test set in training.")
    if any("(extra)" in label for label in labels):
        marks.append("(extra): not a row of the paper's.")
    parts = [f"{heading(table)}: {SCALE_NOTES[table.scale]}.", shown, f"Intervals: {variance(table)}", *marks]
    parts.append(supported_differences(table))
    caption = _tex(" ".join(filter(None, [*parts, code_note(table)])))
    tabular = f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"
    return (
        f"% needs \\usepackage{{{needs}}}\n\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
        f"{box % tabular}\n\\end{{table}}\n"
    )


def _each_run(table: Table, row: str) -> list[str]:
    """A comment with each run's overall accuracy, in the order of the runs, where a row has two or three of them."""
    own = table.seeds[
        (table.seeds["row"] == row) & (table.seeds["protocol"] == "paper") & (table.seeds["split"] == "overall")
    ]
    parts = {name: [f"{value:.1f}" for value in group["ours"]] for name, group in own.groupby("dataset", sort=False)}
    if not parts or not 2 <= max(map(len, parts.values())) <= 3:
        return []
    return ["% each run: " + "; ".join(f"{name} {' '.join(values)}" for name, values in parts.items())]


def _by_split(table: Table) -> str:
    """Columns by question set and split, as the paper's Table 1 has them, with the average last.

    A row of ours takes up to three lines: accuracy with its spread, its interval, and the paper's number for it.
    """
    known, cells = table.published, table.cells[table.cells["protocol"] == "paper"]
    columns = []
    for dataset in table.datasets:
        printed = set(known.loc[known["dataset"] == real_name(dataset), "split"]) or {"overall"}
        columns += [(dataset, split) for split in SPLITS if split in printed]
    columns += [(name, "overall") for name in dict.fromkeys(cells["dataset"]) if name.startswith("avg")]
    groups = {dataset: sum(name == dataset for name, _ in columns) for dataset, _ in columns}
    header, rules, place = ["row"], [], 2
    for dataset, width in groups.items():
        header.append(rf"\multicolumn{{{width}}}{{c}}{{{_tex(short_dataset_name(dataset))}}}")
        rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        place += width
    lines = [" & ".join(header) + r" \\", "".join(rules)]
    lines += [" & ".join(["", *(split for _, split in columns)]) + r" \\", r"\midrule"]
    theirs = known.set_index(["row", "dataset", "split"])["value"].to_dict()
    ours = cells.set_index(["row", "dataset", "split"])
    labels, kind_before = row_labels(table), None
    for row, label in labels.items():
        own = [line for line in table.lines if line.row == row]
        kind = own[0].kind if own else "other"
        if kind_before not in (None, kind):
            lines.append(r"\midrule")
        kind_before = kind
        paper_row = own[0].paper_row if own else row
        numbers = [theirs.get((paper_row, real_name(dataset), split)) for dataset, split in columns]
        printed = ["-" if value is None else f"{value:.2f}" for value in numbers]
        if not own:
            lines.append(" & ".join([_tex(label), *printed]) + r" \\")
            continue
        values, intervals = [], []
        for dataset, split in columns:
            if (row, dataset, split) not in ours.index:
                values.append("")
                intervals.append("")
                continue
            cell = ours.loc[(row, dataset, split)]
            spread = f" ± {cell.ours_sd:.1f}" if cell.ours_sd == cell.ours_sd else ""
            text = _tex(f"{cell.ours:.1f}{spread}")
            values.append(rf"\textbf{{{text}}}" if (row, dataset, split) in table.supported else text)
            intervals.append(rf"{{\scriptsize [{cell.ci_low:.1f}, {cell.ci_high:.1f}]}}")
        lines.append(" & ".join([_tex(label), *values]) + r" \\")
        lines.append(" & ".join([r"\quad 95\% interval", *intervals]) + r" \\")
        if any(value is not None for value in numbers):
            deltas = [
                f" ({ours.loc[key].delta:+.2f})"
                if (key := (row, *column)) in ours.index and ours.loc[key].delta == ours.loc[key].delta
                else ""
                for column in columns
            ]
            shown = [f"{text}{delta}" for text, delta in zip(printed, deltas, strict=True)]
            lines.append(" & ".join([r"\quad the paper's", *shown]) + r" \\")
        if runs := "; ".join(f"{line.dataset} {' '.join(line.run_ids)}" for line in own if line.run_ids):
            lines += [f"% runs: {runs}", *_each_run(table, row)]
    where = ", on the real data sets" if any(map(is_synthetic, table.datasets)) else ""
    spread = ", ± standard deviation over the runs" if cells["ours_sd"].notna().any() else ""
    asked = cells[(cells["split"] == "overall") & cells["dataset"].isin(table.datasets)]
    counts = asked.groupby("dataset", sort=False)["n_questions"].max()
    n = ", ".join(f"{short_dataset_name(name)} {count:.0f}" for name, count in counts.items())
    shown = (
        f"Ours: accuracy in percent{spread}; closed: the answer is yes or no. Published rows{where}: as printed, by their "
        f"own definition of closed. Test questions: {n}."
    )
    box = "\\resizebox{\\textwidth}{!}{%%\n%s}"
    alignment = "l" + "r" * len(columns)
    return _environment(table, "booktabs,graphicx", alignment, box, "\n".join(lines), shown, labels.values())
