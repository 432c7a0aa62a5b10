"""The workflow on a copy of the kit whose trainings only write files: order, resuming, what starts again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from amif_lib.app.workflow import engine, job, plan

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments

pytest.importorskip("snakemake")
ROOT = Path(__file__).resolve().parents[1]
TABLE = ("--tables", "table4", "--datasets", "phantom_vqa_rad,phantom_slake")
ROWS = (*TABLE, "--rows", "1,6")  # without pre-training, and the full model
FINETUNINGS = 3  # notebooks: rows 1 and 6, one baseline; each makes the runs of two question sets

# Executes a notebook's code cells in a plain interpreter: the workflow is the same, a kernel's start is spared.
RUNNER = """
def main(arguments=None):
    import argparse, shutil
    parser = argparse.ArgumentParser()
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("-p", dest="given", nargs=2, action="append", default=[])
    parser.add_argument("--copy-to", type=Path, action="append", default=[])
    options = parser.parse_args(arguments)
    options.out, options.copy_to = options.out.resolve(), [folder.resolve() for folder in options.copy_to]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.notebook, options.out)
    os.chdir(paths.ROOT)
    names = {}
    for number, cell in enumerate(c for c in read_notebook(options.notebook)["cells"] if c["cell_type"] == "code"):
        exec("".join(cell["source"]), names)
        if number == 0:
            assert set(dict(options.given)) <= set(names), "unknown parameter"
            names.update(options.given)
    for folder in options.copy_to:
        shutil.copy(options.out, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
"""
TRAIN = """
import json, os, time
from amif_lib.core import paths
from amif_lib.experiments.rows import load_spec

time.sleep(float(os.environ.get("TEST_SLEEP", 0)))
answers = lambda run: ["predictions.parquet", "candidates.parquet"] if run.stage == "finetune" else []
needed = lambda run: ["spec.json", "provenance.json", "metrics.json", *answers(run)]
done = lambda run: all((run.directory / name).is_file() for name in needed(run))
for run in load_spec(spec):
    files = needed(run)
    ready = not run.parent or done(run.parent)
    with (paths.results() / "trace.txt").open("a") as trace:
        trace.write(f"{'keep' if done(run) else 'train'} {run.stage} {run.run_id} {'ready' if ready else 'TOO EARLY'}\\n")
    if not done(run):
        run.directory.mkdir(parents=True, exist_ok=True)
        for name in files:
            content = {"commit": "earlier"} if name == "provenance.json" else run.model_dump(mode="json")
            (run.directory / name).write_text(json.dumps(content))
"""
PRODUCT = """
from amif_lib.core import paths
folder = paths.results() / "demo"
with (paths.results() / "trace.txt").open("a") as trace:
    trace.write("%(what)s\\n")
path = folder / "%(path)s"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text("made")
path.with_suffix(".md").write_text("| a table |")
"""
FIGURES = """
from amif_lib.core import paths


def main(scale, allow_none=False):
    path = paths.scale_dir(scale) / "figures" / "figures.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("figure,caption\\n")
    with (paths.results() / "trace.txt").open("a") as trace:
        trace.write("figures\\n")
    return 0
"""
TEACHER = """
def ensure(spec, studies=None):
    folder = paths.run_dir(teacher_id(spec))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("{}")
    with (paths.results() / "trace.txt").open("a") as trace:
        trace.write("teacher\\n")


if __name__ == "__main__":
    main()
"""


def write_notebook(path: Path, parameters: str, code: str, prose: str = "# Title") -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": prose},
        {
            "cell_type": "code",
            "metadata": {"tags": ["parameters"]},
            "source": parameters,
            "outputs": [],
            "execution_count": None,
        },
        {"cell_type": "code", "metadata": {}, "source": code, "outputs": [], "execution_count": None},
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


TABLES = ("table1", "table2", "table3", "table4", "table5", "lambda_sweep")


class Clone:
    """A copy of the kit, in a folder with a space in its name, with trainings that write files and a trace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("amif_lib", "data_manifests"):
            shutil.copytree(ROOT / name, root / name, ignore=ignore)
        (root / "results").mkdir()
        runner = root / "amif_lib" / "run_notebook.py"
        runner.write_text(runner.read_text().split("def main(")[0] + RUNNER)
        teachers = root / "amif_lib" / "teachers.py"
        teachers.write_text(teachers.read_text().split('if __name__ == "__main__"')[0] + TEACHER)
        (root / "amif_lib" / "figure_set.py").write_text(FIGURES)
        self.notebooks = root / "notebooks"
        self.notebooks.mkdir()
        for name in ("03_stage1_global_alignment", "04_stage2_local_alignment_and_mining", "05_finetune_vqa"):
            write_notebook(self.notebooks / f"{name}.ipynb", 'spec = ""', TRAIN)
        write_notebook(self.notebooks / f"{plan.NOTEBOOKS['maps']}.ipynb", 'scale = ""', "pass")
        for name, parameter, path in (
            ("01_data_and_manifests", "spec", "data/check.csv"),
            *((plan.NOTEBOOKS[name], "spec", f"tables/{name}.csv") for name in TABLES),
            ("90_reproduction_report", "scale", "report.html"),
        ):
            write_notebook(
                self.notebooks / f"{name}.ipynb", f'{parameter} = ""', PRODUCT % {"what": Path(path).stem, "path": path}
            )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        settings = {
            key: value
            for key, value in os.environ.items()
            if key not in ("AMIF_RESULTS", "DATA_ROOT", "SCALE", "AMIF_PROCESSES")
        }
        return subprocess.Popen(
            [sys.executable, "-m", "amif_lib", *arguments],
            cwd=self.root,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**settings, **environment},
        )

    def call(self, *arguments: str, status: int = 0, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        try:
            out, _ = process.communicate(timeout=180)
        finally:
            process.kill()
        assert process.returncode == status, out
        return out

    def trace(self) -> list[str]:
        """What the jobs wrote down since the last look."""
        path = self.root / "results" / "trace.txt"
        lines = path.read_text().splitlines() if path.is_file() else []
        path.unlink(missing_ok=True)
        return lines

    def edit(self, notebook: str, old: str, new: str) -> None:
        path = next(self.notebooks.glob(f"{notebook}*.ipynb"))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str, list[str]]:
    clone = Clone(tmp_path_factory.mktemp("a clone"))
    out = clone.call("reproduce", *ROWS)
    return clone, out, clone.trace()


