"""What `make reproduce` has to run: the jobs of a scale, from the experiments, written down for the Snakefile.

A plan is data: `results/<scale>/plan.json` lists the jobs with what each needs, and `results/<scale>/specs/` holds one
specification file per run. Equal runs of several tables are one job. Paths are relative to the results folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from amif_lib.app.run_notebook import code_digest
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import Row, RunSpec

NOTEBOOKS = {
    "data": "01_data_and_manifests",
    "stage1": "03_stage1_global_alignment",
    "stage2": "04_stage2_local_alignment_and_mining",
    "finetune": "05_finetune_vqa",
    "table1": "11_table1",
    "table2": "12_table2",
    "table3": "13_table3",
    "table4": "14_table4",
    "table5": "15_table5",
    "lambda_sweep": "16_lambda_sweep",
    "maps": "20_attention_and_transport_maps",
    "report": "90_reproduction_report",
}
PREDICTIONS = ("predictions.parquet", "candidates.parquet")  # of a fine-tuning; experiments.predictions reads them
TRAININGS = ("teacher", "stage1", "stage2", "finetune")


@dataclass(frozen=True)
class Job:
    """One job: its rule in the Snakefile, the run or table it makes, and the outputs of other jobs it needs.

    A fine-tuning job makes the runs of all question sets of a row, in one notebook; it is named by the only run or by
    a hash of their ids.
    """

    rule: str
    name: str
    output: str
    needs: tuple[str, ...] = ()
    spec: str = ""  # specification file of a training; for the data check `<scale>/<table>`
    label: str = ""
    code: str = ""  # digest of what makes the job's result, where a change of it makes the job run again
    runs: tuple[str, ...] = ()  # ids of the runs that a training job makes

    @property
    def outputs(self) -> tuple[str, ...]:
        """Of each run of a training the metrics, written last, and a fine-tuning's predictions; else the job's product."""
        names = ("metrics.json", *(PREDICTIONS if self.rule == "finetune" else ()))
        return tuple(f"runs/{run}/{name}" for run in self.runs for name in names) or (self.output,)


@dataclass(frozen=True)
class Selection:
    """What a person asked for. Empty means all that the scale names."""

    scale: str = "demo"
    tables: tuple[str, ...] = ()
    question_sets: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    seeds: int = 1
    pretrain_seeds: int = 1
    budget_hours: float = 0.0  # of machine time that the trainings to do may take (`costs.within_budget`); 0: any


@dataclass
class Plan:
    """The jobs in an order in which each one's needs come first, and the runs behind them by run id."""

    selection: Selection  # what was asked for; with a budget, the rows that fit
    left_out: list[tuple[Row, float]] = field(default_factory=list)  # rows that do not fit, with the hours of each
    jobs: list[Job] = field(default_factory=list)
    runs: dict[str, RunSpec] = field(default_factory=dict)
    tables: dict[str, list[RunSpec]] = field(default_factory=dict)  # the fine-tunings that each table reads

    @property
    def folder(self) -> Path:
        return paths.scale_dir(self.selection.scale)

    def write(self, name: str = "plan.json") -> Path:
        """Write the plan and the specification files, leaving alone what has not changed; returns the plan's path.

        `plan.json` is what tables read to know which rows and seeds were asked for; a preview takes another name.
        """
        for run in self.runs.values():
            _write_changed(self.folder / "specs" / f"{run.run_id}.json", run.model_dump(mode="json"))
        for job in self.jobs:
            if len(job.runs) > 1:
                listed = [self.runs[run].model_dump(mode="json") for run in job.runs]
                _write_changed(self.folder / "specs" / f"{job.name}.json", listed)
        path = self.folder / name
        _write_changed(path, {"selection": asdict(self.selection), "jobs": [asdict(job) for job in self.jobs]})
        return path


def make_plan(selection: Selection) -> Plan:
    """The jobs that `selection` needs. Raises InputError for an unknown scale, table, row or question set."""
    from amif_lib.reporting import tables

    scale = selection.scale
    names = selection.tables or experiments.tables_of(scale)
    found = {name for table in names for row in _rows(table, selection) for name in (row, f"{table}:{row}")}
    if unknown := set(selection.rows) - found:
        rows = "; ".join(f"{table}: {' '.join(experiments.row_names(table, scale))}" for table in names)
        raise InputError(f"ROWS: {', '.join(sorted(unknown))}: no such row at scale {scale}; choose from {rows}")
    left_out: list[tuple[Row, float]] = []
    if selection.budget_hours:
        kept, left_out = _within_budget(names, selection)
        selection = replace(selection, rows=kept)
    plan = Plan(selection, left_out)
    chosen = {table: rows for table in names if (rows := _rows(table, selection)) or not selection.rows}
    needed = {
        table: tables.required_notebooks(
            table, scale, tables.Selection(selection.question_sets, rows, selection.seeds, selection.pretrain_seeds)
        )
        for table, rows in chosen.items()
    }
    plan.tables = {table: [run for runs in notebooks for run in runs] for table, notebooks in needed.items()}
    check = f"{scale}/data/check.csv"
    data = _add(
        plan, Job("data", scale, check, (), f"{scale}/{names[0]}", "check the data sets", _notebook_code("data"))
    )
    for runs in (runs for notebooks in needed.values() for runs in notebooks):
        for run in runs:
            for step in run.lineage()[:-1]:
                _add_run(plan, (step,), data.output)
        _add_run(plan, runs, data.output)
    made = []
    for table, notebooks in needed.items():
        metrics = tuple(dict.fromkeys(_metrics(run) for runs in notebooks for run in runs))
        code = f"{_notebook_code(table)}:{_library_code()}:{files.digest(asdict(selection))}"
        made.append(_add(plan, Job("table", table, f"{scale}/tables/{table}.csv", metrics, code=code)).output)
    every = {"table2", "table4"} <= set(needed) and not selection.rows  # the runs that the notebook about maps shows
    maps = NOTEBOOKS["maps"] if every and scale == "demo" else ""
    code = f"{_notebook_code('maps')}:{_library_code()}"
    made.append(_add(plan, Job("figures", scale, f"{scale}/figures/figures.csv", tuple(made), maps, code=code)).output)
    code = f"{_notebook_code('report')}:{_library_code()}"
    _add(plan, Job("report", scale, f"{scale}/report.html", tuple(made), code=code))
    return plan


