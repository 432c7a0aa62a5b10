"""`make reproduce` on a copy of the kit whose jobs only write files: order, resuming, what starts again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amif_lib.app import cost, doctor, job, jobs, reproduce
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.identity import data_sets

pytest.importorskip("snakemake")
ROOT = Path(__file__).resolve().parents[1]
ROWS = ("--tables", "table4", "--datasets", "phantom_slake", "--rows", "1,6")
# Without pre-training, the full model, and the baseline: three fine-tunings.
EXPECTED = {"data": 1, "teacher": 1, "stage1": 1, "stage2": 1, "finetune": 3, "table": 1, "figures": 1, "report": 1}

# Every job of the copy runs this: it writes the outputs that a training lacks, and all of any other job.
FAKE_JOB = """
import os, sys, time
from pathlib import Path
rule, name, code, *outputs = sys.argv[1:]
results = Path("results")
time.sleep(float(os.environ.get("TEST_SLEEP", 0)))
if rule == os.environ.get("TEST_FAILS"):
    sys.exit("ZeroDivisionError: on purpose")
made = [out for out in outputs if "runs/" not in out or not (results / out).is_file()]
for out in made:
    (results / out).parent.mkdir(parents=True, exist_ok=True)
    (results / out).write_text("made")
    if "tables" in out:
        (results / out).with_suffix(".md").write_text("| a table |")
with (results / "trace.txt").open("a") as trace:
    trace.write(f"{rule} {name} {len(made)}\\n")
"""
PATCH = """
_real_plan = make_plan
def make_plan(request):
    from dataclasses import replace
    plan = _real_plan(request)
    plan.jobs = [replace(j, command=("fake_job.py", j.rule, j.name, j.code, *j.outputs)) for j in plan.jobs]
    return plan