def test_everything_is_made_once_and_in_order(finished) -> None:
    clone, out, trace = finished
    jobs = json.loads((clone.root / "results" / "demo" / "plan.json").read_text())["jobs"]
    kinds = [line.split()[1] if len(line.split()) > 1 else line for line in trace]
    expected = {
        "check": 1,
        "teacher": 1,
        "stage1": 1,
        "stage2": 1,
        "table4": 1,
        "figures": 1,
        "report": 1,
        "finetune": 2 * FINETUNINGS,
    }
    assert {kind: kinds.count(kind) for kind in kinds} == expected
    assert len(jobs) == sum(expected.values()) - FINETUNINGS
    assert not any("TOO EARLY" in line or line.startswith("keep") for line in trace)
    assert (
        kinds.index("teacher")
        < kinds.index("stage1")
        < kinds.index("stage2")
        < kinds.index("table4")
        < kinds.index("figures")
        < kinds.index("report")
    )
    assert "| a table |" in out and "report.html" in out and out.count("started") == out.count("done in") == len(jobs)
    assert all((clone.root / "results" / job["output"]).is_file() for job in jobs)
    executed = {path.parent.name for path in clone.root.glob("results/runs/*/05_finetune_vqa.ipynb")}
    assert executed == {
        run for job in jobs if job["rule"] == "finetune" for run in job["runs"]
    }  # each run has its notebook
    assert len(executed) == 2 * FINETUNINGS


def test_a_second_call_does_nothing_and_says_so(finished) -> None:
    clone, _, _ = finished
    out = clone.call("reproduce", *ROWS)
    assert clone.trace() == [] and "nothing to do" in out and "| a table |" in out
    assert "0 to do" in clone.call("plan", *ROWS)


