"""What `make reproduce` has to run: the jobs of a scale, in `results/<scale>/plan.json` for the Snakefile."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amif_lib.app.run_notebook import code_digest
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import RunSpec

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
PREDICTIONS = ("predictions.parquet", "candidates.parquet")
TITLES = {"finetune": "fine-tune", "stage1": "stage 1", "stage2": "stage 2"}  # what a person reads of a rule


@dataclass(frozen=True)
class Request:
    """What a person asked for. Empty means all that the scale names."""

    scale: str = "demo"
    tables: tuple[str, ...] = ()
    question_sets: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    seeds: int = 1
    pretrain_seeds: int | None = None  # by default as many as a table names, or one


@dataclass(frozen=True)
class Job:
    """Arguments for Python, with the files that it needs and makes, relative to the results folder."""

    rule: str  # data, teacher, stage1, stage2, finetune, table, figures or report
    name: str
    outputs: tuple[str, ...]
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    label: str = ""
    code: str = ""  # digest of the code that makes the outputs; when it changes, the job runs again
    runs: tuple[str, ...] = ()  # ids of the runs that a training makes

    @property
    def trains(self) -> bool:
        return bool(self.runs) or self.rule == "teacher"


@dataclass
class Plan:
    """Jobs in an order in which each one's needs come first, and the runs behind them by id."""

    request: Request
    jobs: list[Job] = field(default_factory=list)
    runs: dict[str, RunSpec] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return paths.scale_dir(self.request.scale)

    def add(self, job: Job) -> Job:
        if all(job.outputs[0] not in other.outputs for other in self.jobs):
            self.jobs.append(job)
        return job

    def write(self, name: str = "plan.json") -> Path:
        """Write the plan and the runs' specification files; returns the plan's path.

        Tables read in `plan.json` which rows and seeds were asked for; a preview takes another name.
        """
        for job in self.jobs:
            if job.runs:
                listed = [self.runs[run].model_dump(mode="json") for run in job.runs]
                _write(self.folder / "specs" / f"{job.name}.json", listed[0] if len(listed) == 1 else listed)
        selection = asdict(self.request)
        _write(self.folder / name, {"selection": selection, "jobs": [asdict(job) for job in self.jobs]})
        return self.folder / name


def make_plan(request: Request) -> Plan:
    """The jobs that a request needs. Raises InputError for an unknown scale, table, row or question set."""
    from amif_lib.reporting import table_rows

    scale, plan = request.scale, Plan(request)
    names = request.tables or experiments.tables_of(scale)
    _refuse_unknown_rows(names, request)
    check = f"{scale}/data/check.csv"
    code = f"{_notebook_code('data')}:{paths.data_root()}"
    plan.add(Job("data", scale, (check,), _notebook("data", scale, "spec", f"{scale}/{names[0]}"), code=code))
    products = [check]
    for table in names:
        rows = _own_rows(table, request)
        if request.rows and not rows:
            continue
        asked = table_rows.Selection(request.question_sets, rows, request.seeds, request.pretrain_seeds)
        needs = []
        for runs in table_rows.required_notebooks(table, scale, asked):
            for run in runs:
                for step in run.lineage()[:-1]:
                    _add_training(plan, (step,))
            _add_training(plan, runs)
            needs += [_metrics(run) for run in runs]
        code = f"{_library()}:{files.digest(asdict(request))}"
        command = ("-m", "amif_lib", "table", table, "--scale", scale)
        if table in NOTEBOOKS:
            command, code = _notebook(table, scale, "spec", f"{scale}/{table}"), f"{_notebook_code(table)}:{code}"
        out = f"{scale}/tables/{table}.csv"
        products.append(
            plan.add(Job("table", table, (out,), command, tuple(dict.fromkeys(needs)), code=code)).outputs[0]
        )
    figures = ("-m", "amif_lib", "figures", "--scale", scale, "--allow-none")
    if scale == "demo" and {"table2", "table4"} <= set(names) and not request.rows:
        figures += ("--notebook",)  # the notebook about maps, where all the runs that it shows are planned
    out = f"{scale}/figures/figures.csv"
    plan.add(Job("figures", scale, (out,), figures, tuple(products), code=f"{_notebook_code('maps')}:{_library()}"))
    report = Job(
        "report", scale, (f"{scale}/report.html",), _notebook("report", scale, "scale", scale), (*products, out)
    )
    plan.add(Job(**{**vars(report), "code": f"{_notebook_code('report')}:{_library()}"}))
    return plan


