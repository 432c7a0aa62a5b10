"""What `make reproduce` has to run: the jobs of a scale, in `results/<scale>/plan.json` for the Snakefile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from amif_lib.app.run_notebook import code_digest
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.identity import data_sets
from amif_lib.experiments.predictions import CANDIDATES, PREDICTIONS
from amif_lib.experiments.run_spec import RunSpec

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
    "methods": "17_methods",
    "transfer": "18_transfer",
    "maps": "20_attention_and_transport_maps",
    "report": "90_reproduction_report",
}


@dataclass(frozen=True)
class Request:
    """What the user asked for. Empty means all that the scale names."""

    scale: str = "demo"
    tables: tuple[str, ...] = ()
    question_sets: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    seeds: int = 1
    pretrain_seeds: int | None = None  # by default as many as a table names, or one


@dataclass(frozen=True)
class Job:
    """One command of the workflow, with the files that it needs and makes, relative to the results folder."""

    rule: str  # data, teacher, a stage of a method, table, figures or report
    name: str  # of the log file: a table, a scale, or a hash of runs
    outputs: tuple[str, ...]
    command: tuple[str, ...]  # arguments for Python
    needs: tuple[str, ...] = ()
    label: str = ""
    code: str = ""  # digest of the code that makes the outputs; when it changes, the job runs again
    runs: tuple[str, ...] = ()  # ids of the runs that a training makes, or whose data sets are checked

    @property
    def trains(self) -> bool:
        return self.rule != "data" and bool(self.runs or self.rule == "teacher")

    def is_done(self) -> bool:
        """Whether all its outputs are there."""
        return all((paths.results() / output).is_file() for output in self.outputs)

    def __str__(self) -> str:
        return f"{self.rule:<9} {self.label or self.name}"


@dataclass
class Plan:
    """Jobs, each after those that it needs, and the runs that they make, by id."""

    request: Request
    jobs: list[Job] = field(default_factory=list)
    runs: dict[str, RunSpec] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return paths.scale_dir(self.request.scale)

    def add(self, job: Job) -> str:
        """Add a job unless it is there; returns its first output."""
        if all(job.outputs[0] not in other.outputs for other in self.jobs):
            self.jobs.append(job)
        return job.outputs[0]

    def write(self, name: str = "plan.json") -> Path:
        """Write the plan and the runs' specification files; returns the plan's path.

        `plan.json` keeps the latest request for each table, which the table reads; a preview must have another name.
        """
        from amif_lib.reporting import table_rows

        for job in self.jobs:
            if job.runs:
                listed = [self.runs[run].model_dump(mode="json") for run in job.runs]
                files.write_json(self.folder / "specs" / f"{job.name}.json", listed)
        own = dict.fromkeys((job.name for job in self.jobs if job.rule == "table"), asdict(self.request))
        asked = table_rows.asked_for(self.request.scale) | own
        files.write_json(self.folder / name, {"tables": asked, "jobs": [asdict(job) for job in self.jobs]})
        return self.folder / name


def read(plan: Path) -> list[Job]:
    """The jobs of a written plan."""
    return [Job(**job) for job in files.read_yaml(plan)["jobs"]]


def make_plan(request: Request) -> Plan:
    """The jobs that a request needs. Raises InputError for an unknown scale, table, row or question set."""
    scale, plan, rows = request.scale, Plan(request), _rows(request)
    made = [_add_table(plan, table, only) for table, only in rows.items()]
    made.insert(0, _add_check(plan))
    if "methods" in rows and not request.rows and "transfer" in experiments.scale_settings(scale):  # of the same runs
        out, given = f"{scale}/tables/transfer.csv", {"scale": scale, "source": "runs"}
        made.append(_add_notebook(plan, "transfer", out, given, (f"{scale}/tables/methods.csv",)))
    out, command = (f"{scale}/figures/figures.csv",), ("-m", "amif_lib", "figures", "--scale", scale)
    made.append(plan.add(Job("figures", scale, out, command, tuple(made), code=_library())))
    if scale == "demo" and {"table2", "table4"} <= set(rows) and not request.rows:  # it shows runs of these tables
        out, given = f"{scale}/notebooks/{_path('maps').name}", {"scale": scale, "source": "runs"}
        made.append(_add_notebook(plan, "maps", out, given, made[-1:]))  # its product is the executed copy
    _add_notebook(plan, "report", f"{scale}/report.html", {"scale": scale, "source": "runs"}, made)
    return plan


def _rows(request: Request) -> dict[str, tuple[str, ...]]:
    """The tables to make, each with its rows asked for (`6` or `table4:6`); () if none were asked for: all rows."""
    tables = request.tables or experiments.tables_of(request.scale)
    known = {table: experiments.entries(table, request.scale) for table in tables}
    if not request.rows:
        return dict.fromkeys(tables, ())
    found = {t: tuple(row for row in rows if {row, f"{t}:{row}"} & set(request.rows)) for t, rows in known.items()}
    names = {name for table, rows in found.items() for row in rows for name in (row, f"{table}:{row}")}
    if unknown := [row for row in request.rows if row not in names]:
        listed = "; ".join(f"{table}: {' '.join(rows)}" for table, rows in known.items())
        raise InputError(f"ROWS: {', '.join(unknown)}: no such row at scale {request.scale}; choose from {listed}")
    return {table: rows for table, rows in found.items() if rows}


def _add_table(plan: Plan, table: str, only: tuple[str, ...]) -> str:
    """Add the trainings behind a table's rows and the job that makes the table of them; returns its file."""
    from amif_lib.reporting import table_rows

    asked, scale, needs = plan.request, plan.request.scale, []
    selection = table_rows.Selection(asked.question_sets, only, asked.seeds, asked.pretrain_seeds)
    for run in table_rows.required_runs(table, scale, selection):
        for step in run.trainings()[:-1]:
            _add_training(plan, step, f"for {run.label}, seed {step.seed}")
        _add_training(plan, run, f"{run.label}, {run.data.questions}, seed {run.seed}")
        needs.append(_whole(run))
    out, code = f"{scale}/tables/{table}.csv", files.digest(asdict(asked))
    if table in NOTEBOOKS:
        return _add_notebook(plan, table, out, {"spec": f"{scale}/{table}", "source": "runs"}, needs, code)
    command = ("-m", "amif_lib", "table", table, "--scale", scale)
    return plan.add(Job("table", table, (out,), command, tuple(needs), code=f"{_library()}:{code}"))


