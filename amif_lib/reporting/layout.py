"""Collected tables for reading: frames of texts as Markdown, HTML and LaTeX, and their files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from amif_lib.core import files, paths
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.reporting import contrasts, tables
from amif_lib.reporting.table_rows import PAPER_SETS, SCALE_NOTES, dataset_name, real_name
from amif_lib.reporting.tables import SPLITS, Table
from amif_lib.scoring import protocols

TableSection = tuple[str, pd.DataFrame, list[str]]  # heading, frame of texts, paragraphs below it
WITHOUT_ITS_IMAGE = {"question_only": "trained on blank images", "shuffled_at_test": "shown another case's image"}
READING = "mean ± standard deviation over trainings [95% interval over images/cases], protocol paper, closed = yes/no."
TESTS = (
    "Intervals from resampling images (cases where a set has them), and the smallest true difference whose interval "
    "leaves out 0 in 80% of repetitions. Another training may differ; the contrasts say what holds of the method."
)


def short_name(name: str) -> str:
    """A table's name for readers: `Table 1` for `table1`."""
    return f"Table {name.removeprefix('table')}" if name.startswith("table") else name.replace("_", " ").capitalize()


def heading(table: Table) -> str:
    """A table's name, title and scale."""
    return f"{short_name(table.name)}: {experiments.table_settings(table.name)['title']} (SCALE={table.scale})"


def parts(table: Table) -> list[TableSection]:
    """The parts of a table that every page shows; the first one, the result, has no heading."""
    if experiments.is_judged(table.name):
        found = contrasts.readable(contrasts.contrasts(table))
        configurations = ("Accuracies of the configurations, in percent", accuracies(table), [READING])
        return [("", found, [contrasts.METHOD]), configurations]
    texts = [full_model(table), f"Overall accuracy in percent: {READING}", question_sets(table), trainings(table)]
    out = [("", accuracies(table, ["overall"]), list(filter(None, texts)))]
    out += [("Open and closed", accuracies(table, ["open", "closed"]), [])]
    out += [("Differences on the same questions, of these trained models", differences(table), [TESTS])]
    if len(table.published):
        out.append(("What the paper prints, on the real data sets", published(table), []))
    return out


# --- what a reader must know, in sentences ---


def full_model(table: Table) -> str:
    """The full model's accuracy, also with a blank image and with another case's; empty if no row is the full model."""
    dataset = tables.average_name(table.lines) if len(table.datasets) > 1 else table.datasets[0]
    cells = table.cells.query("protocol == 'paper' and split == 'overall' and dataset == @dataset")
    texts = {cell.row: _accuracy(cell) for cell in cells.itertuples()}
    heads = {line.row: line for line in table.lines if line.entry and line.headline and line.row in texts}
    out = []
    for row, line in heads.items():
        which = f" ({line.label})" if len(heads) > 1 else ""
        said = f"The full model{which} answers {texts[row]} percent of the test questions"
        for kind, how in WITHOUT_ITS_IMAGE.items():
            if text := texts.get(f"{kind}:{line.headline}"):
                said += f", {how} {text}"
        changed = [other.changed for other in table.lines if other.row == f"shuffled_at_test:{line.headline}"]
        said += f"; {100 * sum(changed) / len(changed):.0f}% of its answers change with the image" if changed else ""
        out.append(f"{said} ({dataset_name(dataset)}).")
    return " ".join(out)


def question_sets(table: Table) -> str:
    """The question sets with their numbers of test questions."""
    counts = table.cells[table.cells["split"] == "overall"].groupby("dataset")["n_questions"].first()
    return f"Test questions: {', '.join(f'{dataset_name(name)} {counts[name]:,}' for name in table.datasets)}."


def trainings(table: Table) -> str:
    """How many trainings the rows are means over, and which variation their intervals cover."""
    counts = {len(line.runs) for line in table.lines if line.entry}
    said = "The intervals hold the choice of test images or cases and not the spread between trainings"
    if counts == {1}:
        return f"Teaching run: each row was trained once. {said}, so differences say nothing about the method."
    few = " Rows of one training are for orientation only." if 1 in counts else ""
    return f"Rows are means over the trainings in their second column, ± their standard deviation. {said}.{few}"


