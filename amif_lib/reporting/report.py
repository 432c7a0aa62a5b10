"""One self-contained page per scale: what was run, what came out beside the paper, and under which conditions."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from amif_lib.core import files, paths
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.experiments.identity import data_sets, settings_read
from amif_lib.experiments.stored import Run
from amif_lib.reporting import claims, figure_set, figures, layout, table_figures, table_notes, table_tests, tables
from amif_lib.reporting.table_rows import PROTOCOLS, SCALE_NOTES, Selection, dataset_name, planned_tables
from amif_lib.scoring import protocols, statistics

STAGES = {"stage1": "stage 1", "stage2": "stage 2", "finetune": "fine-tuning"}
FIRST = ("fig4", "fig5", "fig6", "map_scores", "training_curves")  # figures in this order, then the others by name


def write(scale: str) -> Path:
    """Write `results/<scale>/report.html` with its tables and figures from stored runs, and return its path.

    The page needs no script and no other file: pictures are embedded, only links lead outside (to run folders, by
    relative path). Under FROM=reference the runs are the committed ones and the page goes to
    `results/from_reference/<scale>/`. Raises InputError where a table that the scale's plan names lacks runs.
    """
    folder = paths.scale_dir(scale)
    collected = [tables.collect(name, scale) for name in planned_tables(scale)]
    figures.use_style()
    for table in collected:
        tables.store(table)
        table_figures.save(table)
    figure_set.draw_all(scale, allow_none=True)
    said = claims.table(scale, known={table.name: table for table in collected})
    claims.write(scale, said)
    runs = all_runs(collected)
    sets = sorted({name for run in runs for name in data_sets(run.spec)})
    content = {
        "scale": scale,
        "scale_note": SCALE_NOTES[scale],
        "real": scale in ("base", "paper"),
        "from_reference": paths.from_reference(),
        "commits": sorted({run.commit[:12] + run.commit[40:] for run in runs}),
        "reading": layout.reading(collected[0]),
        "headline": next((section(table) for table in collected if table.name == "table1"), None),
        "tables": [section(table) for table in collected if table.name != "table1"],
        "figures": pictures(folder / "figures"),
        "claims": claims.layout(said),
        "claims_reading": claims.READING.replace("*", ""),
        "holm": table_tests.HOLM,
        "protocols": [protocols.PROTOCOLS[name] for name in PROTOCOLS],
        "teacher": logged(runs, "teacher"),
        "collapse": logged(runs, "collapse"),
        "settings": settings_that_differ(scale),
        "runs": [(run, STAGES[run.spec.stage], os.path.relpath(run.directory, folder)) for run in runs],
        "n_runs": Counter(STAGES[run.spec.stage] for run in runs),
        "provenance": provenance(runs),
        "cost": cost(runs),
        "manifests": [manifests.load(name) for name in sets],
        "hidden": sorted({name for name in sets for kind in manifests.KINDS if not manifests.may_show(name, kind)}),
        "seeds": np.max([table_notes.seed_counts(table.lines) for table in collected], axis=0).tolist(),
        "draws": statistics.DRAWS,
    }
    files.write_text(folder / "report.html", layout.page("report.html.j2", content))
    return folder / "report.html"


def all_runs(collected: Sequence[tables.Table]) -> list[Run]:
    """Every finished run behind the tables, pre-training first, each once."""
    specs = {spec.run_id: spec for table in collected for run in table.runs.values() for spec in run.spec.lineage()}
    runs = [stored.load_run(spec) for spec in specs.values() if stored.is_finished(spec)]
    return sorted(runs, key=lambda run: list(STAGES).index(run.spec.stage))


def section(table: tables.Table) -> dict[str, Any]:
    """What the page shows of a table."""
    files_of = [f"tables/{table.name}{ending}" for ending in tables.FILES]
    return {
        "name": table.name,
        "title": layout.heading(table),
        "short": layout.short_name(table.name),
        "notes": [table_notes.question_sets(table), table_notes.bold(table), table_notes.supported_differences(table)],
        "overall": layout.marked(*layout.accuracies(table, ["overall"])),
        "whole": layout.marked(*layout.accuracies(table)),
        "details": {dataset_name(name): layout.both_definitions(table, name) for name in table.datasets},
        "seeds": layout.each_run(table),
        "tests": layout.tests_layout(table),
        "reading": table_notes.notes(table),
        "files": [path for path in files_of if (paths.scale_dir(table.scale) / path).is_file()],
    }


def pictures(folder: Path) -> list[dict[str, Any]]:
    """Every figure of the scale for embedding, with its size in CSS pixels: 110 to the inch that it was drawn for.

    Under FROM=reference, what only notebooks draw is the committed copy. Figures of tables repeat what the tables say
    (`repeats`).
    """
    places = (paths.scale_source(folder.parent.name) / "figures", folder)
    found = {path.stem: path for place in places for path in sorted(place.glob("*.png"))}
    order = dict.fromkeys(name for start in (*FIRST, "") for name in sorted(found) if name.startswith(start))
    out = []
    for name, path in ((name, found[name]) for name in order):
        caption = path.with_suffix(".txt")
        with Image.open(path) as image:
            width, height = (round(110 * side / image.info.get("dpi", (200, 200))[0]) for side in image.size)
        links = {"plotted numbers": path.with_suffix(".csv"), "vector graphics": path.with_suffix(".svg")}
        links = {title: os.path.relpath(file, folder.parent) for title, file in links.items() if file.is_file()}
        text = caption.read_text(encoding="utf-8").strip() if caption.is_file() else name.replace("_", " ")
        data = base64.b64encode(path.read_bytes()).decode()
        about = {"caption": text, "links": links, "repeats": name.startswith(("accuracy_table", "accuracy_lambda"))}
        out.append(about | {"data": data, "width": width, "height": height})
    return out


# --- facts about the runs ---


def settings_that_differ(scale: str) -> pd.DataFrame:
    """The full model's settings that differ from SCALE=paper: `setting, stage, SCALE=paper`, then one per start.

    Of each start the run of the first question set is compared.
    """
    first = next(iter(experiments.scale_settings("paper")["question_sets"]))
    compared = {"SCALE=paper": experiments.build_run("paper", {}, first)}
    compared |= {row.label: row.runs[0] for row in Selection().headlines("table1", scale)}
    values: dict[str, dict[tuple[str, str], str]] = {}
    for label, run in compared.items():
        flat = [(step.stage, pd.json_normalize(settings_read(step)).iloc[0].to_dict()) for step in run.lineage()]
        values[label] = {(name, STAGES[stage]): str(value) for stage, own in flat for name, value in own.items()}
    frame = pd.DataFrame(values).fillna("").rename_axis(["setting", "stage"])
    frame = frame[frame.ne(frame["SCALE=paper"], axis=0).any(axis=1)].drop(["seed", "stage"], level=0, errors="ignore")
    joined = frame.reset_index().groupby(["setting", *compared], sort=False)["stage"].agg(", ".join).reset_index()
    return joined[["setting", "stage", *compared]]


def logged(runs: Sequence[Run], key: str) -> pd.DataFrame:
    """The entry `teacher` or `collapse` of the pre-training runs' metrics, one row per distinct entry."""
    rows = {}
    for run in (run for run in runs if isinstance(run.metrics.get(key), dict)):
        entry = {name.replace("_", " "): value for name, value in run.metrics[key].items()}
        entry = {name: f"{v:.3g}" if isinstance(v, float) else v for name, v in entry.items()}
        plain = {name: value for name, value in entry.items() if isinstance(value, str | int)}
        rows.setdefault(str(plain), {"run": run.run_id, "stage": STAGES[run.spec.stage], **plain})
    return pd.DataFrame(list(rows.values())).fillna("")


def provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """Commit, versions and hardware: each distinct value with the number of runs that have it."""
    own = [{k: v for k, v in run.provenance.items() if k not in ("wall_time_s", "finished", "files")} for run in runs]
    flat = pd.json_normalize(own).melt(var_name="provenance").astype({"value": str})
    return flat.value_counts(["provenance", "value"], sort=False).rename("runs").reset_index()


def cost(runs: Sequence[Run]) -> pd.DataFrame:
    """Wall time of the teachers (each once) and by stage: number, total, longest; `unknown` where one is not stored."""
    taught = [run.metrics["teacher"] for run in runs if isinstance(run.metrics.get("teacher"), dict)]
    times = [("teacher", each) for each in {one.get("id"): one.get("wall_time_s") for one in taught}.values()]
    times += [(STAGES[run.spec.stage], run.provenance.get("wall_time_s")) for run in runs]
    frame = pd.DataFrame(times, columns=["stage", "time"]).astype({"time": float})
    found = frame.groupby("stage", sort=False)["time"].agg(
        runs="size", total=lambda times: times.sum(skipna=False), longest="max"
    )
    return found.assign(total=found["total"].map(clock), longest=found["longest"].map(clock)).reset_index()


def clock(seconds: float) -> str:
    """As h:mm:ss, `unknown` for NaN."""
    return "unknown" if pd.isna(seconds) else str(timedelta(seconds=round(seconds)))
