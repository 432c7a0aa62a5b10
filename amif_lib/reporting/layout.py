"""A collected table as a person reads it, in Markdown, HTML and LaTeX from the same frames."""

from __future__ import annotations

import html as _html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from amif_lib.experiments import rows as experiments
from amif_lib.reporting.table_notes import bold, notes, question_sets, supported_differences
from amif_lib.reporting.table_rows import SCALE_NOTES, dataset_name, is_baseline, is_synthetic, real_name
from amif_lib.reporting.table_tests import supported_cells
from amif_lib.reporting.tables import SPLITS, Table


def short_name(name: str) -> str:
    return f"Table {name.removeprefix('table')}" if name.startswith("table") else name.replace("_", " ").capitalize()


def heading(table: Table) -> str:
    return f"{short_name(table.name)}: {experiments.table_settings(table.name)['title']} (SCALE={table.scale})"


def accuracies(table: Table, splits: Sequence[str] = SPLITS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracies under the protocol `paper` as texts, and which of them are bold: two frames of one shape.

    Rows as in the paper (in Table 1 other people's methods first, with their printed numbers alone), then the
    baselines; no published number stands beside a synthetic score. Columns (question set, split): the average first,
    and of `splits` those that the paper prints.
    """
    cells = table.cells[(table.cells["protocol"] == "paper") & table.cells["split"].isin(splits)]
    sets = sorted(cells["dataset"].unique(), key=lambda name: not name.startswith("avg"))
    printed = table.published.assign(dataset=table.published["dataset"].map({real_name(name): name for name in sets}))
    known = set(zip(printed["dataset"], printed["split"], strict=True))
    columns = [(name, split) for name in sets for split in splits if split == "overall" or (name, split) in known]
    labels = row_labels(table)
    if synthetic(table):
        cells, printed = cells.assign(paper=np.nan, delta=np.nan), printed.iloc[:0]
    texts = pd.DataFrame("", index=list(labels), columns=pd.MultiIndex.from_tuples(columns))
    strong = texts.ne("")
    for cell in printed.itertuples():
        if cell.row in labels and (cell.dataset, cell.split) in columns and table.name == "table1":
            texts.loc[cell.row, (cell.dataset, cell.split)] = f"- / {cell.value:.2f}"
    for cell in cells.itertuples():
        if (cell.dataset, cell.split) in columns:
            texts.loc[cell.row, (cell.dataset, cell.split)] = _accuracy(cell)
    for row, dataset, split in supported_cells(table.tests, table.lines):
        if (dataset, split) in columns:
            strong.loc[row, (dataset, split)] = True
    names = [(dataset_name(name), split) for name, split in columns]
    flat = [split if len(sets) == 1 else name for name, split in names]
    texts.columns = strong.columns = flat if len(set(flat)) == len(flat) else pd.MultiIndex.from_tuples(names)
    texts.index = strong.index = pd.MultiIndex.from_tuples(labels.values(), names=["#", "row"])
    return texts, strong


def synthetic(table: Table) -> bool:
    """Whether the table is of generated data, with which no published number can be compared."""
    return any(map(is_synthetic, table.datasets))


def reading(table: Table) -> str:
    """What a cell of `accuracies` holds."""
    ours = "ours ± standard deviation over the runs [95% interval]"
    return ours if synthetic(table) else f"{ours} / the paper's number (difference, where like for like)"


def row_labels(table: Table) -> dict[str, tuple[str, str]]:
    """Number and label by row, in the order of `accuracies`."""
    own, out = {line.paper_row for line in table.lines}, {}
    if table.name == "table1" and not synthetic(table):
        others = table.published[~table.published["row"].isin(own)].drop_duplicates("row")
        out = {cell.row: ("", f"{cell.label} [{cell.citation}]") for cell in others.itertuples()}
    leaking = {line.row for line in table.lines if line.leaks}
    for line in sorted(table.lines, key=lambda line: line.kind == "baseline"):
        number = "" if line.kind == "baseline" else "ours" if table.name == "table1" else line.row
        out[line.row] = (number, line.label + "†" * (line.row in leaking) + " (extra)" * line.extra)
    return out


def _accuracy(cell: object) -> str:
    spread = "" if pd.isna(cell.ours_sd) else f" ± {cell.ours_sd:.1f}"
    paper = "" if pd.isna(cell.paper) else f" / {cell.paper:.2f}"
    delta = "" if pd.isna(cell.delta) else f" ({cell.delta:+.2f})"
    return f"{cell.ours:.1f}{spread} [{cell.ci_low:.1f}, {cell.ci_high:.1f}]{paper}{delta}"


def both_definitions(table: Table, dataset: str) -> pd.DataFrame:
    """Every protocol, split and definition of closed for one question set; a protocol alone splits by yes and no."""
    cells = table.cells[table.cells["dataset"] == dataset]
    titles = cells["protocol"] + ", " + cells["split"] + " (n = " + cells["n_questions"].astype(str) + ")"
    cells = cells.assign(
        title=titles, text=[_accuracy(cell) for cell in cells.assign(paper=np.nan, delta=np.nan).itertuples()]
    )
    names = [
        label if is_baseline(row) else f"{row}: {label}"
        for row, label in zip(cells["row"], cells["label"], strict=True)
    ]
    wide = cells.assign(row=names).pivot(index="row", columns="title", values="text").fillna("")
    return wide.loc[list(dict.fromkeys(names)), titles.unique()].reset_index().rename_axis(None, axis=1)


def each_run(table: Table) -> pd.DataFrame:
    """Each run's overall accuracy under the protocol `paper`, in the order of seeds."""
    part = table.seeds.query("protocol == 'paper' and split == 'overall'")
    part = part.assign(text=part["ours"].map("{:.2f}".format), set=part["dataset"].map(dataset_name))
    wide = part.groupby(["row", "label", "set"], sort=False)["text"].agg(", ".join).unstack(sort=False)
    return wide.fillna("").reset_index().rename_axis(None, axis=1)


def tests_layout(table: Table) -> pd.DataFrame:
    """The paired tests on all questions, protocol `paper` first."""
    part = table.tests[table.tests["split"] == "overall"].sort_values("protocol", kind="stable")
    gap = [f"{t.difference:+.2f} [{t.ci_low:+.2f}, {t.ci_high:+.2f}]" for t in part.itertuples()]
    return pd.DataFrame(
        {
            "row": part["row"],
            "question set": part["dataset"].map(dataset_name),
            "protocol": part["protocol"],
            "against": part["against"].where(part["kind"] == "reference", part["against_label"]),
            "difference": gap,
            "only this right / only that right": part["wins"].where(
                part["wins"] == "", part["wins"] + " / " + part["losses"]
            ),
            "McNemar p": part["mcnemar_p"],
            "bootstrap p": part["bootstrap_p"].map("{:.3g}".format),
            "p after Holm": part["p_holm"].map("{:.3g}".format),
            "replication": part["replication"],
        }
    )


def markdown(table: Table) -> str:
    """The whole table as one Markdown page: what `make reproduce` prints, up to the notes, then the details."""
    parts = [f"# {heading(table)}", f"**{SCALE_NOTES[table.scale]}**", question_sets(table)]
    parts += [
        f"## Overall accuracy, protocol paper\n\nIn percent: {reading(table)}.",
        grid(marked(*accuracies(table, ["overall"]))),
    ]
    parts += [bold(table), supported_differences(table), "## Notes", "\n".join(f"- {note}" for note in notes(table))]
    if set(table.published["split"]) > {"overall"}:
        parts += ["## Open and closed", grid(marked(*accuracies(table)))]
    for dataset in table.datasets:
        parts += [f"## {dataset_name(dataset)}, both definitions of closed", grid(both_definitions(table, dataset))]
    parts += ["## Each run, overall accuracy, protocol paper", grid(each_run(table)), "## Paired tests, all questions"]
    parts += [grid(tests_layout(table)) if len(table.tests) else "None in this selection.", "## Runs"]
    runs = table.cells[table.cells["run_ids"] != ""].drop_duplicates(["row", "dataset"])
    return "\n\n".join([*parts, grid(runs[["row", "dataset", "run_ids"]])]) + "\n"


def marked(texts: pd.DataFrame, strong: pd.DataFrame) -> pd.DataFrame:
    """A plain frame of `accuracies` for Markdown and HTML: row names as columns, bold cells in asterisks."""
    frame = texts.mask(strong, "**" + texts + "**").reset_index()
    frame.columns = [" ".join(filter(None, name)) if isinstance(name, tuple) else name for name in frame.columns]
    return frame


def grid(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table."""
    return frame.to_markdown(index=False, disable_numparse=True)


def html(frame: pd.DataFrame, kind: str = "numbers") -> str:
    """A frame as an HTML table in a box that scrolls sideways, cells in `**` bold; `kind` is the box's class."""
    safe = frame.map(lambda value: re.sub(r"^\*\*(.*)\*\*$", r"<strong>\1</strong>", _html.escape(str(value))))
    safe.columns = [_html.escape(str(column)) for column in frame.columns]
    return f'<div class="scroll {kind}">{safe.to_html(index=False, escape=False, border=0, na_rep="")}</div>'


def page(template: str, content: Mapping[str, object]) -> str:
    """One of the room's HTML templates, filled; there `frame | table` is `html`."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=loader)
    environment.filters["table"] = lambda frame, kind="numbers": Markup(html(frame, kind))
    return environment.get_template(template).render(content)


def latex(table: Table) -> str:
    """The table for LaTeX: all accuracies that the paper prints, with ours, and each row's runs."""
    texts, strong = accuracies(table)
    strong, texts = strong.rename_axis([r"\#", "row"]), texts.rename_axis([r"\#", "row"])
    style = texts.style.format(escape="latex").format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    style = style.apply(lambda _: np.where(strong, "textbf:--rwrap", ""), axis=None)
    caption = f"{heading(table)}: {SCALE_NOTES[table.scale]}. {reading(table).capitalize()}. "
    caption += f"{question_sets(table)} {bold(table)} "
    for plain in "&%#_":
        caption = caption.replace(plain, rf"\{plain}")
    made = style.to_latex(
        hrules=True, sparse_index=False, multicol_align="c", position_float="centering", caption=caption.strip(),
        column_format="ll" + "r" * texts.shape[1],
    )  # fmt: skip
    made = made.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")
    made = made.replace(r"\end{tabular}", r"\end{tabular}}").replace("→", r"$\to$")
    runs = [f"% row {line.row}, {line.dataset}: {' '.join(line.run_ids)}" for line in table.lines if line.run_ids]
    return "\n".join(["% needs \\usepackage{booktabs,graphicx,multirow}", *runs, made])