def notes(table: Table) -> list[str]:
    """What a reader must know to read the numbers, one paragraph each."""
    out = [f"Scale: {SCALE_NOTES[table.scale]}."]
    out += [f"Protocol {p.title}: {p.note}" for p in (protocols.PROTOCOLS["paper"], protocols.PROTOCOLS["strict"])]
    for dataset in table.datasets:
        known = tables.known_answers(table.scale, dataset, table.runs)
        reached = protocols.score(known["vocabulary_ceiling"], None, protocols.PROTOCOLS["generate"])["correct"].mean()
        if reached < 1:
            said = f"no method that answers with training answers can pass {100 * reached:.1f}%."
            out.append(f"{dataset_name(dataset)}: {said}")
    if any(line.leaks for line in table.lines):
        out.append("† trained on a file that holds test answers; never shown under strict.")
    for line in (line for line in table.lines if line.entry):
        metrics = stored.load_run(line.runs[0]).metrics
        if left_out := metrics.get("knowledge_texts_left_out"):
            said = f"has no room for {left_out} of {metrics['knowledge_texts']} training answers or words, the rarest"
            out.append(f"{dataset_name(line.dataset)}: the knowledge of row {line.row} {said}.")
    return out


# --- frames of texts ---


def row_labels(table: Table) -> dict[str, str]:
    """Number and label of our rows and then the baselines, by row."""
    numbered = table.name in ("table2", "table3", "table4", "table5")
    out = {}
    for line in sorted(table.lines, key=lambda line: line.entry is None):
        extra = bool(line.entry and line.entry.extra)
        number = f"{line.row}: " * bool(line.entry and numbered)
        out[line.row] = f"{number}{line.label}{'†' * line.leaks}{' (extra)' * extra}"
    return out


def accuracies(table: Table, splits: Sequence[str] = SPLITS) -> pd.DataFrame:
    """Accuracies of our rows and the baselines under the protocol `paper` as texts, the average first.

    Columns: `row`, `trainings` (their number), then a column per question set and split.
    """
    cells = table.cells[(table.cells["protocol"] == "paper") & table.cells["split"].isin(splits)]
    cells = cells.assign(text=[_accuracy(cell) for cell in cells.itertuples()])
    labels = row_labels(table)
    wide = _by_set(cells, "text", [row for row in labels if row in set(cells["row"])])
    counts = {row: sorted({len(line.runs) for line in table.lines if line.row == row} - {0}) for row in wide.index}
    wide.insert(0, "trainings", [" to ".join(dict.fromkeys(map(str, own[:1] + own[-1:]))) for own in counts.values()])
    wide.insert(0, "row", [labels[row] for row in wide.index])
    return wide.reset_index(drop=True)


def published(table: Table) -> pd.DataFrame:
    """The paper's own numbers of this table, on the real data sets."""
    cells = table.published.assign(text=table.published["value"].map("{:.2f}".format))
    wide = _by_set(cells, "text", list(cells["row"].unique()))
    labels = cells.drop_duplicates("row").set_index("row")["label"]
    wide.insert(0, "row", [labels[row] if table.name == "table1" else f"{row}: {labels[row]}" for row in wide.index])
    return wide.reset_index(drop=True)


def _by_set(cells: pd.DataFrame, values: str, rows: list[str]) -> pd.DataFrame:
    """Cells as `rows` by question set and split; the average first, one split's name left out."""
    wide = cells.pivot(index="row", columns=["dataset", "split"], values=values).reindex(rows).fillna("")
    known = [*PAPER_SETS, *cells["dataset"].map(real_name).unique()]
    order = {name: (not name.startswith("avg"), known.index(real_name(name))) for name in cells["dataset"]}
    wide = wide[sorted(wide.columns, key=lambda column: (order[column[0]], SPLITS.index(column[1])))]
    several = cells["split"].nunique() > 1
    wide.columns = [f"{dataset_name(name)} {split}" if several else dataset_name(name) for name, split in wide.columns]
    return wide


