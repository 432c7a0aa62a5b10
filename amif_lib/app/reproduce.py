"""`make reproduce` and `make plan`: write the plan, hand it to Snakemake, and say in plain words what came of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from amif_lib.app import cost
from amif_lib.app.job import duration, tail
from amif_lib.app.jobs import Job, Plan, Request, make_plan
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import exclusive, name_holder, whole_lines
from amif_lib.data import check
from amif_lib.experiments.rows import data_sets
from amif_lib.training.launch import asked

MACHINES = ("laptop", "workstation", "slurm")
MEMORY = {"demo": 1500, "small": 3000, "base": 24_000, "paper": 48_000}  # MB of main memory that one training may take


def reproduce(request: Request, machine: str = "laptop") -> int:
    """Run what is missing of the request and print its tables. Exit status 0, or 1 where a job failed."""
    paths.refuse_reference("reproduce")
    plan = make_plan(request)
    use = shares(machine, request.scale)
    names = sorted({name for run in plan.runs.values() for name in data_sets(run)})
    if absent := [name for name in names if check.presence(name)[0] != "found"]:
        remedy = f"set DATA_ROOT, or fetch the open ones with make data SCALE={request.scale}"
        raise InputError(f"data sets not found: {', '.join(absent)}; {remedy}")
    with exclusive(plan.folder / ".lock", f"SCALE={request.scale} in {paths.shown(paths.results())}") as lock:
        started = time.time()
        command = _command(plan.write(), machine, use) + (["--nolock"] if lock is not None else [])
        status = _run(command, plan.folder / "logs" / "workflow.log", lock, quiet=machine != "slurm")
        # what jobs wrote down when they ended; lines that a killed job cut off are left out
        lines = [
            line for line in whole_lines(plan.folder / "jobs.jsonl") if line.startswith("{") and line.endswith("}")
        ]
        entries = [entry for line in lines if (entry := json.loads(line))["started"] >= started]
    if status:
        _report_failures(plan, entries)
        return 1
    for job in plan.jobs:
        text = (paths.results() / job.outputs[0]).with_suffix(".md")
        if job.rule == "table" and text.is_file():
            print("\n" + text.read_text(encoding="utf-8").partition("\n## Notes")[0].rstrip())
            print(f"\nTests, notes and runs: {paths.shown(text)}")
    done = f"jobs run: {len(entries)}, in {duration(time.time() - started)}"
    print(f"\nSCALE={request.scale}: {done if entries else f'nothing to do, all {len(plan.jobs)} jobs are done'}.")
    print(f"Report: {paths.shown(paths.results() / plan.jobs[-1].outputs[0])}", flush=True)
    return 0


def show_plan(request: Request, machine: str = "laptop") -> int:
    """Print every job with whether it would run, and what the plan costs, without running anything."""
    paths.refuse_reference("plan")
    plan = make_plan(request)
    wanted = _pending(_command(plan.write("preview.json"), machine, shares(machine, request.scale)))
    todo = [job for job in plan.jobs if wanted & set(job.outputs) or _lacks(job)]
    for job in plan.jobs:
        print(f"{'to do' if job in todo else 'done':<6} {job}")
    trainings = _count([job for job in plan.jobs if job.trains], todo)
    print(f"\nSCALE={request.scale}: jobs: {_count(plan.jobs, todo)}; trainings: {trainings}.")
    missing = {run for job in todo for run in job.runs if not (paths.run_dir(run) / "metrics.json").is_file()}
    print(cost.in_words(request.scale, list(plan.runs.values()), [plan.runs[run] for run in missing]))
    return 0


def shares(machine: str, scale: str) -> dict[str, Any]:
    """How the jobs share a machine: threads, GPUs and memory of one training, and what there is in all.

    Without a GPU two trainings run side by side, since one gains less from a second core than the next one does.
    Raises InputError for an unknown machine or one that cannot be used.
    """
    if machine not in MACHINES:
        raise InputError(f"MACHINE={machine}: unknown; choose one of {', '.join(MACHINES)}")
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("Snakemake is not installed; run make env")
    processes, memory = asked("AMIF_PROCESSES") or 1, MEMORY[scale]
    if machine == "slurm":  # SLURM knows what there is in all
        if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
            plugin = "snakemake-executor-plugin-slurm>=2.7"
            raise InputError(f'MACHINE=slurm: its plugin is not installed; .venv/bin/pip install "{plugin}"')
        per_job = processes if scale in ("base", "paper") else 0
        return {"threads": 8, "cores": 8, "gpus": 0, "gpus_per_job": per_job, "mem_mb": memory, "memory": 0}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices, free = _gpus(), int(psutil.virtual_memory().available / 1e6 * 0.9)
    if devices and processes > devices:
        raise InputError(f"AMIF_PROCESSES={processes}: {devices} GPUs visible; lower it")
    per_job = processes if devices else 0
    threads = max(1, cores // (devices // per_job if devices else 2))
    limits = {"gpus": devices, "gpus_per_job": per_job, "mem_mb": min(memory, free), "memory": free}
    return {"threads": threads, "cores": threads if devices else cores, **limits}


def _command(plan: Path, machine: str, use: dict[str, Any]) -> list[str]:
    config = plan.with_suffix(".config.json")
    config.write_text(json.dumps({"plan": str(plan), **use}, indent=1) + "\n", encoding="utf-8")
    app = paths.PACKAGE / "app"
    places = ["--snakefile", app / "Snakefile", "--directory", paths.results(), "--configfile", config]
    places += ["--workflow-profile", app / "profiles" / machine]
    limits = ["--resources", f"mem_mb={use['memory']}", f"gpu={use['gpus']}"] if use["memory"] else []
    return [sys.executable, "-m", "snakemake", *map(str, places), *limits]


def _environment() -> dict[str, str]:
    search = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"}


def _run(command: list[str], log: Path, lock: int | None, quiet: bool) -> int:
    """Run Snakemake; its own messages go to a log, the jobs' lines to the terminal."""
    for number in (
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # kill, timeout, a batch system; a closed terminal, except with nohup
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: sys.exit(143))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as messages:
        held = () if lock is None else (lock,)
        streams = {"stdin": subprocess.DEVNULL, "stderr": messages if quiet else None}
        child = subprocess.Popen(command, env=_environment(), pass_fds=held, **streams)
        if lock is not None:  # Snakemake outlives this process if this one is killed
            name_holder(lock, child.pid)
        try:
            return child.wait()
        except BaseException:
            _stop(child)
            raise


