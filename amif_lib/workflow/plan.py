"""What `make reproduce` has to run: the jobs of a scale, from the experiments, written down for the Snakefile.

A plan is data: `results/<scale>/plan.json` lists the jobs with what each needs, and `results/<scale>/specs/` holds one
specification file per run. Equal runs of several tables are one job. Paths are relative to the results folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amif_lib import experiments, files, paths
from amif_lib.errors import InputError
from amif_lib.experiments import RunSpec
from amif_lib.run_notebook import code_digest

NOTEBOOKS = {
    "data": "01_data_and_manifests",
    "stage1": "03_stage1_global_alignment",
    "stage2": "04_stage2_local_alignment_and_mining",
    "finetune": "05_finetune_vqa",
    "table4": "14_table4",
    "report": "90_reproduction_report",
}
PREDICTIONS = ("predictions.parquet", "candidates.parquet")  # of a fine-tuning; amif_lib.evaluate reads them
TRAININGS = ("teacher", "stage1", "stage2", "finetune")


@dataclass(frozen=True)
class Job:
    """One job: its rule in the Snakefile, the run or table it makes, and the outputs of other jobs it needs."""

    rule: str
    name: str
    output: str
    needs: tuple[str, ...] = ()
    spec: str = ""  # specification file of a training; for the data check `<scale>/<table>`
    label: str = ""
    code: str = ""  # digest of what makes the job's result, where a change of it makes the job run again


@dataclass(frozen=True)
class Selection:
    """What a person asked for. Empty means all that the scale names."""

    scale: str = "demo"
    tables: tuple[str, ...] = ()
    question_sets: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    seeds: int = 1
    pretrain_seeds: int = 1


@dataclass
class Plan:
    """The jobs in an order in which each one's needs come first, and the runs behind them by run id."""

    selection: Selection
    jobs: list[Job] = field(default_factory=list)
    runs: dict[str, RunSpec] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return paths.scale_dir(self.selection.scale)

    def write(self, name: str = "plan.json") -> Path:
        """Write the plan and the specification files, leaving alone what has not changed; returns the plan's path.

        `plan.json` is what tables read to know which rows and seeds were asked for; a preview takes another name.
        """
        for run in self.runs.values():
            _write_changed(self.folder / "specs" / f"{run.run_id}.json", run.model_dump(mode="json"))
        path = self.folder / name
        _write_changed(path, {"selection": asdict(self.selection), "jobs": [asdict(job) for job in self.jobs]})
        return path


def make_plan(selection: Selection) -> Plan:
    """The jobs that `selection` needs. Raises InputError for an unknown scale, table, row or question set."""
    from amif_lib import tables

    scale = selection.scale
    plan = Plan(selection)
    names = selection.tables or experiments.tables_of(scale)
    chosen = {table: rows for table in names if (rows := _rows(table, selection)) or not selection.rows}
    if unknown := set(selection.rows) - {row for rows in chosen.values() for row in rows}:
        raise InputError(f"ROWS: {', '.join(sorted(unknown))}: no such row in {', '.join(names)} at scale {scale}")
    needed = {
        table: tables.required_runs(
            table, scale, tables.Selection(selection.question_sets, rows, selection.seeds, selection.pretrain_seeds)
        )
        for table, rows in chosen.items()
    }

    check = f"{scale}/data/check.csv"
    data = _add(
        plan, Job("data", scale, check, (), f"{scale}/{names[0]}", "check the data sets", _notebook_code("data"))
    )
    for run in (run for runs in needed.values() for run in runs):
        for step in run.lineage():
            _add_run(plan, step, data.output)
    made = []
    for table, runs in needed.items():
        code = f"{_notebook_code(table)}:{_library_code()}:{experiments.digest(asdict(selection))}"
        made.append(
            _add(plan, Job("table", table, f"{scale}/tables/{table}.csv", tuple(map(_metrics, runs)), code=code)).output
        )
    _add(
        plan,
        Job("report", scale, f"{scale}/report.html", tuple(made), code=f"{_notebook_code('report')}:{_library_code()}"),
    )
    return plan


def runs_of(scale: str) -> list[RunSpec]:
    """Every run that a scale's tables need, ancestors included, one seed each."""
    from amif_lib import tables

    tips = [
        run for table in experiments.tables_of(scale) for run in tables.required_runs(table, scale, tables.Selection())
    ]
    return list({run.run_id: run for tip in tips for run in tip.lineage()}.values())


def _rows(table: str, selection: Selection) -> tuple[str, ...]:
    """Those of the rows asked for that a table has; none asked for means all."""
    found = experiments.rows(table, selection.scale, selection.question_sets, selection.seeds, selection.pretrain_seeds)
    return tuple(row.row for row in found if row.row in selection.rows)


def _add(plan: Plan, job: Job) -> Job:
    if all(job.output != other.output for other in plan.jobs):
        plan.jobs.append(job)
    return job


def _add_run(plan: Plan, run: RunSpec, data: str) -> None:
    """A training with its teacher; the data check comes first, the run it starts from is in the plan already."""
    from amif_lib.teachers import teacher_ids

    if run.run_id in plan.runs:
        return
    plan.runs[run.run_id] = run
    spec = f"{plan.selection.scale}/specs/{run.run_id}.json"
    needs = [data]
    made = teacher_ids(
        run
    )  # of one with noise: that without it, and its own, whose job makes both where the first is absent
    if made:
        outputs = [f"runs/{name}/metrics.json" for name in made]
        first = tuple(job.output for job in plan.jobs if job.output in outputs[:-1])
        job = Job("teacher", made[-1], outputs[-1], (data, *first), spec, "soft labels")
        needs.append(_add(plan, job).output)
    if run.parent:
        needs.append(_metrics(run.parent))
    label = run.label or f"{run.train.epochs} epochs, batch {run.train.batch_size}"
    _add(plan, Job(run.stage, run.run_id, _metrics(run), tuple(needs), spec, label, _notebook_code(run.stage)))


def _metrics(run: RunSpec) -> str:
    return f"runs/{run.run_id}/metrics.json"


def _notebook_code(name: str) -> str:
    notebook = NOTEBOOKS.get(name)
    return code_digest(paths.NOTEBOOKS / f"{notebook}.ipynb") if notebook else ""


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
    return [Job(**{**job, "needs": tuple(job["needs"])}) for job in content["jobs"]]


def of_rule(jobs: Iterable[Job], rule: str) -> dict[str, Job]:
    """The jobs of a rule by name."""
    return {job.name: job for job in jobs if job.rule == rule}
