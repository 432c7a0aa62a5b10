"""`make reproduce` and `make plan`: write the plan, hand it to Snakemake, and say in plain words what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from amif_lib import paths
from amif_lib.errors import InputError
from amif_lib.launch import exclusive, name_holder
from amif_lib.workflow.job import TITLES, duration, tail
from amif_lib.workflow.plan import TRAININGS, Job, Plan, Selection, make_plan

MACHINES = ("laptop", "workstation", "slurm")
MEMORY = {"demo": 1500, "small": 3000, "base": 24_000, "paper": 48_000}  # MB of main memory that one training may take
PATIENCE = 30  # seconds to wait for an interrupted call that is still going down


def reproduce(selection: Selection, machine: str = "laptop") -> int:
    """Run what is missing of the selection and print its tables. Exit status 0, or 1 where a job failed."""
    plan = make_plan(selection)
    file = plan.write()
    with _only_one(plan) as lock:
        started = time.time()
        command = _command(plan, file, machine) + (["--nolock"] if lock is not None else [])
        status = _run(command, plan.folder / "logs" / "workflow.log", lock, quiet=machine != "slurm")
    entries = _journal(plan, started)
    if status:
        _report_failures(plan, entries)
        return 1
    _report(plan, entries, time.time() - started)
    return 0


def show_plan(selection: Selection, machine: str = "laptop") -> int:
    """Print every job with whether it would run, without running anything."""
    plan = make_plan(selection)
    file = plan.write("preview.json")
    wanted = _pending(_command(plan, file, machine))
    width = max(len(job.name) for job in plan.jobs)
    for job in plan.jobs:
        state = "to do" if job.output in wanted else "done"
        print(f"{state:<6} {TITLES[job.rule]:<9}  {job.name:<{width}}  {job.label}".rstrip())
    trainings = [job for job in plan.jobs if job.rule in TRAININGS]
    print(f"\nSCALE={selection.scale}: {len(plan.jobs)} jobs, {len(wanted)} to do; "
          f"{len(trainings)} of them trainings, {sum(job.output in wanted for job in trainings)} to do.")
    return 0


def settings(machine: str, scale: str) -> dict[str, Any]:
    """How the jobs share a machine: threads, GPUs and memory of one training, and how many GPUs there are.

    Without a GPU two trainings run side by side; a single one gains little from more cores at these sizes.
    """
    if machine not in MACHINES:
        raise InputError(f"MACHINE={machine}: unknown; choose one of {', '.join(MACHINES)}")
    per_job = int(os.environ.get("AMIF_PROCESSES") or 1)
    memory = MEMORY.get(scale, MEMORY["demo"])
    if machine == "slurm":  # the cluster has what its nodes have
        return {"scale": scale, "threads": 8, "gpus": 0, "gpus_per_job": per_job, "mem_mb": memory}
    devices = _gpus() if machine == "workstation" else 0
    if devices and per_job > devices:
        raise InputError(f"AMIF_PROCESSES={per_job}: {devices} GPUs visible; lower it")
    side_by_side = devices // per_job if devices else 2
    return {"scale": scale, "threads": max(1, _cores() // side_by_side), "gpus": devices, "gpus_per_job": per_job if devices else 0,
            "mem_mb": min(memory, _memory())}


def _command(plan: Plan, file: Path, machine: str) -> list[str]:
    content = settings(machine, plan.selection.scale)
    config = file.with_name("workflow.json")
    config.write_text(json.dumps({"plan": str(file), **content}, indent=1) + "\n", encoding="utf-8")
    limits = [f"mem_mb={_memory()}"] + ([f"gpu={content['gpus']}"] if content["gpus"] else [])
    return [sys.executable, "-m", "snakemake", "--snakefile", str(paths.WORKFLOW / "Snakefile"), "--directory", str(paths.results()),
            "--workflow-profile", str(paths.WORKFLOW / "profiles" / machine), "--configfile", str(config),
            *(["--resources", *limits] if machine != "slurm" else [])]


def _run(command: list[str], log: Path, lock: int | None, quiet: bool) -> int:
    """Run Snakemake; its own words go to a log, the jobs' lines to the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as words:
        child = subprocess.Popen(command, env=_environment(), stdin=subprocess.DEVNULL, stderr=words if quiet else None,
                                 pass_fds=() if lock is None else (lock,))
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
    done = subprocess.run([*command, "--nolock", "--summary"], env=_environment(), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, encoding="utf-8")
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
                raise InputError(f"{error}, which is at work on it now; let it finish or end it, then call again") from None
            time.sleep(1)


@contextlib.contextmanager
def _forward_termination():
    """Turn SIGTERM (kill, timeout, a batch system) and SIGHUP (a closed terminal) into an exception: the jobs go along."""

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {name: signal.signal(name, leave) for name in (signal.SIGTERM, signal.SIGHUP)}
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
        print(f"\n{TITLES[entry['rule']]} {entry['name']} failed ({entry['label'] or entry['rule']}). {paths.shown(Path(entry['log']))} ends:")
        print("\n".join("    " + line for line in tail(Path(entry["log"]), 15)))
    if not failed:
        log = plan.folder / "logs" / "workflow.log"
        print(f"\nthe workflow stopped. {paths.shown(log)} ends:")
        print("\n".join("    " + line for line in tail(log, 15)))
    waiting = [job for job in plan.jobs if not (paths.results() / job.output).is_file()]
    print(f"\n{len(waiting)} of {len(plan.jobs)} jobs are left. Mend the cause, then call the same command: "
          "what is finished is kept, what was cut off resumes.", flush=True)


def _report(plan: Plan, entries: list[dict[str, Any]], seconds: float) -> None:
    for job in plan.jobs:
        text = (paths.results() / job.output).with_suffix(".md")
        if job.rule == "table" and text.is_file():
            print(f"\n{text.read_text(encoding='utf-8').rstrip()}")
    if entries:
        parts: dict[str, float] = {}
        for entry in entries:
            parts[entry["rule"]] = parts.get(entry["rule"], 0) + entry["seconds"]
        spent = ", ".join(f"{TITLES[rule]} {duration(total)}" for rule, total in parts.items())
        print(f"\nSCALE={plan.selection.scale}: {len(entries)} jobs in {duration(seconds)} ({spent}).")
    else:
        print(f"\nSCALE={plan.selection.scale}: nothing to do, all {len(plan.jobs)} jobs are done.")
    _warn_of_other_code(plan)
    page: Job = plan.jobs[-1]
    print(f"Report: {paths.shown(paths.results() / page.output)}", flush=True)


def _warn_of_other_code(plan: Plan) -> None:
    """Finished runs are kept when the code changes; say so, and how to train them again."""
    from amif_lib import results

    stored = [results.load_run(run) for run in plan.runs.values() if results.is_finished(run)]
    old = sorted(name for code, names in results.digests(stored).items() if code != results.code_digest() for name in names)
    if old:
        print(f"note: {len(old)} of {len(plan.runs)} runs were made by other code than the present: {' '.join(old)}\n"
              f"      train them again with: python -m amif_lib clean --runs {' '.join(old[:3])}{' ...' if len(old) > 3 else ''}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    try:
        import torch
    except ImportError:
        raise InputError("MACHINE=workstation: torch is not installed; run make env") from None
    return torch.cuda.device_count()


def _memory() -> int:
    """MB of main memory that can be used now."""
    return int(psutil.virtual_memory().available / 1e6 * 0.9)