"""


class Clone:
    """A copy of the kit, in a folder with a space in its name, whose jobs write files and a trace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("amif_lib", "data_manifests", "notebooks"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        with (root / "amif_lib" / "app" / "jobs.py").open("a") as file:
            file.write(PATCH)
        (root / "fake_job.py").write_text(FAKE_JOB)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        unset = ("AMIF_RESULTS", "AMIF_PREPARED", "DATA_ROOT", "SCALE", "AMIF_PROCESSES")
        settings = {key: value for key, value in os.environ.items() if key not in unset}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        settings |= {"PYTHONPATH": str(self.root)} | environment
        command = [sys.executable, "-m", "amif_lib", *arguments]
        return subprocess.Popen(command, cwd=self.root, text=True, env=settings, **pipes)

    def call(self, *arguments: str, status: int = 0, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        try:
            out, _ = process.communicate(timeout=180)
        finally:
            process.kill()
        assert process.returncode == status, out
        return out

    def trace(self) -> list[list[str]]:
        """Rule, name and number of files written by each job since the last look."""
        path = self.root / "results" / "trace.txt"
        lines = path.read_text().splitlines() if path.is_file() else []
        path.unlink(missing_ok=True)
        return [line.split() for line in lines]

    def plan(self) -> list[dict]:
        return json.loads((self.root / "results" / "demo" / "plan.json").read_text())["jobs"]

    def edit(self, path: str, old: str, new: str) -> None:
        file = next(self.root.glob(path))
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which everything was made once, in the right order."""
    clone = Clone(tmp_path_factory.mktemp("a clone"))
    out = clone.call("reproduce", *ROWS)
    kinds = [rule for rule, _, _ in clone.trace()]
    assert {kind: kinds.count(kind) for kind in kinds} == EXPECTED
    order = [kinds.index(kind) for kind in ("data", "teacher", "stage1", "stage2", "table", "figures", "report")]
    assert order == sorted(order)
    assert "| a table |" in out and out.count("started") == out.count("done in") == len(clone.plan())
    assert all((clone.root / "results" / path).is_file() for each in clone.plan() for path in each["outputs"])
    return clone


def test_a_second_call_does_nothing_whatever_the_time_stamps_and_the_prose(finished: Clone) -> None:
    finished.edit("notebooks/05*", "# ", "#  ")  # its heading
    for path in [*(finished.root / "results" / "runs").rglob("*.json"), *(finished.root / "notebooks").iterdir()]:
        path.touch()
    assert "nothing to do" in finished.call("reproduce", *ROWS)
    said = finished.call("plan", *ROWS, MACHINE="slurm")  # a plan starts nothing: no plugin is needed
    assert finished.trace() == [] and "0 of 10 jobs to do, with 0 of 6 trainings" in said


def test_changed_code_of_a_notebook_runs_it_again_and_keeps_finished_runs(finished: Clone) -> None:
    finished.edit("notebooks/05*", "assert ", "assert  ")
    assert finished.call("plan", *ROWS).count("to do  finetune") == 3
    finished.call("reproduce", *ROWS)
    trace = finished.trace()
    assert [line[2] for line in trace if line[0] == "finetune"] == ["0"] * 3
    assert not any(line[0] in ("stage1", "stage2", "teacher") for line in trace)


def test_what_was_deleted_is_made_again_and_nothing_else(finished: Clone) -> None:
    first, second, third = [each for each in finished.plan() if each["rule"] == "finetune"]
    results = finished.root / "results"
    shutil.rmtree(results / "runs" / first["runs"][0])
    (results / "runs" / second["runs"][0] / "predictions.parquet").unlink()
    (results / "runs" / third["runs"][0] / "provenance.json").unlink()  # killed after its metrics were written
    finished.call("reproduce", *ROWS)
    trained = {name: int(made) for rule, name, made in finished.trace() if rule == "finetune"}
    assert trained == {first["name"]: 4, second["name"]: 1, third["name"]: 1}


def test_a_failing_job_is_reported_with_its_log_and_loses_nothing(finished: Clone) -> None:
    finished.edit("notebooks/03*", "assert ", "assert  ")
    out = finished.call("reproduce", *ROWS, status=1, TEST_FAILS="stage1")
    assert "ZeroDivisionError" in out and "stage1" in out and "same command" in out
    run = next(each["name"] for each in finished.plan() if each["rule"] == "stage1")
    assert (finished.root / "results" / "runs" / run / "metrics.json").is_file()
    finished.trace()
    finished.call("reproduce", *ROWS)
    assert all(made == "0" for rule, _, made in finished.trace() if rule in ("stage1", "stage2", "finetune"))
    assert "nothing to do" in finished.call("reproduce", *ROWS)


def test_nothing_is_trained_on_data_that_fail_their_check_and_a_newer_check_trains_nothing(finished: Clone) -> None:
    (finished.root / "results" / "demo" / "data" / "check.csv").touch()
    assert "with 0 of 6 trainings" in finished.call("plan", *ROWS)
    more, changed = (*ROWS[:-1], "1,6,5"), {"DATA_ROOT": str(finished.root / "elsewhere")}
    finished.call("reproduce", *more, status=1, TEST_FAILS="data", **changed)
    assert finished.trace() == []
    said = finished.call("plan", *more, **changed)
    assert "to do  data" in said and "with 1 of 7 trainings" in said
    finished.call("reproduce", *more, **changed)
    assert [rule for rule, *_ in finished.trace()] == ["data", "finetune", "table", "figures", "report"]


def test_a_table_of_older_code_is_made_again_after_a_clean(finished: Clone) -> None:
    finished.call("reproduce", *ROWS)
    finished.call("clean")
    assert "nothing to do" in finished.call("reproduce", *ROWS)
    finished.edit("amif_lib/reporting/__init__.py", '"""', '"""A change. ')
    said = finished.call("plan", *ROWS)
    assert "to do  table" in said and "with 0 of 6 trainings" in said
    finished.trace()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_call_is_continued_by_the_next(tmp_path: Path, how: signal.Signals) -> None:
    clone = Clone(tmp_path / "a clone")
    process = clone.start("reproduce", *ROWS[:-1], "1", TEST_SLEEP="1")
    for line in process.stdout:
        if "finetune" in line and "started" in line:
            break
    process.send_signal(how)
    process.wait(timeout=60)
    clone.call("reproduce", *ROWS[:-1], "1")
    made = [line for line in clone.trace() if line[0] == "finetune" and line[2] != "0"]
    assert len(made) == len({name for _, name, _ in made}) == 2  # row 1 and the baseline, each once
    assert (clone.root / "results" / "demo" / "report.html").is_file()


def test_a_live_call_is_not_disturbed(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "a clone")
    first = clone.start("reproduce", *ROWS[:-1], "1", TEST_SLEEP="1")
    for line in first.stdout:
        if "started" in line:
            break
    second = clone.start("reproduce", *ROWS[:-1], "1")
    out, _ = first.communicate(timeout=120)
    later, _ = second.communicate(timeout=120)
    assert first.returncode == 0, out
    assert ("nothing to do" in later) if second.returncode == 0 else ("is in use by" in later), later


@pytest.mark.parametrize("scale", ["demo", "small"])
def test_a_plan_has_every_run_of_every_table_once(scale: str) -> None:
    made = jobs.make_plan(jobs.Request(scale))
    outputs: list[str] = []
    for each in made.jobs:
        assert set(each.needs) <= set(outputs), each  # what a job needs comes before it
        outputs += each.outputs
    assert len(outputs) == len(set(outputs))
    assert any(each.rule == "maps" for each in made.jobs) == (scale == "demo")  # notebook 20
    blank = [run for run in made.runs.values() if run.data.blank_images]
    every = tuple(experiments.scale_settings(scale)["question_sets"])
    assert tuple(run.data.questions for run in blank) == {"demo": ("phantom_vqa_rad",)}.get(scale, every)
    named = jobs.make_plan(jobs.Request(scale, ("table1",), every)).runs.values()
    assert tuple(run.data.questions for run in named if run.data.blank_images) == every
    for table in (each for each in made.jobs if each.rule == "table"):
        runs = {run.run_id for row in experiments.rows(table.name, scale) for run in row.runs}
        runs |= {run.run_id for run in blank if run.data.questions in experiments.sets_of(table.name, scale)}
        assert {f"runs/{run}/provenance.json" for run in runs} == set(table.needs)


def test_equal_runs_of_two_tables_are_one_job() -> None:
    def count(*tables: str, seeds: int = 1) -> list[int]:
        made = jobs.make_plan(jobs.Request("demo", tables, seeds=seeds)).jobs
        return [sum(each.rule == rule for each in made) for rule in ("stage1", "stage2", "finetune")]

    assert count("table4", "table3") == [1, 5, 6 + 4 + 1]  # row 1 of Table 3 is row 6 of Table 4; one baseline
    assert count("table4", seeds=3) == [1, 1, 6 * 3 + 1]


def test_the_plan_of_methods_trains_each_configuration_once_and_is_no_part_of_reproduce() -> None:
    made = jobs.make_plan(jobs.Request("demo", ("methods",), pretrain_seeds=1))
    rows = experiments.entries("methods", "demo")
    of_others = len(experiments.scale_settings("demo")["methods"])
    kinds = [each.rule for each in made.jobs]
    # the full model and plain contrast have stage 1, the full model stage 2; the question-only baseline is one more
    expected = {"teacher": 1, "stage1": 2, "stage2": 1, "pretrain": of_others, "finetune": len(rows) + 1, "table": 1}
    assert {rule: kinds.count(rule) for rule in expected} == expected
    assert all(each.command[:3] == ("-m", "amif_lib", "run") for each in made.jobs if each.rule == "pretrain")
    (table,) = (each for each in made.jobs if each.rule == "table")
    assert table.outputs == ("demo/tables/methods.csv",) and len(table.needs) == len(rows) + 1
    assert ("transfer" in kinds) == ("transfer" in experiments.scale_settings("demo"))  # frozen encoders of these runs
    assert not any(each.name in ("methods", "transfer") for each in jobs.make_plan(jobs.Request("demo")).jobs)


def test_the_data_check_reads_every_set_that_the_plan_reads() -> None:
    for request in (jobs.Request("demo", ("table4",), ("phantom_slake",)), jobs.Request("demo", ("table4", "table1"))):
        made = jobs.make_plan(request)
        checked = {name for run in made.jobs[0].runs for name in data_sets(made.runs[run])}
        assert checked == {name for run in made.runs.values() for name in data_sets(run)}


def test_trainings_share_the_machine(monkeypatch) -> None:
    monkeypatch.delenv("AMIF_PROCESSES", raising=False)
    for cores, gpus, machine, expected in ((2, 0, "laptop", (1, 2, 0)), (16, 4, "workstation", (4, 4, 1))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        monkeypatch.setattr(doctor, "gpus", lambda n=gpus: dict.fromkeys(range(n), 80.0))
        use = reproduce.shares(machine, "demo")
        assert (use["threads"], use["cores"], use["gpus_per_job"]) == expected
    monkeypatch.setenv("AMIF_PROCESSES", "8")
    with pytest.raises(InputError, match="4 GPUs visible"):
        reproduce.shares("workstation", "paper")


def test_hours_are_not_those_of_a_run_that_trained_beside_other_work(tmp_path) -> None:
    for name, seconds in (("a", 90.0), ("b", 3600.0), ("c", 110.0)):
        run = {"spec": {"scale": "demo", "stage": "finetune"}, "metrics": {"samples": 100}}
        for file, content in (run | {"provenance": {"wall_time_s": seconds}}).items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{file}.json").write_text(json.dumps(content))
    assert cost.measured(tmp_path, "demo") == {"finetune": 1.1} and cost.measured(tmp_path, "small") == {}


def test_waiting_threads_of_a_job_sleep(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)  # this process keeps its own
    code = "import os; print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'])"
    job.run(jobs.Job("data", "demo", ("x",), ("-c", code)), tmp_path / "job.log", 3)
    assert (tmp_path / "job.log").read_text().endswith("PASSIVE 3\n")


def test_gpus_are_claimed_by_one_job_each(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(job.tempfile, "gettempdir", lambda: str(tmp_path))
    with job.claimed_gpus(1, 3) as first, job.claimed_gpus(2, 3) as second:
        assert sorted([first, *second.split(",")]) == ["0", "1", "2"]
    with job.claimed_gpus(3, 3) as again:
        assert again == "0,1,2"
    with job.claimed_gpus(2, 0) as left_alone:  # SLURM gives them out
        assert left_alone == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    with job.claimed_gpus(1, 2) as one, job.claimed_gpus(1, 2) as other:
        assert (one, other) == ("4", "7")
