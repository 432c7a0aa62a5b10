"""One self-contained page per scale: what was run, what came out beside the paper, and under which conditions."""

from __future__ import annotations

import base64
import io
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, StrictUndefined
from PIL import Image

from amif_lib.core import files, paths
from amif_lib.experiments import stored as results
from amif_lib.experiments.stored import Run
from amif_lib.reporting import figures, layout, table_figures, table_notes, table_tests, tables
from amif_lib.reporting.report_facts import (
    STAGES,
    as_html,
    checklist,
    cost,
    provenance,
    run_table,
    settings_that_differ,
    statistics_of,
)
from amif_lib.reporting.table_rows import PROTOCOLS, SCALE_NOTES, dataset_name, planned_tables, required_runs
from amif_lib.scoring import protocols

__all__ = ["cost", "planned_tables", "settings_that_differ", "write"]

TEMPLATE = paths.PACKAGE / "reporting" / "report.html.j2"
VERDICTS = {
    True: "Replication verdicts are given: real data, full test sets.",
    False: "Whether a claim of the paper holds is not tested at this scale; the paper's numbers are for orientation.",
}
FIRST = ("fig4", "fig5", "fig6", "map_scores", "training_curves")  # figures in this order, then the others by name
PIXELS = 1500  # widest embedded picture


def write(scale: str) -> Path:
    """Write `results/<scale>/report.html` with its tables and figures from stored runs, and return its path.

    The page needs no script and no other file: pictures are embedded, only links lead outside (to run folders, by
    relative path). Under FROM=reference the runs are the committed ones and the page goes to
    `results/from_reference/<scale>/`. Raises InputError where a table that the scale's plan names lacks runs.
    """
    from amif_lib.reporting import figure_set

    folder = paths.scale_dir(scale)
    drawing = [] if figure_set.is_current(scale) else [figure_set.start(scale)]  # beside the tables, on another core
    try:
        return _write(scale, folder, drawing)
    finally:
        for process in drawing:
            if process.poll() is None:  # a table could not be made
                process.kill()
                process.wait()


def _write(scale: str, folder: Path, drawing: list[subprocess.Popen]) -> Path:
    from amif_lib.reporting import claims, figure_set

    whole = [tables.collect(name, scale) for name in planned_tables(scale)]
    head = _headline(scale, whole)
    for table in whole:
        tables.store(table)
    runs = _all_runs([*whole, *([head] if head else [])])
    figures.use_style()
    if head:  # of the other tables the page has the numbers alone
        _draw_accuracy(head, folder)
    for table in whole:  # drawn by the tables' notebooks, which FROM=reference does without
        if paths.from_reference() or not (folder / "figures" / f"accuracy_{table.name}.png").is_file():
            table_figures.save(table)
    if not drawing and not figure_set.is_current(scale):  # the tables were made anew: other runs
        drawing.append(figure_set.start(scale))
    for process in drawing:
        figure_set.finish(scale, process)
    said = claims.table(scale, known={table.name: table for table in whole})
    claims.write(scale, said)
    content = {
        "scale": scale,
        "scale_note": SCALE_NOTES[scale],
        "verdict_note": VERDICTS[scale in ("base", "paper")],
        "origin_notes": _origin_notes(runs),
        "code_notes": [],
        "headline": _section(head) if head else None,
        "overview": as_html(overview(whole)) if len(whole) > 1 else None,
        "overview_note": f"In percent: {layout.READING}.",
        "tables": [_section(table) for table in whole if table.name != "table1"],
        "figures": (shown := _figures(folder))[0],
        "accuracy_figures": shown[1],
        "claims": as_html(claims.layout(said), "words"),
        "claims_reading": claims.READING.replace("*", ""),
        "n_claims": int(said["claim"].nunique()),
        "holm": table_tests.HOLM,
        "protocols": [protocols.PROTOCOLS[name] for name in PROTOCOLS],
        "teacher": statistics_of(runs, "teacher"),
        "collapse": statistics_of(runs, "collapse"),
        "settings": as_html(settings_that_differ(scale), "words"),
        "n_runs": {STAGES[stage]: sum(run.spec.stage == stage for run in runs) for stage in STAGES},
        "runs": run_table(runs, folder),
        "provenance": provenance(runs),
        "cost": as_html(cost(runs)),
        "checklist": checklist(scale, whole, runs),
    }
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(content)
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def _headline(scale: str, whole: list[tables.Table]) -> tables.Table | None:
    """The headline table, where its runs are among the finished ones (other tables contain them as a row)."""
    if found := next((table for table in whole if table.name == "table1"), None):
        return found
    return None if results.missing(required_runs("table1", scale)) else tables.collect("table1", scale)