def test_prose_and_new_time_stamps_rerun_nothing(finished) -> None:
    clone, _, _ = finished
    clone.edit("05", "# Title", "# A better title")
    for path in [*(clone.root / "results" / "runs").rglob("*.json"), *clone.notebooks.iterdir()]:
        path.touch()
    clone.call("reproduce", *ROWS)
    assert clone.trace() == []


def test_changed_code_executes_notebooks_again_but_never_drops_a_finished_run(finished) -> None:
    clone, _, _ = finished
    clone.edit("05", "import json, os, time", "import json, time, os")
    plan = clone.call("plan", *ROWS)
    clone.call("reproduce", *ROWS)
    trace = clone.trace()
    assert [line.split()[0] for line in trace if "finetune" in line] == ["keep"] * 2 * FINETUNINGS
    assert "table4" in trace and not any("stage" in line for line in trace)
    assert sum(line.startswith("to do") and "fine-tune" in line for line in plan.splitlines()) == FINETUNINGS


def _delete_a_run(clone: Clone) -> str:
    """One of the two runs that a fine-tuning notebook has made."""
    jobs = json.loads((clone.root / "results/demo/plan.json").read_text())["jobs"]
    run = next(job for job in jobs if job["rule"] == "finetune")["runs"][1]
    shutil.rmtree(clone.root / "results" / "runs" / run)
    return run


def test_a_deleted_run_is_trained_again_and_only_that_run(finished) -> None:
    clone, _, _ = finished
    run = _delete_a_run(clone)
    clone.call("reproduce", *ROWS)
    trace = clone.trace()
    assert [line for line in trace if "train" in line] == [f"train finetune {run} ready"]
    assert sum(line.startswith("keep") for line in trace) == 1 and "table4" in trace  # its neighbour is looked at


def test_a_deleted_file_of_predictions_is_made_again(finished) -> None:
    clone, _, _ = finished
    jobs = json.loads((clone.root / "results/demo/plan.json").read_text())["jobs"]
    run = next(job for job in jobs if job["rule"] == "finetune")["runs"][0]
    (clone.root / "results" / "runs" / run / "predictions.parquet").unlink()
    clone.call("reproduce", *ROWS)
    assert [line for line in clone.trace() if "train" in line] == [f"train finetune {run} ready"]
    assert (clone.root / "results" / "runs" / run / "predictions.parquet").is_file()


def test_a_changed_setting_of_a_row_trains_that_row_alone(finished) -> None:
    clone, _, _ = finished
    path = clone.root / "amif_lib" / "specs" / "table4.yaml"
    before = path.read_text()
    old = "settings: {knowledge: {source: answers, gate: true}}}"
    assert before.count(old) == 1  # row 6
    path.write_text(before.replace(old, "settings: {knowledge: {source: answers, gate: true}, finetune: {epochs: 1}}}"))
    clone.call("reproduce", *ROWS)
    trained = [line for line in clone.trace() if line.startswith("train")]
    assert len(trained) == 2 and all(line.startswith("train finetune") for line in trained), trained  # its two sets
    found = [json.loads((clone.root / "results" / "runs" / x.split()[2] / "spec.json").read_text()) for x in trained]
    assert {run["train"]["epochs"] for run in found} == {1} and all(run["knowledge"]["gate"] for run in found)
    path.write_text(before)
    clone.call("reproduce", *ROWS)
    assert not any(line.startswith("train") for line in clone.trace())  # the earlier runs are there


def test_data_in_another_place_are_checked_again_and_what_is_missing_is_still_made(finished, tmp_path) -> None:
    clone, _, _ = finished
    run = _delete_a_run(clone)
    clone.call("reproduce", *ROWS, AMIF_PHANTOM=str(tmp_path))
    trace = clone.trace()
    assert trace.count("check") == 1 and "table4" in trace
    assert [line for line in trace if line.startswith("train")] == [f"train finetune {run} ready"]
    clone.call("reproduce", *ROWS)
    assert clone.trace() == ["check"]


