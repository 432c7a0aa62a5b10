"""One self-contained page per scale: what was run, what came out beside the paper, and under which conditions."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from amif_lib import evaluate, experiments, figures, files, layout, paths, results, tables
from amif_lib.experiments import RunSpec
from amif_lib.results import Run

TEMPLATE = paths.PACKAGE / "report.html.j2"
STAGES = {"stage1": "stage 1", "stage2": "stage 2", "finetune": "fine-tuning"}
VERDICTS = {
    True: "Replication verdicts are given: real data, full test sets.",
    False: "Whether a claim of the paper holds is not tested at this scale; the paper's numbers are for orientation.",
}


def write(scale: str) -> Path:
    """Write `results/<scale>/report.html` with its tables and figures from stored runs, and return its path.

    The page needs no script and no other file: pictures are embedded, only links lead outside (to run folders, by
    relative path). Raises InputError where a table that the scale's plan names lacks runs.
    """
    folder = paths.scale_dir(scale)
    whole = [tables.Table(name, scale) for name in planned_tables(scale)]
    head = _headline(scale)
    for table in whole:
        tables.store(table)
    runs = _all_runs([*whole, *([head] if head else [])])
    content = {
        "scale": scale,
        "scale_note": tables.SCALE_NOTES[scale],
        "verdict_note": VERDICTS[scale in ("base", "paper")],
        "code_notes": [layout.code_note(table) for table in whole if len(table.digests) > 1],
        "headline": _section(head) if head else None,
        "tables": [_section(table) for table in whole if table.name != "table1"],
        "figures": _figures(whole, runs, folder),
        "protocols": [evaluate.PROTOCOLS[name] for name in tables.PROTOCOLS],
        "teacher": _statistics(runs, "teacher"),
        "collapse": _statistics(runs, "collapse"),
        "settings": _html(settings_that_differ(scale), "words"),
        "runs": _run_table(runs),
        "provenance": _provenance(runs),
        "cost": _html(cost(runs)),
    }
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(content)
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def planned_tables(scale: str) -> list[str]:
    """The tables that the scale's last plan makes, or, without a plan, those that the scale names."""
    path = paths.scale_dir(scale) / "plan.json"
    if not path.is_file():
        return list(experiments.tables_of(scale))
    return [job["name"] for job in experiments.read_yaml(path)["jobs"] if job["rule"] == "table"]


def _headline(scale: str) -> tables.Table | None:
    """The headline table, where its runs are among the finished ones (other tables contain them as a row)."""
    return None if results.missing(tables.required_runs("table1", scale)) else tables.Table("table1", scale)


def _all_runs(whole: list[tables.Table]) -> list[Run]:
    """Every run behind the tables, pre-training first, each once."""
    found: dict[str, Run] = {}
    for table in whole:
        for run in list(table.runs.values()):
            for spec in run.spec.lineage()[:-1]:
                if results.is_finished(spec):
                    found.setdefault(spec.run_id, results.load_run(spec))
            found.setdefault(run.run_id, run)
    return sorted(found.values(), key=lambda run: list(STAGES).index(run.spec.stage))


# --- tables and figures ---


def _html(frame: pd.DataFrame, kind: str = "numbers") -> Markup:
    """The frame as HTML, every cell escaped."""
    return Markup(layout.html(frame, kind)) if len(frame) else Markup('<p class="soft">None.</p>')


def _section(table: tables.Table) -> dict[str, Any]:
    written = [f"tables/{table.name}{ending}" for ending in tables.FILES]
    return {
        "name": table.name,
        "short": layout.short_name(table.name),
        "title": layout.heading(table),
        "question_sets": layout.question_sets(table),
        "paper": _html(layout.paper_layout(table, lambda text: f"\x01{text}\x02")),
        "definitions": [
            (layout.dataset_name(dataset), _html(layout.both_definitions(table, dataset))) for dataset in table.datasets
        ],
        "tests": _html(layout.tests_layout(table)),
        "notes": layout.notes(table),
        "files": [path for path in written if (paths.scale_dir(table.scale) / path).is_file()],
    }


def _figures(whole: list[tables.Table], runs: list[Run], folder: Path) -> list[dict[str, str]]:
    """Draw the figures of the report, then embed them and every other figure of the scale."""
    figures.use_style()
    for table in whole:
        for dataset in table.datasets:
            _draw(
                folder,
                f"accuracy_{table.name}_{dataset}",
                figures.accuracy_plot(table.cells, dataset),
                figures.accuracy_data(table.cells, dataset),
                layout.caption(table, dataset),
            )
    if runs:
        _draw(
            folder,
            "training_curves",
            figures.training_curves(runs),
            figures.training_data(runs),
            "Training loss against optimiser step; pale: every step, strong: running mean.",
        )
    out = []
    for picture in sorted((folder / "figures").glob("*.png")):
        caption = picture.with_suffix(".txt")
        out.append(
            {
                "data": base64.b64encode(picture.read_bytes()).decode(),
                "caption": caption.read_text(encoding="utf-8").strip() if caption.is_file() else picture.stem,
                "csv": f"figures/{picture.stem}.csv" if picture.with_suffix(".csv").is_file() else "",
            }
        )
    return out