def runs_of(scale: str) -> list[RunSpec]:
    """Every run that a scale's tables need, ancestors included, one seed each."""
    return list(make_plan(Request(scale)).runs.values())


def read(plan: Path) -> list[Job]:
    """The jobs of a written plan."""
    jobs = files.read_yaml(plan)["jobs"]
    return [
        Job(**{key: tuple(value) if isinstance(value, list) else value for key, value in job.items()}) for job in jobs
    ]


def _refuse_unknown_rows(tables: tuple[str, ...], request: Request) -> None:
    known = {table: experiments.row_names(table, request.scale) for table in tables}
    named = {name for table, rows in known.items() for row in rows for name in (row, f"{table}:{row}")}
    if unknown := sorted(set(request.rows) - named):
        listed = "; ".join(f"{table}: {' '.join(rows)}" for table, rows in known.items())
        raise InputError(f"ROWS: {', '.join(unknown)}: no such row at scale {request.scale}; choose from {listed}")


def _own_rows(table: str, request: Request) -> tuple[str, ...]:
    """Those of the rows asked for (`6`, or `table4:6`) that a table has; none asked for means all."""
    names = experiments.row_names(table, request.scale)
    return tuple(row for row in names if {row, f"{table}:{row}"} & set(request.rows))


def _add_training(plan: Plan, runs: tuple[RunSpec, ...]) -> None:
    """Add a pre-training with its teacher, or one row's fine-tunings on all question sets (one notebook makes them)."""
    from amif_lib.methods.amif.settings import teacher_id

    new = {run.run_id: run for run in runs if run.run_id not in plan.runs}
    if not new:
        return
    plan.runs |= new
    first, scale = next(iter(new.values())), plan.request.scale
    name = first.run_id if len(new) == 1 else files.digest(list(new))
    spec = paths.shown(paths.scale_dir(scale) / "specs" / f"{name}.json")
    needs = [_metrics(run.parent) for run in new.values() if run.parent]
    if teacher := "" if first.parent else teacher_id(first):
        command = ("-m", "amif_lib.training.prepare", "--spec", spec)
        out = f"runs/{teacher}/metrics.json"
        needs.append(plan.add(Job("teacher", teacher, (out,), command, (), "soft labels")).outputs[0])
    outputs = [f"runs/{run}/metrics.json" for run in new]
    outputs += [f"runs/{run}/{file}" for run in new for file in PREDICTIONS if first.stage == "finetune"]
    notebook = f"{NOTEBOOKS[first.stage]}.ipynb"
    folders = [paths.shown(paths.run_dir(run)) for run in new]
    command = ["-m", "amif_lib.app.run_notebook", paths.shown(paths.NOTEBOOKS / notebook), "-p", "spec", spec]
    command += ["--out", f"{folders[0]}/{notebook}", *(part for each in folders[1:] for part in ("--copy-to", each))]
    label = first.label or f"{first.train.epochs} epochs, batch {first.train.batch_size}"
    label += f", {len(new)} question sets" if len(new) > 1 else ""
    code = _notebook_code(first.stage)
    needs = list(dict.fromkeys(needs))
    plan.add(Job(first.stage, name, tuple(outputs), tuple(command), tuple(needs), label, code, tuple(new)))


def _metrics(run: RunSpec) -> str:
    return f"runs/{run.run_id}/metrics.json"


def _notebook(name: str, scale: str, parameter: str, value: str) -> tuple[str, ...]:
    source, out = paths.NOTEBOOKS / f"{NOTEBOOKS[name]}.ipynb", paths.scale_dir(scale) / "notebooks"
    command = ("-m", "amif_lib.app.run_notebook", paths.shown(source), "-p", parameter, value)
    return (*command, "--out", paths.shown(out / source.name))


def _notebook_code(name: str) -> str:
    return code_digest(paths.NOTEBOOKS / f"{NOTEBOOKS[name]}.ipynb")


def _library() -> str:
    """Digest of the whole library: tables and report are cheap and are made anew whenever any of it changes."""
    total = hashlib.sha256()
    for path in sorted(paths.PACKAGE.rglob("*.py")) + sorted(paths.published().glob("*.csv")):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


def _write(path: Path, content: Any) -> None:
    """Write JSON where it differs from what is there, so that time stamps change with contents only."""
    text = json.dumps(content, indent=1) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
