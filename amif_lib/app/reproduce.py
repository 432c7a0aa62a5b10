"""`make reproduce` and `make plan`: write the plan, hand it to Snakemake, and report the outcome."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from amif_lib.app import cost, doctor
from amif_lib.app.job import since, tail
from amif_lib.app.jobs import Request, make_plan
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import check
from amif_lib.experiments.identity import data_sets
from amif_lib.training.launch import asked

MACHINES = ("laptop", "workstation", "slurm")
MEMORY = {"demo": 1500, "small": 3000, "base": 24_000, "paper": 48_000}  # MB of main memory that one training may take


def reproduce(machine: str = "laptop", datasets: tuple[str, ...] = (), **request: Any) -> int:
    """Run what is missing of a request (`jobs.Request`) and print its tables. Exit status 0, or 1 if a job failed."""
    paths.refuse_reference("reproduce")
    plan = make_plan(Request(question_sets=datasets, **request))
    scale, use = plan.request.scale, shares(machine, plan.request.scale)
    names = sorted({name for run in plan.runs.values() for name in data_sets(run)})
    if absent := [name for name in names if check.presence(name)[0] != "found"]:
        file = paths.shown(paths.SPECS / "scales" / f"{scale}.yaml")
        fewer = f"name fewer, by DATASETS or under `data` in {file}, which gives the runs other ids"
        remedy = f"set DATA_ROOT, fetch the open ones with make data SCALE={scale}, or {fewer}"
        raise InputError(f"data sets not found: {', '.join(absent)}; {remedy}")
    place = f"SCALE={scale} in {paths.shown(paths.results())}"
    with files.exclusive(plan.folder / ".lock", place, remedy=files.RESULTS) as lock:
        started, messages = time.time(), plan.folder / "logs" / "workflow.log"
        command = _command(plan.write(), machine, use) + (["--nolock"] if lock is not None else [])
        first = [*command[:3], plan.jobs[0].outputs[0], *command[3:]]  # no training on data that fail their check
        quiet = machine != "slurm"
        status = _run(first, messages, lock, quiet) or _run(command, messages, lock, quiet)
    logs = [log for log in messages.parent.glob("*.log") if log != messages and log.stat().st_mtime >= started]
    if status:
        left = sum(not job.is_done() for job in plan.jobs)
        if not logs:  # no job ran, so Snakemake's own messages hold the cause
            print(f"{paths.shown(messages)} ends:\n{tail(messages, 15)}")
        said = f"{left} of {len(plan.jobs)} jobs are left. Correct what FAILED, then run the same command"
        print(f"\nSCALE={scale}: {said}: finished jobs are kept, interrupted trainings resume.", flush=True)
        return 1
    for job in plan.jobs:
        text = (paths.results() / job.outputs[0]).with_suffix(".md")
        if job.rule == "table" and text.is_file():
            print("\n" + text.read_text(encoding="utf-8").partition("\n## Notes")[0].rstrip())
            print(f"\nTests, notes and runs: {paths.shown(text)}")
    done = f"jobs run: {len(logs)}, in {since(started)}"
    print(f"\nSCALE={scale}: {done if logs else f'nothing to do, all {len(plan.jobs)} jobs are done'}.")
    print(f"Report: {paths.shown(paths.results() / plan.jobs[-1].outputs[0])}", flush=True)
    return 0


def show_plan(datasets: tuple[str, ...] = (), **request: Any) -> None:
    """Print every job, whether it would run, and what the plan costs, without running anything."""
    paths.refuse_reference("plan")
    plan = make_plan(Request(question_sets=datasets, **request))
    scale = plan.request.scale
    nothing = dict.fromkeys(("threads", "cores", "gpus", "gpus_per_job", "mem_mb", "memory"), 0)  # none runs here
    wanted = _pending(_command(plan.write("preview.json"), "laptop", nothing))
    todo = [job for job in plan.jobs if wanted & set(job.outputs) or not job.is_done()]
    for job in plan.jobs:
        print(f"{'to do' if job in todo else 'done':<6} {job}")
    trainings = [job for job in plan.jobs if job.trains]
    print(f"\nSCALE={scale}: {len(todo)} of {len(plan.jobs)} jobs to do, with ", end="")
    print(f"{sum(job in todo for job in trainings)} of {len(trainings)} trainings.")
    missing = {run for job in todo for run in job.runs if not (paths.run_dir(run) / "provenance.json").is_file()}
    print(cost.in_words(scale, list(plan.runs.values()), [plan.runs[run] for run in missing]))


def shares(machine: str, scale: str) -> dict[str, Any]:
    """How the jobs share a machine: threads, GPUs and memory (MB) of one training, and of all together.

    Without a GPU two trainings run side by side, since a second core speeds up one training only a little. Raises
    InputError for an unknown machine or one that cannot be used.
    """
    if machine not in MACHINES:
        raise InputError(f"MACHINE={machine}: unknown; choose one of {', '.join(MACHINES)}")
    processes, memory = asked("AMIF_PROCESSES") or 1, MEMORY[scale]
    if machine == "slurm":  # SLURM itself knows the cluster's limits
        if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
            plugin = "snakemake-executor-plugin-slurm>=2.7"
            raise InputError(f'MACHINE=slurm: its plugin is not installed; .venv/bin/pip install "{plugin}"')
        per_job = processes if scale in ("base", "paper") else 0
        return {"threads": 8, "cores": 8, "gpus": 0, "gpus_per_job": per_job, "mem_mb": memory, "memory": 0}
    cores, devices = doctor.cores(), len(doctor.gpus())
    free = int(psutil.virtual_memory().available / 1e6 * 0.9)
    if devices and processes > devices:
        raise InputError(f"AMIF_PROCESSES={processes}: {devices} GPUs visible; lower it")
    per_job = processes if devices else 0
    threads = max(1, cores // (devices // per_job if devices else 2))
    limits = {"gpus": devices, "gpus_per_job": per_job, "mem_mb": min(memory, free), "memory": free}
    return {"threads": threads, "cores": threads if devices else cores, **limits}


# --- Snakemake -------------------------------------------------------------------------------------------------------


def _command(plan: Path, machine: str, use: dict[str, Any]) -> list[str]:
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("Snakemake is not installed; run make env")
    app = paths.PACKAGE / "app"
    places = ["--snakefile", app / "Snakefile", "--directory", paths.results()]
    places += ["--workflow-profile", app / "profiles" / machine]
    limits = ["--resources", f"mem_mb={use['memory']}", f"gpu={use['gpus']}"] if use["memory"] else []
    config = ["--config", f"plan={plan}", *(f"{name}={value}" for name, value in use.items())]
    return [sys.executable, "-m", "snakemake", *map(str, places), *limits, *config]


def _environment() -> dict[str, str]:
    search = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"}


def _run(command: list[str], log: Path, lock: int | None, quiet: bool) -> int:
    """Run Snakemake; its own messages go to a log, the jobs' lines to the terminal."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a batch system; a closed terminal, except with nohup
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: sys.exit(143))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as messages:
        held = () if lock is None else (lock,)
        streams = {"stdin": subprocess.DEVNULL, "stderr": messages if quiet else None}
        child = subprocess.Popen(command, env=_environment(), pass_fds=held, **streams)
        if lock is not None:  # if this process is killed, Snakemake goes on and holds the lock
            files.name_holder(lock, child.pid)
        try:
            return child.wait()
        except BaseException:
            _stop(child)
            raise


def _stop(child: subprocess.Popen) -> None:
    """End Snakemake and all its child processes, with time to clean up."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            family = psutil.wait_procs(family, timeout=20)[1]
    child.wait()
    print("\nstopped; finished jobs are kept, the same command continues from here", flush=True)


def _pending(command: list[str]) -> set[str]:
    """Outputs that Snakemake would make now."""
    summary = [*command, "--nolock", "--summary"]
    done = subprocess.run(summary, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Snakemake cannot read the plan:\n{done.stderr[-2000:]}")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    head = next(line for line in lines if line[0] == "output_file")
    return {line[0] for line in lines if len(line) == len(head) and line[-1] not in ("no update", "plan")}
