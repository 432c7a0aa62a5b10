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

from amif_lib.app.workflow.job import TITLES, duration, tail
from amif_lib.app.workflow.plan import TRAININGS, Job, Plan, Selection, make_plan
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import exclusive, name_holder
from amif_lib.training.launch import asked_processes

MACHINES = ("laptop", "workstation", "slurm")
MEMORY = {"demo": 1500, "small": 3000, "base": 24_000, "paper": 48_000}  # MB of main memory that one training may take
PATIENCE = 30  # seconds to wait for an interrupted call that is still going down


def reproduce(selection: Selection, machine: str = "laptop") -> int:
    """Run what is missing of the selection and print its tables. Exit status 0, or 1 where a job failed."""
    paths.refuse_reference("reproduce")
    plan = _make_plan(selection)
    use = settings(machine, selection.scale)
    with _only_one(plan) as lock:
        started = time.time()
        command = _command(plan.write(), machine, use) + (["--nolock"] if lock is not None else [])
        again, entries, status = True, [], 0
        while again and not status:
            status = _run(command, plan.folder / "logs" / "workflow.log", lock, quiet=machine != "slurm")
            # Snakemake overlooks jobs behind an ancient() input that is made anew in the same pass: look once more
            before, entries = len(entries), _journal(plan, started)
            again = any(entry["rule"] == "data" for entry in entries[before:])
    if status:
        _report_failures(plan, entries)
        return 1
    _report(plan, entries, time.time() - started)
    return 0


def show_plan(selection: Selection, machine: str = "laptop") -> int:
    """Print what the plan costs and every job with whether it would run, without running anything."""
    from amif_lib.app import costs

    paths.refuse_reference("plan")
    plan = _make_plan(selection)
    use = settings(machine, selection.scale)
    wanted = _pending(_command(plan.write("preview.json"), machine, use))
    todo = [job for job in plan.jobs if wanted & set(job.outputs) or _lacks(job)]
    print(costs.page(costs.summary(plan.tables, selection.scale)) + "\n")
    width = max(len(job.name) for job in plan.jobs)
    for job in plan.jobs:
        state = "to do" if job in todo else "done"
        print(f"{state:<6} {TITLES[job.rule]:<9}  {job.name:<{width}}  {job.label}".rstrip())
    trainings = [job for job in plan.jobs if job.rule in TRAININGS]
    print(
        f"\nSCALE={selection.scale}: {len(plan.jobs)} jobs, {len(todo)} to do; "
        f"{len(trainings)} of them trainings, {sum(job in todo for job in trainings)} to do."
    )
    return 0


def _make_plan(selection: Selection) -> Plan:
    plan = make_plan(selection)
    if plan.left_out:
        listed = ", ".join(f"{row.table}:{row.row} ({hours:.2f} h)" for row, hours in plan.left_out)
        print(f"BUDGET_HOURS={selection.budget_hours:g} leaves out, with the hours that each would add: {listed}")
    return plan


def _lacks(job: Job) -> bool:
    return not all((paths.results() / output).is_file() for output in job.outputs)