def test_a_failing_notebook_keeps_the_run_and_is_reported_with_its_log(finished) -> None:
    clone, _, _ = finished
    clone.edit("03", "time.sleep(", "1 / 0; time.sleep(")
    out = clone.call("reproduce", *ROWS, status=1)
    assert "ZeroDivisionError" in out and "stage 1" in out and "same command" in out
    jobs = json.loads((clone.root / "results/demo/plan.json").read_text())["jobs"]
    run = next(job["name"] for job in jobs if job["rule"] == "stage1")
    assert (clone.root / "results" / "runs" / run / "metrics.json").is_file()
    assert (clone.root / "results" / "runs" / run / "03_stage1_global_alignment.ipynb").is_file()
    clone.edit("03", "1 / 0; time.sleep(", "time.sleep(")
    clone.trace()
    clone.call("reproduce", *ROWS)
    assert not any(line.startswith("train") for line in clone.trace())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_call_is_carried_on_by_the_next(tmp_path: Path, how: signal.Signals) -> None:
    clone = Clone(tmp_path / "a clone")
    process = clone.start("reproduce", *TABLE, "--rows", "1", TEST_SLEEP="1")
    for line in process.stdout:
        if "fine-tune" in line and "started" in line:
            break
    process.send_signal(how)
    process.wait(timeout=60)
    out = clone.call("reproduce", *TABLE, "--rows", "1")
    trained = [line for line in clone.trace() if line.startswith("train")]
    assert len(trained) == len(set(trained)) and "TOO EARLY" not in "".join(trained), (trained, out)
    assert (clone.root / "results" / "demo" / "report.html").is_file()


