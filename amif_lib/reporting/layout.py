"""A collected table as a person reads it, in Markdown, HTML and LaTeX from the same frames."""

from __future__ import annotations

import html as _html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from amif_lib.experiments import rows as experiments
from amif_lib.reporting import table_notes
from amif_lib.reporting.table_rows import PAPER_SETS, SCALE_NOTES, dataset_name, real_name
from amif_lib.reporting.tables import SPLITS, Table

READING = "mean ± standard deviation over trainings [95% interval over images], protocol paper, closed = yes or no."


def short_name(name: str) -> str:
    return f"Table {name.removeprefix('table')}" if name.startswith("table") else name.replace("_", " ").capitalize()


def heading(table: Table) -> str:
    return f"{short_name(table.name)}: {experiments.table_settings(table.name)['title']} (SCALE={table.scale})"


def row_labels(table: Table) -> dict[str, tuple[str, str]]:
    """Number and label of our rows and then the baselines, by row."""
    out = {}
    for line in sorted(table.lines, key=lambda line: line.kind == "baseline"):
        numbered = line.kind == "row" and table.name.startswith(("table2", "table3", "table4", "table5"))
        out[line.row] = (line.row if numbered else "", line.label + "†" * line.leaks + " (extra)" * line.extra)
    return out


def accuracies(table: Table, splits: Sequence[str] = SPLITS) -> pd.DataFrame:
    """Accuracies of our rows and the baselines under the protocol `paper` as texts, the average first.

    Columns: `row`, `trainings` (how many stand behind it), then a column per question set and split.
    """
    cells = table.cells[(table.cells["protocol"] == "paper") & table.cells["split"].isin(splits)]
    cells = cells.assign(text=[_accuracy(cell) for cell in cells.itertuples()])
    labels, counts = row_labels(table), table.cells.groupby("row")["n_seeds"].max()
    wide = _by_set(cells, "text", [row for row in labels if row in set(cells["row"])])
    trained = {line.row: str(counts[line.row]) if line.run_ids else "" for line in table.lines}
    wide.insert(0, "trainings", [trained[row] for row in wide.index])
    wide.insert(0, "row", [": ".join(filter(None, labels[row])) for row in wide.index])
    return wide.reset_index(drop=True)


def published(table: Table) -> pd.DataFrame:
    """The paper's own numbers of this table, on the real data sets: a table apart."""
    cells = table.published.assign(text=table.published["value"].map("{:.2f}".format))
    wide = _by_set(cells, "text", list(cells["row"].unique()))
    labels = cells.drop_duplicates("row").set_index("row")["label"]
    cited = table.name == "table1"
    wide.insert(0, "row", [labels[row] if cited else f"{row}: {labels[row]}" for row in wide.index])
    return wide.reset_index(drop=True)


def _by_set(cells: pd.DataFrame, values: str, rows: list[str]) -> pd.DataFrame:
    """Cells as `rows` by question set and split; the average first, one split's name left out."""
    wide = cells.pivot(index="row", columns=["dataset", "split"], values=values).reindex(rows).fillna("")
    known = [*PAPER_SETS, *cells["dataset"].map(real_name).unique()]
    sets = sorted(
        cells["dataset"].unique(), key=lambda name: (not name.startswith("avg"), known.index(real_name(name)))
    )
    order = [(name, split) for name in sets for split in SPLITS if (name, split) in wide.columns]
    wide = wide[order]
    several = cells["split"].nunique() > 1
    wide.columns = [f"{dataset_name(name)} {split}" if several else dataset_name(name) for name, split in order]
    return wide


def _accuracy(cell: object) -> str:
    spread = "" if pd.isna(cell.ours_sd) else f" ± {cell.ours_sd:.1f}"
    return f"{cell.ours:.1f}{spread} [{cell.ci_low:.1f}, {cell.ci_high:.1f}]"