def _add_check(plan: Plan) -> str:
    """Add, as the first job, the one that checks the data sets of the plan's runs; returns its file."""
    of_sets = {tuple(data_sets(run)): run_id for run_id, run in plan.runs.items()}
    ids, notebook, out = tuple(of_sets.values()), _path("data"), f"{plan.request.scale}/data/check.csv"
    name, of_data = files.digest(ids), files.digest([str(paths.data_root()), sorted(set().union(*of_sets))])
    given = {"spec": paths.shown(plan.folder / "specs" / f"{name}.json")}
    code = f"{code_digest(notebook)}:{_library()}:{of_data}"
    command = _execute(notebook, plan.folder / "notebooks", given)
    plan.jobs.insert(0, Job("data", name, (out,), command, label=plan.request.scale, code=code, runs=ids))
    return out


def _add_training(plan: Plan, run: RunSpec, label: str) -> None:
    """Add the job of one training, and of the teacher that it starts from."""
    from amif_lib.methods.amif.settings import teacher_id

    if run.run_id in plan.runs:
        return
    plan.runs[run.run_id] = run
    spec = paths.shown(plan.folder / "specs" / f"{run.run_id}.json")
    needs = [_whole(run.parent)] if run.parent else []
    if not run.parent and (teacher := teacher_id(run)):
        command = ("-m", "amif_lib.training.loop", "--extras", "--spec", spec)
        needs.append(plan.add(Job("teacher", teacher, (f"runs/{teacher}/metrics.json",), command, label=label)))
    code, command = "", ("-m", "amif_lib", "run", spec)  # methods for comparison have no notebook for each stage
    if run.method == "amif":
        notebook = _path(run.stage)
        explore = str(plan.request.scale == "demo")  # a few steps by hand, which take seconds at demo scale only
        command = _execute(notebook, run.directory, {"spec": spec, "explore": explore})
        code = code_digest(notebook)
    made = ("metrics.json", "provenance.json", *((PREDICTIONS, CANDIDATES) if run.stage == "finetune" else ()))
    outputs = tuple(f"runs/{run.run_id}/{file}" for file in made)
    plan.add(Job(run.stage, run.run_id, outputs, command, tuple(needs), label, code, (run.run_id,)))


def _add_notebook(
    plan: Plan, name: str, output: str, given: dict[str, str], needs: Sequence[str] = (), code: str = ""
) -> str:
    """Add the job that executes a notebook which trains nothing; returns its output."""
    rule, job = (name, plan.request.scale) if name in ("report", "transfer", "maps") else ("table", name)
    command, code = _execute(_path(name), plan.folder / "notebooks", given), f"{_library()}:{code}"
    return plan.add(Job(rule, job, (output,), command, tuple(needs), code=f"{code_digest(_path(name))}:{code}"))


def _execute(notebook: Path, folder: Path, given: dict[str, str]) -> tuple[str, ...]:
    """Arguments for Python that execute a notebook with these parameters; its executed copy goes into `folder`."""
    copy = paths.shown(folder / notebook.name)
    parameters = [part for pair in given.items() for part in ("-p", *pair)]
    return ("-m", "amif_lib.app.run_notebook", paths.shown(notebook), "--out", copy, *parameters)


def _path(notebook: str) -> Path:
    return paths.NOTEBOOKS / f"{NOTEBOOKS[notebook]}.ipynb"


def _whole(run: RunSpec) -> str:
    return f"runs/{run.run_id}/provenance.json"  # written last


@cache
def _library() -> str:
    """Digest of the whole library: tables and report are cheap, so they are made again whenever any of it changes."""
    total = hashlib.sha256()
    for path in sorted(paths.PACKAGE.rglob("*.py")) + sorted(paths.published().glob("*.csv")):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]