def _accuracy(cell: object) -> str:
    spread = "" if pd.isna(cell.ours_sd) else f" ± {cell.ours_sd:.1f}"
    return f"{cell.ours:.1f}{spread} [{cell.ci_low:.1f}, {cell.ci_high:.1f}]"


def differences(table: Table) -> pd.DataFrame:
    """Differences of overall accuracy to references and baselines, beside the smallest detectable ones, as texts."""
    part, labels = table.tests[table.tests["split"] == "overall"], row_labels(table)
    return pd.DataFrame(
        {
            "row": part["row"].map(labels) + " against " + part["against"].map(labels),
            "question set": part["dataset"].map(dataset_name),
            "difference": [f"{t.difference:+.1f} [{t.ci_low:+.1f}, {t.ci_high:+.1f}]" for t in part.itertuples()],
            "detectable": part["detectable"].map("{:.1f}".format).where(part["detectable"].notna(), ""),
        }
    )


# --- pages and files ---


def markdown(table: Table) -> str:
    """The whole table as one Markdown page, result first."""
    out = [f"# {heading(table)}", f"**{SCALE_NOTES[table.scale]}**"]
    out += [contrasts.sentence(contrasts.contrasts(table))] if experiments.is_judged(table.name) else []
    for title, frame, texts in parts(table):
        out += [f"## {title}"] if title else []
        out += [frame.to_markdown(index=False, disable_numparse=True), *texts]
    return "\n\n".join([*out, "## Notes", "\n".join(f"- {note}" for note in notes(table))]) + "\n"


def html(frame: pd.DataFrame, kind: str = "numbers") -> str:
    """A frame as an HTML table in a box that scrolls sideways; `kind` is the box's class."""
    return f'<div class="scroll {kind}" tabindex="0">{frame.to_html(index=False, border=0)}</div>'


def page(template: str, content: Mapping[str, object]) -> str:
    """Fill one of the HTML templates in this folder; in them the filter `table` is `html`."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=loader)
    environment.filters["table"] = lambda frame, kind="numbers": Markup(html(frame, kind))
    return environment.get_template(template).render(content)


def latex(table: Table) -> str:
    """All our accuracies for LaTeX with the package booktabs."""
    caption = f"{heading(table)}: {SCALE_NOTES[table.scale]}. In percent: {READING} {question_sets(table)}"
    style = accuracies(table).set_index("row").style.format(escape="latex")
    style = style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    caption = re.sub(r"([&%#_])", r"\\\1", caption)
    return style.to_latex(hrules=True, position_float="centering", caption=caption).replace("→", r"$\to$")


def write(table: Table) -> list[Path]:
    """Write `results/<scale>/tables/<name>.csv`, `_tests.csv`, `_seeds.csv`, `.md` and `.tex`; returns their paths.

    A table that names contrasts has them in its `.csv` and `.md`, and `_seeds.csv`. A file is not written again if its
    text is the same, so that workflows, which go by time stamps, see no change.
    """
    texts = {"_seeds.csv": _csv(table.seeds), ".md": markdown(table)}
    if experiments.is_judged(table.name):
        texts = {".csv": _csv(contrasts.contrasts(table), "%.6g"), **texts}
    else:
        texts = {".csv": _csv(table.cells), "_tests.csv": _csv(table.tests, "%.6g"), **texts, ".tex": latex(table)}
    written = [paths.scale_dir(table.scale) / "tables" / f"{table.name}{ending}" for ending in texts]
    for path, text in zip(written, texts.values(), strict=True):
        if not path.is_file() or path.read_bytes() != text.encode():
            files.write_text(path, text)
    return written


def _csv(frame: pd.DataFrame, form: str = "%.4f") -> str:
    return frame.to_csv(index=False, float_format=form, lineterminator="\n")