def settings(machine: str, scale: str) -> dict[str, Any]:
    """How the jobs share a machine: threads, GPUs and memory of one training, and what there is in all.

    Without a GPU two trainings run side by side, since one gains less from a second core than the next one does; a kind of
    training of which there is one takes all `cores`. Raises InputError for an unknown machine or one that cannot be used.
    """
    if machine not in MACHINES:
        raise InputError(f"MACHINE={machine}: unknown; choose one of {', '.join(MACHINES)}")
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("Snakemake is not installed; run make env")
    processes, memory = asked_processes() or 1, MEMORY.get(scale, MEMORY["demo"])
    if machine == "slurm":  # what there is in all is for the cluster to know
        if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
            plugin = "snakemake-executor-plugin-slurm>=2.7"
            raise InputError(f'MACHINE=slurm: its plugin is not installed; .venv/bin/pip install "{plugin}"')
        per_job = processes if scale in ("base", "paper") else 0
        return {
            "scale": scale,
            "threads": 8,
            "cores": 8,
            "gpus": 0,
            "gpus_per_job": per_job,
            "mem_mb": memory,
            "memory": 0,
        }
    devices, free = _gpus(), int(psutil.virtual_memory().available / 1e6 * 0.9)
    if devices and processes > devices:
        raise InputError(f"AMIF_PROCESSES={processes}: {devices} GPUs visible; lower it")
    per_job = processes if devices else 0
    threads = max(1, _cores() // (devices // per_job if devices else 2))
    cores = threads if devices else _cores()
    shares = {"threads": threads, "cores": cores, "gpus": devices, "gpus_per_job": per_job, "mem_mb": min(memory, free)}
    return {"scale": scale, "memory": free, **shares}


def _command(plan: Path, machine: str, use: dict[str, Any]) -> list[str]:
    config = plan.with_suffix(".config.json")
    config.write_text(json.dumps({"plan": str(plan), **use}, indent=1) + "\n", encoding="utf-8")
    places = ["--snakefile", paths.WORKFLOW / "Snakefile", "--directory", paths.results(), "--configfile", config]
    places += ["--workflow-profile", paths.WORKFLOW / "profiles" / machine]
    limits = [f"mem_mb={use['memory']}", f"gpu={use['gpus']}"] if use["memory"] else []
    return [sys.executable, "-m", "snakemake", *map(str, places), *(["--resources", *limits] if limits else [])]


def _run(command: list[str], log: Path, lock: int | None, quiet: bool) -> int:
    """Run Snakemake; its own words go to a log, the jobs' lines to the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as words:
        child = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stderr=words if quiet else None,
            pass_fds=() if lock is None else (lock,),
        )
        if lock is not None:  # it outlives this process if this one is killed outright
            name_holder(lock, child.pid)
        with _forward_termination():
            try:
                return child.wait()
            except BaseException:
                _stop(child)
                raise


def _pending(command: list[str]) -> set[str]:
    """Outputs that Snakemake would make now."""
    done = subprocess.run(
        [*command, "--nolock", "--summary"],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"Snakemake cannot read the plan:\n{done.stderr[-2000:]}")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    head = next(line for line in lines if line[0] == "output_file")
    return {line[0] for line in lines if len(line) == len(head) and line[-1] not in ("no update", "plan")}


def _environment() -> dict[str, str]:
    search = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def _only_one(plan: Plan):
    """One `make reproduce` per scale. A call that was killed leaves nothing behind, one that is alive is respected."""
    name = f"SCALE={plan.selection.scale} in {paths.shown(paths.results())}"
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            with exclusive(plan.folder / ".lock", name, wait=False) as lock:
                yield lock
                return
        except BlockingIOError as error:
            if time.monotonic() > give_up:
                raise InputError(
                    f"{error}, which is at work on it now; let it finish or end it, then call again"
                ) from None
            time.sleep(1)


@contextlib.contextmanager
def _forward_termination():
    """Turn SIGTERM (kill, timeout, a batch system) and SIGHUP (a closed terminal) into an exception."""

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    heeded = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) is not signal.SIG_IGN]  # nohup
    before = {name: signal.signal(name, leave) for name in heeded}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _stop(child: subprocess.Popen) -> None:
    """End Snakemake and everything below it, politely first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=20)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()
    print("\nstopped; what is finished is kept, the same command carries on from here", flush=True)


def _journal(plan: Plan, since: float) -> list[dict[str, Any]]:
    """What the jobs of this call wrote down when they ended."""
    path = plan.folder / "jobs.jsonl"
    if not path.is_file():
        return []
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["started"] >= since]


def _report_failures(plan: Plan, entries: list[dict[str, Any]]) -> None:
    succeeded = {(entry["rule"], entry["name"]) for entry in entries if entry["status"] == 0}
    failed = {(entry["rule"], entry["name"]): entry for entry in entries if entry["status"]}
    failed = {key: entry for key, entry in failed.items() if key not in succeeded}
    for entry in failed.values():
        print(
            f"\n{TITLES[entry['rule']]} {entry['name']} failed{entry['label'] and ' (' + entry['label'] + ')'}.", end=""
        )
        _show_end(Path(entry["log"]))
    if not failed:
        print("\nthe workflow stopped.", end="")
        _show_end(plan.folder / "logs" / "workflow.log")
    waiting = [job for job in plan.jobs if _lacks(job)]
    print(
        f"\n{len(waiting)} of {len(plan.jobs)} jobs are left. Mend the cause, then call the same command: "
        "what is finished is kept, what was cut off resumes.",
        flush=True,
    )


def _show_end(log: Path) -> None:
    print(f" {paths.shown(log)} ends:\n" + "\n".join("    " + line for line in tail(log, 15)))


def _report(plan: Plan, entries: list[dict[str, Any]], seconds: float) -> None:
    for job in plan.jobs:
        text = (paths.results() / job.output).with_suffix(".md")
        if job.rule == "table" and text.is_file():
            print("\n" + text.read_text(encoding="utf-8").partition("\n## Notes")[0].rstrip())
            print(f"\nTests, notes and runs: {paths.shown(text)}")
    if entries:
        parts: dict[str, float] = {}
        for entry in entries:
            parts[entry["rule"]] = parts.get(entry["rule"], 0) + entry["seconds"]
        spent = ", ".join(f"{TITLES[rule]} {duration(total)}" for rule, total in parts.items())
        print(f"\nSCALE={plan.selection.scale}: jobs run: {len(entries)}, in {duration(seconds)} ({spent}).")
    else:
        print(f"\nSCALE={plan.selection.scale}: nothing to do, all {len(plan.jobs)} jobs are done.")
    page: Job = plan.jobs[-1]
    print(f"Report: {paths.shown(paths.results() / page.output)}", flush=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    """GPUs that torch can use; it is asked only where a driver is installed, since importing it takes seconds."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi")):
        return 0
    import torch

    return torch.cuda.device_count()