def _draw(folder: Path, name: str, figure: Figure, data: pd.DataFrame, caption: str) -> None:
    figures.save(figure, folder / "figures" / name, data, caption)
    plt.close(figure)


# --- what the runs say of themselves ---


def _statistics(runs: list[Run], key: str) -> Markup | None:
    """The `teacher` or `collapse` entry of the pre-training runs' metrics as one table, None where no run has one."""
    rows = []
    for run in runs:
        entry = run.metrics.get(key)
        if isinstance(entry, dict):
            plain = {
                name.replace("_", " "): _number(value)
                for name, value in entry.items()
                if isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
            }
            rows.append({"run": run.run_id, "stage": STAGES[run.spec.stage], **plain})
    if key == "teacher":  # both stages have the same one
        rows = list({tuple(list(row.items())[2:]): row for row in reversed(rows)}.values())[::-1]
    return _html(pd.DataFrame(rows).fillna("")) if rows else None  # one table, whatever keys a run has


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in content.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _settings(run: RunSpec) -> dict[tuple[str, str], Any]:
    """`(stage, setting)` to value for a run and its ancestors, without names and seeds."""
    out = {}
    for spec in run.lineage():
        content = spec.model_dump(mode="json", exclude={"parent", "label", "scale", "stage", "seed"})
        read = {
            "stage1": ("model", "init", "data", "teacher", "objective", "train"),
            "stage2": ("objective", "train"),
            "finetune": ("data", "knowledge", "train"),
        }[spec.stage]  # the rest is as in stage 1
        if content["teacher"] and content["teacher"]["source"] != "trained":
            content["teacher"] = {"source": content["teacher"]["source"]}  # its sizes are its own
        for name, value in _flat({key: content[key] for key in read if content[key] is not None}).items():
            out["all" if name.startswith(("model.", "init.")) else spec.stage, name] = value
    return out


def settings_that_differ(scale: str) -> pd.DataFrame:
    """The full model's settings that differ from SCALE=paper: `setting, stage, SCALE=paper`, then one per start."""
    paper_sets = experiments.scale_settings("paper")["question_sets"]
    paper = _settings(experiments.build_run("paper", {}, next(iter(paper_sets))))
    ours = {row.label: _settings(row.runs[0]) for row in tables.Selection().rows("table1", scale)}
    rows: dict[tuple[str, ...], list[str]] = {}
    for stage, name in dict.fromkeys(key for found in ours.values() for key in found):
        values = [_plain(found.get((stage, name))) for found in ours.values()]
        theirs = _plain(paper.get((stage, name)))
        if any(value != theirs for value in values):
            rows.setdefault((name, theirs, *values), []).append(STAGES.get(stage, "all stages"))
    return pd.DataFrame(
        [[name, ", ".join(stages), *values] for (name, *values), stages in rows.items()],
        columns=["setting", "stage", "SCALE=paper", *ours],
    )


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _run_table(runs: list[Run]) -> Markup:
    """One line per run with a relative link to its folder and to its executed notebooks."""
    rows = []
    for run in runs:
        link = f"../runs/{run.run_id}"
        notebooks = sorted(path.name for path in run.directory.glob("*.ipynb"))
        rows.append(
            {
                "run": f"\x03{link}/\x04{run.run_id}\x05",
                "stage": STAGES[run.spec.stage],
                "what": run.spec.label,
                "data": run.spec.data.questions or ", ".join(run.spec.data.pretrain),
                "seed": run.spec.seed,
                "code": run.provenance.get("code_digest", "unknown"),
                "executed notebook": " ".join(f"\x03{link}/{name}\x04{name}\x05" for name in notebooks),
            }
        )
    page = layout.html(pd.DataFrame(rows)) if rows else ""
    return Markup(page.replace("\x03", '<a href="').replace("\x04", '">').replace("\x05", "</a>"))


def _provenance(runs: list[Run]) -> Markup:
    """Code, commit, versions and hardware, each distinct value with the number of runs that have it."""
    counts: dict[tuple[str, str], int] = {}
    for run in runs:
        for name, value in _flat(run.provenance).items():
            if name not in ("wall_time_s", "finished"):
                counts[name, _plain(value)] = counts.get((name, _plain(value)), 0) + 1
    rows = [{"provenance": name, "value": value, "runs": n} for (name, value), n in sorted(counts.items()) if value]
    return _html(pd.DataFrame(rows), "words")


def cost(runs: list[Run]) -> pd.DataFrame:
    """Wall time by stage: number of runs, total and longest, as h:mm:ss; `unknown` where a run did not store it."""
    rows = []
    for stage, name in STAGES.items():
        times = [run.provenance.get("wall_time_s") for run in runs if run.spec.stage == stage]
        if times:
            known = [float(t) for t in times if t is not None]
            total = _clock(sum(known)) if len(known) == len(times) else "unknown"
            rows.append({"stage": name, "runs": len(times), "total": total, "longest": _clock(max(known, default=0))})
    return pd.DataFrame(rows)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
