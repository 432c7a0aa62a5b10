"""A collected table as a person reads it, in Markdown, HTML and LaTeX from the same frames of texts, and its files."""

from __future__ import annotations

import html as _html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from amif_lib.core import files, paths
from amif_lib.experiments import rows as experiments
from amif_lib.reporting import contrasts, table_notes, tables
from amif_lib.reporting.table_rows import CONTRASTS, PAPER_SETS, SCALE_NOTES, Selection, dataset_name, real_name
from amif_lib.reporting.tables import SPLITS, Table

Part = tuple[str, pd.DataFrame, list[str]]  # heading, frame of texts, paragraphs below it
TESTS = (
    "Between these trained models: an interval from resampling images, the smallest difference that so many images "
    "could have shown, how many questions only one of the two answers correctly, and McNemar's exact p (one training "
    "each). Another training may come out otherwise; what may be said of the method is said by the contrasts."
)
READING = "mean ± standard deviation over trainings [95% interval over images], protocol paper, closed = yes or no."


def short_name(name: str) -> str:
    return f"Table {name.removeprefix('table')}" if name.startswith("table") else name.replace("_", " ").capitalize()


def heading(table: Table) -> str:
    return f"{short_name(table.name)}: {experiments.table_settings(table.name)['title']} (SCALE={table.scale})"


def parts(table: Table) -> list[Part]:
    """What every page shows of a table; the first part, which is the result, has no heading."""
    if table.name == CONTRASTS:
        found = contrasts.readable(contrasts.contrasts(table))
        configurations = ("Accuracies of the configurations, in percent", accuracies(table), [READING])
        return [("", found, [contrasts.METHOD]), configurations]
    texts = [f"Overall accuracy in percent: {READING}", table_notes.question_sets(table), table_notes.trainings(table)]
    out = [("", accuracies(table, ["overall"]), [*filter(None, [table_notes.looking(table)]), *texts])]
    out += [("Open and closed", accuracies(table, ["open", "closed"]), [])]
    out += [("Differences on the same questions, of these trained models", differences(table), [TESTS])]
    if len(table.published):
        out.append(("What the paper prints, on the real data sets", published(table), []))
    return out


def row_labels(table: Table) -> dict[str, str]:
    """Number and label of our rows and then the baselines, by row."""
    out = {}
    for line in sorted(table.lines, key=lambda line: line.kind == "baseline"):
        numbered = line.kind == "row" and table.name in ("table2", "table3", "table4", "table5")
        out[line.row] = f"{line.row}: " * numbered + line.label + "†" * line.leaks + " (extra)" * line.extra
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
    wide.insert(0, "row", [labels[row] for row in wide.index])
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


def differences(table: Table) -> pd.DataFrame:
    """Differences on all questions to references and baselines, with what could have been seen at all."""
    part = table.tests[table.tests["split"] == "overall"]
    single, counts = part["mcnemar_p"].notna(), part["wins"].astype(str) + " / " + part["losses"].astype(str)
    names = {row: row if label.startswith(f"{row}: ") else label for row, label in row_labels(table).items()}
    return pd.DataFrame(
        {
            "row": part["row"].map(names) + " against " + part["against"].map(names),
            "question set": part["dataset"].map(dataset_name),
            "difference": [f"{t.difference:+.1f} [{t.ci_low:+.1f}, {t.ci_high:+.1f}]" for t in part.itertuples()],
            "detectable": part["detectable"].map("{:.1f}".format).where(part["detectable"].notna(), ""),
            "only this / only that right": counts.where(single, ""),
            "McNemar p": part["mcnemar_p"].map("{:.3g}".format).where(single, ""),
        }
    )


def markdown(table: Table) -> str:
    """The whole table as one Markdown page, result first."""
    out = [f"# {heading(table)}", f"**{SCALE_NOTES[table.scale]}**"]
    out += [contrasts.sentence(contrasts.contrasts(table))] if table.name == CONTRASTS else []
    for title, frame, texts in parts(table):
        out += [f"## {title}"] if title else []
        out += [grid(frame), *texts]
    runs = table.cells[table.cells["dataset"].isin(table.datasets) & (table.cells["run_ids"] != "")]
    runs = runs.drop_duplicates(["row", "dataset"])[["row", "dataset", "run_ids"]]
    notes = "\n".join(f"- {note}" for note in table_notes.notes(table))
    return "\n\n".join([*out, "## Notes", notes, "## Runs", grid(runs)]) + "\n"


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


# --- files ---


def write(name: str, scale: str, selection: Selection | None = None) -> list[Path]:
    """Write `results/<scale>/tables/<name>.csv`, `_tests.csv`, `_seeds.csv`, `.md` and `.tex`; returns their paths.

    The table `contrasts` has the contrasts in its `.csv` and `.md`, and `_seeds.csv`.
    """
    return store(tables.collect(name, scale, selection), always=True)


def store(table: Table, always: bool = False) -> list[Path]:
    """Write a collected table's files; one that holds the same text is left alone, unless `always` (workflows go by
    time). Nothing of the kit reads numbers back from them."""
    texts = {"_seeds.csv": _csv(table.seeds), ".md": markdown(table)}
    if table.name == CONTRASTS:
        texts = {".csv": _csv(contrasts.contrasts(table), "%.6g"), **texts}
    else:
        texts = {".csv": _csv(table.cells), "_tests.csv": _csv(table.tests, "%.6g"), **texts, ".tex": latex(table)}
    written = [paths.scale_dir(table.scale) / "tables" / f"{table.name}{ending}" for ending in texts]
    for path, text in zip(written, texts.values(), strict=True):
        if always or not path.is_file() or path.read_bytes() != text.encode():
            files.write_text(path, text)
    return written


def _csv(frame: pd.DataFrame, form: str = "%.4f") -> str:
    return frame.to_csv(index=False, float_format=form, lineterminator="\n")