def _pending(command: list[str]) -> set[str]:
    """Outputs that Snakemake would make now."""
    summary = [*command, "--nolock", "--summary"]
    done = subprocess.run(summary, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Snakemake cannot read the plan:\n{done.stderr[-2000:]}")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    head = next(line for line in lines if line[0] == "output_file")
    return {line[0] for line in lines if len(line) == len(head) and line[-1] not in ("no update", "plan")}


def _stop(child: subprocess.Popen) -> None:
    """End Snakemake and everything below it, with time to clean up."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=20)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()
    print("\nstopped; what is finished is kept, the same command continues from here", flush=True)


def _lacks(job: Job) -> bool:
    return not all((paths.results() / output).is_file() for output in job.outputs)


def _count(jobs: list[Job], todo: list[Job]) -> str:
    return f"{sum(job in todo for job in jobs)} of {len(jobs)} to do"


def _report_failures(plan: Plan, entries: list[dict[str, Any]]) -> None:
    last = {entry["log"]: entry for entry in entries}  # a job may have succeeded the second time
    failed = {entry["job"]: Path(entry["log"]) for entry in last.values() if entry["status"]}
    for job, log in (failed or {"workflow": plan.folder / "logs" / "workflow.log"}).items():
        print(f"\n{job}: failed; {paths.shown(log)} ends:\n" + "\n".join("    " + line for line in tail(log, 15)))
    left = sum(map(_lacks, plan.jobs))
    print(
        f"\n{left} of {len(plan.jobs)} jobs are left. Correct the cause, then call the same command: what is finished "
        "is kept, what was cut off resumes.",
        flush=True,
    )


def _gpus() -> int:
    """GPUs that torch can use; torch is asked only where a driver is installed, since importing it takes seconds."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi")):
        return 0
    import torch

    return torch.cuda.device_count()
