"""One self-contained page per scale: the result in a sentence, tables, figures, and how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import files, paths
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.experiments.identity import data_sets, settings_read
from amif_lib.experiments.stored import Run
from amif_lib.reporting import contrasts, figure_set, figures, layout, tables
from amif_lib.reporting.table_rows import CONTRASTS, SCALE_NOTES, STAGES, Selection, planned_tables

FIRST = ("accuracy_by_type", "fig4", "fig5", "fig6", "map_scores", "training_curves")  # then the others, by name


def write(scale: str) -> Path:
    """Write `results/<scale>/report.html` with its tables and figures from stored runs, and return its path.

    The page needs no script and no other file: pictures are embedded, only links lead outside. Under FROM=reference the
    runs are the committed ones and the page goes to `results/from_reference/<scale>/`. Raises InputError where a table
    that the scale's plan names lacks runs.
    """
    folder = paths.scale_dir(scale)
    collected = [tables.collect(name, scale) for name in planned_tables(scale)]
    for table in collected:
        layout.write(table)
    figure_set.draw_all(scale)
    runs = all_runs(collected)
    sets = sorted({name for run in runs for name in data_sets(run.spec)})
    content = {
        "scale": scale,
        "scale_note": SCALE_NOTES[scale],
        "real": scale in ("base", "paper"),
        "from_reference": paths.from_reference(),
        "commits": sorted({run.commit[:12] + run.commit[40:] for run in runs}),
        "result": result(collected),
        "tables": [section(table) for table in collected],
        "notes": dict.fromkeys(note for table in collected for note in layout.notes(table)),
        "figures": pictures(folder / "figures"),
        "settings": settings_that_differ(scale),
        "n_runs": len(runs),
        "provenance": provenance(runs),
        "manifests": [manifests.load(name) for name in sets],
        "hidden": sorted({name for name in sets for kind in manifests.KINDS if not manifests.may_show(name, kind)}),
    }
    files.write_text(folder / "report.html", layout.page("report.html.j2", content))
    return folder / "report.html"


def all_runs(collected: Sequence[tables.Table]) -> list[Run]:
    """Every finished run that the tables use, ordered by stage; each once."""
    specs = {spec.run_id: spec for table in collected for run in table.runs for spec in run.trainings()}
    runs = [stored.load_run(spec) for spec in specs.values() if stored.is_finished(spec)]
    return sorted(runs, key=lambda run: list(STAGES).index(run.spec.stage))


def result(collected: Sequence[tables.Table]) -> list[str]:
    """The result in plain words: contrasts, the full model with and without the right image, then teaching runs."""
    said, others = [], [table for table in collected if not experiments.is_judged(table.name)]
    for table in (table for table in collected if experiments.is_judged(table.name)):
        about = "" if table.name == CONTRASTS else f"{layout.short_name(table.name)}. "
        said.append(about + contrasts.sentence(contrasts.contrasts(table)))
    said.append(layout.full_model([*others, *collected][0]))
    if all("Teaching run" in text for text in said[:-1]):
        said.append(
            "Teaching run: nothing is said about the method. The command make contrasts trains replicates of the "
            "configurations to be compared."
        )
    return sorted(filter(None, said), key=lambda text: "Teaching run" in text)


def section(table: tables.Table) -> dict[str, Any]:
    """The content of a table's section on the page."""
    names = sorted((paths.scale_dir(table.scale) / "tables").glob(f"{table.name}[._]*"))
    about = {"name": table.name, "title": layout.heading(table), "short": layout.short_name(table.name)}
    return about | {"parts": layout.parts(table), "files": [f"tables/{path.name}" for path in names]}


def pictures(folder: Path) -> list[dict[str, Any]]:
    """Every figure of the scale, except a notebook's figure of a table, since the page has the table itself.

    Under FROM=reference, a figure that only a notebook draws is the committed copy.
    """
    places = (paths.scale_source(folder.parent.name) / "figures", folder)
    found = {path.stem: path for place in places for path in sorted(place.glob("*.png"))}
    order = dict.fromkeys(name for start in (*FIRST, "") for name in sorted(found) if name.startswith(start))
    kept = [name for name in order if name in FIRST or not name.startswith("accuracy_")]
    return [figures.embedded(found[name], folder.parent) for name in kept]


# --- facts about the runs ---


def settings_that_differ(scale: str) -> pd.DataFrame:
    """The full model's settings that differ from SCALE=paper: `setting, stage, SCALE=paper`, then a column per start.

    For each start (weights that training begins with), the run of the first question set is compared.
    """
    first = next(iter(experiments.scale_settings("paper")["question_sets"]))
    compared = {"SCALE=paper": experiments.build_run("paper", {}, first)}
    compared |= {row.label: row.runs[0] for row in Selection().headlines("table1", scale)}
    values: dict[str, dict[tuple[str, str], str]] = {}
    for label, run in compared.items():
        flat = [(step.stage, pd.json_normalize(settings_read(step)).iloc[0].to_dict()) for step in run.trainings()]
        values[label] = {(name, STAGES[stage]): str(value) for stage, own in flat for name, value in own.items()}
    frame = pd.DataFrame(values).fillna("").rename_axis(["setting", "stage"])
    frame = frame[frame.ne(frame["SCALE=paper"], axis=0).any(axis=1)].drop(["seed", "stage"], level=0, errors="ignore")
    joined = frame.reset_index().groupby(["setting", *compared], sort=False)["stage"].agg(", ".join).reset_index()
    return joined[["setting", "stage", *compared]]


def provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """Commit, versions and hardware: each distinct value with the number of runs that have it."""
    own = [{k: v for k, v in run.provenance.items() if k not in ("wall_time_s", "finished", "files")} for run in runs]
    flat = pd.json_normalize(own).melt(var_name="provenance").astype({"value": str})
    return flat.value_counts(["provenance", "value"], sort=False).rename("runs").reset_index()