def _origin_notes(runs: list[Run]) -> list[str]:
    """Under FROM=reference: whose runs these are."""
    if not paths.from_reference():
        return []
    out = ["Made from the runs that are committed in results/reference/ (FROM=reference), not from runs of this machine. "
           "Their training histories are means over blocks of steps."]  # fmt: skip
    return out


def _all_runs(whole: list[tables.Table]) -> list[Run]:
    """Every run behind the tables, pre-training first, each once."""
    found: dict[str, Run] = {}
    for table in whole:
        for run in list(table.runs.values()):
            if run.run_id in found:
                continue
            for spec in run.spec.lineage()[:-1]:
                if results.is_finished(spec):
                    found.setdefault(spec.run_id, results.load_run(spec))
            found[run.run_id] = run
    return sorted(found.values(), key=lambda run: list(STAGES).index(run.spec.stage))


# --- tables ---


def overview(whole: list[tables.Table]) -> pd.DataFrame:
    """All rows of all tables: overall accuracy under the protocol `paper`, per question set and on average, in percent."""
    frames = [layout.marked(*layout.accuracies(table, ["overall"])) for table in whole]
    for table, frame in zip(whole, frames, strict=True):
        frame.insert(0, "table", layout.short_name(table.name))
    return pd.concat(frames, ignore_index=True).fillna("")


def _section(table: tables.Table) -> dict[str, Any]:
    written = [f"tables/{table.name}{ending}" for ending in tables.FILES]
    return {
        "name": table.name,
        "short": layout.short_name(table.name),
        "title": layout.heading(table),
        "question_sets": table_notes.question_sets(table),
        "compact": as_html(layout.marked(*layout.accuracies(table, ["overall"]))) if len(table.datasets) > 1 else None,
        "compact_note": f"In percent: {layout.READING}.",
        "bold": table_notes.bold(table),
        "paper": as_html(layout.marked(*layout.accuracies(table))),
        "definitions": [
            (dataset_name(dataset), as_html(layout.both_definitions(table, dataset))) for dataset in table.datasets
        ],
        "supported": table_notes.supported_differences(table),
        "seeds": as_html(layout.each_run(table)),
        "tests": as_html(layout.tests_layout(table)),
        "notes": table_notes.notes(table),
        "files": [path for path in written if (paths.scale_dir(table.scale) / path).is_file()],
    }


# --- figures ---


def _draw_accuracy(table: tables.Table, folder: Path) -> None:
    for dataset in table.datasets:
        figure = figures.accuracy_plot(table.cells, dataset)
        name = folder / "figures" / f"accuracy_{table.name}_{dataset}"
        figures.save(figure, name, figures.accuracy_data(table.cells, dataset), table_figures.caption(table))
        plt.close(figure)


def _figures(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Every figure of the scale for embedding: those to show, and the accuracy figures, which repeat the tables."""

    def place(path: Path) -> tuple[int, str]:
        return next((n for n, start in enumerate(FIRST) if path.stem.startswith(start)), len(FIRST)), path.stem

    found = sorted((folder / "figures").glob("*.png"), key=place)
    repeated = [path for path in found if path.stem.startswith("accuracy_") and path.stem.split("_")[1] != "by"]
    return tuple([_embedded(path) for path in found if (path in repeated) is wanted] for wanted in (False, True))


def _embedded(picture: Path) -> dict[str, str]:
    caption = picture.with_suffix(".txt")
    data, width, height = small_png(picture)
    return {
        "data": base64.b64encode(data).decode(),
        "width": str(width),
        "height": str(height),
        "caption": caption.read_text(encoding="utf-8").strip() if caption.is_file() else picture.stem.replace("_", " "),
        "csv": f"figures/{picture.stem}.csv" if picture.with_suffix(".csv").is_file() else "",
        "svg": f"figures/{picture.stem}.svg" if picture.with_suffix(".svg").is_file() else "",
    }


def small_png(picture: Path) -> tuple[bytes, int, int]:
    """A PNG's bytes at most `PIXELS` wide, with a palette of 256 colours where that is smaller, and its size on the page.

    The size is in CSS pixels: 110 to the inch that the figure was drawn for, so that its letters are as large as the page's.
    """
    with Image.open(picture) as opened:
        inches = opened.width / opened.info.get("dpi", (200, 200))[0]
        image = opened.convert("RGB")
    width, ratio = round(110 * inches), image.height / image.width
    scaled = image.width > PIXELS
    if scaled:
        image = image.resize((PIXELS, round(PIXELS * ratio)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(out, format="PNG", optimize=True)
    small = scaled or out.tell() < picture.stat().st_size
    return out.getvalue() if small else picture.read_bytes(), width, round(width * ratio)