def tests_layout(table: Table) -> pd.DataFrame:
    """Differences on all questions to references and baselines, with what could have been seen at all."""
    part = table.tests[table.tests["split"] == "overall"]
    single, counts = part["mcnemar_p"].notna(), part["wins"].astype(str) + " / " + part["losses"].astype(str)
    names = {row: number or label for row, (number, label) in row_labels(table).items()}
    return pd.DataFrame(
        {
            "row": part["row"].map(names) + " against " + part["against"].map(names),
            "question set": part["dataset"].map(dataset_name),
            "difference": [f"{t.difference:+.1f} [{t.ci_low:+.1f}, {t.ci_high:+.1f}]" for t in part.itertuples()],
            "detectable": part["detectable"].map(lambda value: "" if pd.isna(value) else f"{value:.1f}"),
            "only this / only that right": counts.where(single, ""),
            "McNemar p": part["mcnemar_p"].map("{:.3g}".format).where(single, ""),
        }
    )


def markdown(table: Table) -> str:
    """The whole table as one Markdown page: what `make reproduce` prints, up to the notes, then the details."""
    parts = [f"# {heading(table)}", f"**{SCALE_NOTES[table.scale]}**", table_notes.question_sets(table)]
    parts += [f"Overall accuracy in percent: {READING}", grid(accuracies(table, ["overall"]))]
    parts += [table_notes.looking(table) if table.name == "table1" else "", table_notes.trainings(table)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in table_notes.notes(table))]
    parts += ["## Open and closed", grid(accuracies(table, ["open", "closed"]))]
    parts += ["## Differences on the same questions, of these trained models", grid(tests_layout(table))]
    if len(table.published):
        parts += ["## What the paper prints, on the real data sets", grid(published(table))]
    runs = table.cells[table.cells["run_ids"] != ""].drop_duplicates(["row", "dataset"])
    runs = runs[runs["dataset"].isin(table.datasets)][["row", "dataset", "run_ids"]]
    return "\n\n".join([part for part in parts if part] + ["## Runs", grid(runs)]) + "\n"


def grid(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table."""
    return frame.to_markdown(index=False, disable_numparse=True)


def html(frame: pd.DataFrame, kind: str = "numbers") -> str:
    """A frame as an HTML table in a box that scrolls sideways, cells in `**` bold; `kind` is the box's class."""
    safe = frame.map(lambda value: re.sub(r"^\*\*(.*)\*\*$", r"<strong>\1</strong>", _html.escape(str(value))))
    safe.columns = [_html.escape(str(column)) for column in frame.columns]
    table = safe.to_html(index=False, escape=False, border=0, na_rep="")
    return f'<div class="scroll {kind}" tabindex="0">{table}</div>'


def page(template: str, content: Mapping[str, object]) -> str:
    """One of the room's HTML templates, filled; there `frame | table` is `html`."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=loader)
    environment.filters["table"] = lambda frame, kind="numbers": Markup(html(frame, kind))
    return environment.get_template(template).render(content)


def latex(table: Table) -> str:
    """The table for LaTeX: all our accuracies, and each row's runs as comments."""
    frame = accuracies(table).set_index("row")
    style = frame.style.format(escape="latex").format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    caption = f"{heading(table)}: {SCALE_NOTES[table.scale]}. In percent: {READING} {table_notes.question_sets(table)}"
    for plain in "&%#_":
        caption = caption.replace(plain, rf"\{plain}")
    columns = "l" + "r" * frame.shape[1]
    made = style.to_latex(hrules=True, position_float="centering", caption=caption, column_format=columns)
    made = made.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")
    made = made.replace(r"\end{tabular}", r"\end{tabular}}").replace("→", r"$\to$")
    runs = [f"% row {line.row}, {line.dataset}: {' '.join(line.run_ids)}" for line in table.lines if line.run_ids]
    return "\n".join(["% needs \\usepackage{booktabs,graphicx}", *runs, made])