def test_a_live_call_is_not_disturbed(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "a clone")
    first = clone.start("reproduce", *TABLE, "--rows", "1", TEST_SLEEP="1")
    for line in first.stdout:
        if "started" in line:
            break
    second = clone.start("reproduce", *TABLE, "--rows", "1")
    out, _ = first.communicate(timeout=120)
    later, _ = second.communicate(timeout=120)
    assert first.returncode == 0, out
    assert ("nothing to do" in later and second.returncode == 0) or (
        "at work on it now" in later and second.returncode == 2
    ), later


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scale", "huge"), "SCALE=huge"),
        (("--rows", "99"), "ROWS: 99"),
        (("--machine", "cray"), "MACHINE=cray"),
        (("--datasets", "slake"), "DATASETS: 'slake'"),
        (("--seeds", "0"), "SEEDS=0"),
        (("--tables", "table9"), "table 'table9'"),
    ],
)
def test_bad_choices_are_one_line_errors(arguments, words, finished, monkeypatch, capsys) -> None:
    from amif_lib.app.cli import main

    clone, _, _ = finished
    monkeypatch.setenv("AMIF_RESULTS", str(clone.root / "elsewhere"))
    monkeypatch.setattr(paths, "NOTEBOOKS", clone.notebooks)
    assert main(["reproduce", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_file_names_agree_with_those_that_write_them() -> None:
    from amif_lib.experiments.predictions import CANDIDATES, PREDICTIONS

    assert plan.PREDICTIONS == (PREDICTIONS, CANDIDATES)


def test_each_table_of_a_scale_has_its_runs_and_baselines_in_the_plan(monkeypatch) -> None:
    monkeypatch.setattr(plan, "code_digest", lambda notebook: "")
    for scale in ("demo", "small"):
        made = plan.make_plan(plan.Selection(scale))
        outputs: list[str] = []
        for each in made.jobs:
            assert set(each.needs) <= set(outputs), each  # what a job needs comes before it
            outputs += each.outputs
        assert len(outputs) == len(set(outputs))
        blank = [run for run in made.runs.values() if run.data.blank_images]
        sets = list(experiments.scale_settings(scale)["question_sets"])
        assert sorted(run.data.questions for run in blank) == sorted(sets)  # once per question set, whatever the starts
        for run in blank:  # a baseline differs from a run of the plan in the images alone
            assert (
                run.model_copy(update={"data": run.data.model_copy(update={"blank_images": False})}).run_id in made.runs
            )
        for table in made.jobs:
            if table.rule == "table":
                runs = {run.run_id for row in experiments.rows(table.name, scale) for run in row.runs}
                assert {f"runs/{run}/metrics.json" for run in runs | {run.run_id for run in blank}} == set(table.needs)


def test_equal_runs_of_two_tables_are_one_job(monkeypatch) -> None:
    monkeypatch.setattr(plan, "code_digest", lambda notebook: "")

    def count(*tables: str, seeds: int = 1) -> list[int]:
        made = plan.make_plan(plan.Selection("demo", tables, seeds=seeds)).jobs
        return [sum(job.rule == rule for job in made) for rule in ("stage1", "stage2", "finetune")]

    assert count("table4", "table3") == [1, 5, 6 + 4 + 1]  # row 1 of Table 3 is row 6 of Table 4; one baseline
    assert count("table4", seeds=3) == [1, 1, 6 * 3 + 1]
    assert count() == [
        16,
        21,
        29 + 1,
    ]  # stage-1, stage-2 and fine-tune notebooks; beside them the question-only baseline


def test_a_budget_keeps_the_headline_first_and_names_what_it_leaves_out(monkeypatch) -> None:
    monkeypatch.setattr(plan, "code_digest", lambda notebook: "")
    whole = plan.make_plan(plan.Selection("demo"))
    some = plan.make_plan(plan.Selection("demo", budget_hours=0.5))
    assert some.selection.rows[0] == "table1:demo" and set(some.runs) < set(whole.runs) and some.left_out
    kept = {tuple(name.split(":")) for name in some.selection.rows}
    every = {(table, row.row) for table in experiments.tables_of("demo") for row in experiments.rows(table, "demo")}
    assert kept | {(row.table, row.row) for row, _ in some.left_out} == every
    again = plan.make_plan(plan.Selection("demo", rows=some.selection.rows))  # what tables will look for
    assert set(again.runs) == set(some.runs)
    with pytest.raises(InputError, match="no row fits"):
        plan.make_plan(plan.Selection("demo", budget_hours=1e-4))


def test_trainings_share_the_machine(monkeypatch) -> None:
    monkeypatch.delenv("AMIF_PROCESSES", raising=False)
    monkeypatch.setattr(engine, "_cores", lambda: 2)
    monkeypatch.setattr(engine, "_gpus", lambda: 0)
    use = engine.settings("laptop", "demo")
    assert (use["threads"], use["cores"]) == (1, 2)  # two side by side; one that is alone of its kind on both cores
    monkeypatch.setattr(engine, "_cores", lambda: 16)
    monkeypatch.setattr(engine, "_gpus", lambda: 4)
    use = engine.settings("workstation", "paper")
    assert (use["threads"], use["gpus"], use["gpus_per_job"]) == (4, 4, 1)
    monkeypatch.setenv("AMIF_PROCESSES", "2")
    assert engine.settings("workstation", "paper")["threads"] == 8
    monkeypatch.setenv("AMIF_PROCESSES", "8")
    with pytest.raises(InputError, match="4 GPUs visible"):
        engine.settings("workstation", "paper")


@pytest.mark.parametrize(("own", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_a_jobs_waiting_threads_sleep_unless_the_user_says_otherwise(tmp_path, monkeypatch, own, found) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)  # this process keeps its own
    log = tmp_path / "job.log"
    code = "import os; print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'])"
    job.run(plan.Job("data", "demo", "data.json"), [sys.executable, "-c", code], log, 3, 0, 0)
    assert log.read_text() == f"{found} 3\n"


def test_gpus_are_claimed_one_job_each(tmp_path, monkeypatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job.tempfile, "gettempdir", lambda: str(tmp_path))
    with job.gpus(1, 3) as first, job.gpus(2, 3) as second:
        assert sorted([first, *second.split(",")]) == ["0", "1", "2"]
    with job.gpus(3, 3) as again:
        assert again == "0,1,2"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with job.gpus(2, 3) as left_alone:
        assert left_alone == ""