def runs_of(scale: str) -> list[RunSpec]:
    """Every run that a scale's tables need, ancestors included, one seed each."""
    from amif_lib.reporting import tables

    tips = [
        run for table in experiments.tables_of(scale) for run in tables.required_runs(table, scale, tables.Selection())
    ]
    return list({run.run_id: run for tip in tips for run in tip.lineage()}.values())


def _within_budget(names: tuple[str, ...], selection: Selection) -> tuple[tuple[str, ...], list[tuple[Row, float]]]:
    """The rows of `names` that the budget has room for, as `<table>:<row>`, and those left out with their hours."""
    from amif_lib.app import costs
    from amif_lib.reporting import tables

    sets, seeds = selection.question_sets, (selection.seeds, selection.pretrain_seeds)
    rows = [
        row
        for table in names
        if (own := _rows(table, selection)) or not selection.rows
        for row in experiments.rows(table, selection.scale, sets, *seeds, own)
    ]
    blank = tables.Selection(sets, (), *seeds).blank_runs(names[0], selection.scale)
    baselines = [run for runs in blank.values() for run in runs]
    kept, left_out = costs.within_budget(rows, selection.budget_hours, selection.scale, baselines)
    if not kept:
        raise InputError(
            f"BUDGET_HOURS={selection.budget_hours:g}: no row fits; the first needs {left_out[0][1]:.2f} hours"
        )
    return tuple(f"{row.table}:{row.row}" for row in kept), left_out


def _rows(table: str, selection: Selection) -> tuple[str, ...]:
    """Those of the rows asked for (`6`, or `table4:6`) that a table has; none asked for means all."""
    names = experiments.row_names(table, selection.scale)
    return tuple(row for row in names if {row, f"{table}:{row}"} & set(selection.rows))


def _add(plan: Plan, job: Job) -> Job:
    if all(set(job.outputs).isdisjoint(other.outputs) for other in plan.jobs):
        plan.jobs.append(job)
    return job


def _add_run(plan: Plan, runs: tuple[RunSpec, ...], data: str) -> None:
    """A pre-training with its teacher, or the fine-tunings of one notebook.

    The data check comes first; the runs that they start from are in the plan already, and so may runs of another row be.
    """
    from amif_lib.methods.amif.teacher import teacher_ids

    runs = tuple({run.run_id: run for run in runs if run.run_id not in plan.runs}.values())
    if not runs:
        return
    plan.runs |= {run.run_id: run for run in runs}
    first, ids = runs[0], tuple(run.run_id for run in runs)
    name = ids[0] if len(ids) == 1 else files.digest(ids)
    spec = f"{plan.selection.scale}/specs/{name}.json"
    needs = {data: None}
    made = [f"runs/{teacher}/metrics.json" for teacher in teacher_ids(first)]
    if made:  # of one with noise: that without it, and its own, whose job makes both where the first is absent
        before = tuple(job.output for job in plan.jobs if job.output in made[:-1])
        job = Job("teacher", made[-1].split("/")[1], made[-1], (data, *before), spec, "soft labels")
        needs[_add(plan, job).output] = None
    needs |= {_metrics(run.parent): None for run in runs if run.parent}
    label = first.label or f"{first.train.epochs} epochs, batch {first.train.batch_size}"
    label += f", {len(runs)} question sets" if len(runs) > 1 else ""
    _add(plan, Job(first.stage, name, _metrics(first), tuple(needs), spec, label, _notebook_code(first.stage), ids))


def _metrics(run: RunSpec) -> str:
    return f"runs/{run.run_id}/metrics.json"


def _notebook_code(name: str) -> str:
    return code_digest(paths.NOTEBOOKS / f"{NOTEBOOKS[name]}.ipynb")


def _library_code() -> str:
    """Digest of the whole library: tables and report are cheap and are made anew whenever any of it changes."""
    total = hashlib.sha256()
    for path in sorted(paths.PACKAGE.rglob("*.py")) + sorted(paths.published().glob("*.csv")):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


def _write_changed(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    files.write_text(path, text)


def read(path: Path) -> list[Job]:
    """The jobs of a written plan."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Job(**{**job, "needs": tuple(job["needs"]), "runs": tuple(job["runs"])}) for job in content["jobs"]]


def of_rule(jobs: Iterable[Job], rule: str) -> dict[str, Job]:
    """The jobs of a rule by name."""
    return {job.name: job for job in jobs if job.rule == rule}
