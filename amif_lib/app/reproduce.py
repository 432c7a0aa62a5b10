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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from amif_lib.app import cost
from amif_lib.app.job import duration, tail
from amif_lib.app.jobs import TITLES, Job, Plan, Request, make_plan
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import exclusive, name_holder, whole_lines
from amif_lib.data import check
from amif_lib.experiments.rows import data_sets
from amif_lib.training.launch import asked

MACHINES = ("laptop", "workstation", "slurm")
MEMORY = {"demo": 1500, "small": 3000, "base": 24_000, "paper": 48_000}  # MB of main memory that one training may take
PATIENCE = 90  # seconds to wait for an interrupted call that is still ending


def reproduce(request: Request, machine: str = "laptop") -> int:
    """Run what is missing of the request and print its tables. Exit status 0, or 1 where a job failed."""
    paths.refuse_reference("reproduce")
    plan = make_plan(request)
    use = shares(machine, request.scale)
    _refuse_absent_data(plan)
    with _only_one(plan) as lock:
        started = time.time()
        command = _command(plan.write(), machine, use) + (["--nolock"] if lock is not None else [])
        status = _run(command, plan.folder / "logs" / "workflow.log", lock, quiet=machine != "slurm")
        entries = [entry for entry in _journal(plan) if entry["started"] >= started]
    if status:
        _report_failures(plan, entries)
        return 1
    _report(plan, entries, time.time() - started)
    return 0


def show_plan(request: Request, machine: str = "laptop") -> int:
    """Print every job with whether it would run, and what the plan costs, without running anything."""
    paths.refuse_reference("plan")
    plan = make_plan(request)
    wanted = _pending(_command(plan.write("preview.json"), machine, shares(machine, request.scale)))
    todo = [job for job in plan.jobs if wanted & set(job.outputs) or _lacks(job)]
    for job in plan.jobs:
        state = "to do" if job in todo else "done"
        print(f"{state:<6} {TITLES.get(job.rule, job.rule):<9}  {job.name:<13}  {job.label}".rstrip())
    trainings = [job for job in plan.jobs if job.trains]
    print(
        f"\nSCALE={request.scale}: {len(plan.jobs)} jobs, {len(todo)} to do; {len(trainings)} of them trainings, "
        f"{sum(job in todo for job in trainings)} to do."
    )
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


def _refuse_absent_data(plan: Plan) -> None:
    names = sorted({name for run in plan.runs.values() for name in data_sets(run)})
    absent = [name for name in names if check.presence(name)[0] != "found"]
    if absent:
        scale = plan.request.scale
        raise InputError(
            f"data sets not found: {', '.join(absent)}; set DATA_ROOT, or fetch the open ones with "
            f"make data SCALE={scale}"
        )


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
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as messages, _termination_as_interrupt():
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


@contextlib.contextmanager
def _only_one(plan: Plan) -> Iterator[int | None]:
    """One `make reproduce` per scale: wait a little for an interrupted call, refuse beside one that goes on."""
    name = f"SCALE={plan.request.scale} in {paths.shown(paths.results())}"
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            with exclusive(plan.folder / ".lock", name, wait=False) as lock:
                yield lock
                return
        except BlockingIOError as error:
            if time.monotonic() > give_up:
                raise InputError(f"{error}; let it finish or end it, then call again") from None
            time.sleep(1)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM (kill, timeout, a batch system) and SIGHUP (a closed terminal) into KeyboardInterrupt."""

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    heeded = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]  # nohup ignores
    before = {each: signal.signal(each, leave) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


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


def _journal(plan: Plan) -> list[dict[str, Any]]:
    """What jobs wrote down when they ended, in this call and before; lines that a killed job cut off are left out."""
    lines = whole_lines(plan.folder / "jobs.jsonl")
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _report_failures(plan: Plan, entries: list[dict[str, Any]]) -> None:
    last = {(entry["rule"], entry["name"]): entry for entry in entries}  # a job may have succeeded the second time
    failed = [entry for entry in last.values() if entry["status"]]
    for entry in failed:
        about = f" ({entry['label']})" if entry["label"] else ""
        print(f"\n{TITLES.get(entry['rule'], entry['rule'])} {entry['name']} failed{about}.", end="")
        _show_end(Path(entry["log"]))
    if not failed:
        print("\nthe workflow stopped.", end="")
        _show_end(plan.folder / "logs" / "workflow.log")
    print(
        f"\n{sum(map(_lacks, plan.jobs))} of {len(plan.jobs)} jobs are left. Correct the cause, then call the same "
        "command: what is finished is kept, what was cut off resumes.",
        flush=True,
    )


def _show_end(log: Path) -> None:
    print(f" {paths.shown(log)} ends:\n" + "\n".join("    " + line for line in tail(log, 15)))


def _report(plan: Plan, entries: list[dict[str, Any]], seconds: float) -> None:
    for job in plan.jobs:
        text = (paths.results() / job.outputs[0]).with_suffix(".md")
        if job.rule == "table" and text.is_file():
            print("\n" + text.read_text(encoding="utf-8").partition("\n## Notes")[0].rstrip())
            print(f"\nTests, notes and runs: {paths.shown(text)}")
    if entries:
        parts: dict[str, float] = {}
        for entry in entries:
            parts[entry["rule"]] = parts.get(entry["rule"], 0) + entry["seconds"]
        spent = ", ".join(f"{TITLES.get(rule, rule)} {duration(total)}" for rule, total in parts.items())
        print(f"\nSCALE={plan.request.scale}: jobs run: {len(entries)}, in {duration(seconds)} ({spent}).")
    else:
        print(f"\nSCALE={plan.request.scale}: nothing to do, all {len(plan.jobs)} jobs are done.")
    print(f"Report: {paths.shown(paths.results() / plan.jobs[-1].outputs[0])}", flush=True)


def _gpus() -> int:
    """GPUs that torch can use; torch is asked only where a driver is installed, since importing it takes seconds."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi")):
        return 0
    import torch

    return torch.cuda.device_count()
