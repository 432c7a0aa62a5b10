"""Run one job of the workflow: a line when it starts, one now and then, one when it ends; its output in its own log.

`python -m amif_lib.app.workflow.job --plan PLAN --job data/<name> --log FILE --threads N --gpus N/TOTAL -- COMMAND`, or, for a
training, `--makes runs/<run_id>/metrics.json` in place of job and command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from amif_lib.app.workflow.plan import NOTEBOOKS, Job, read
from amif_lib.core import paths
from amif_lib.core.files import exclusive
from amif_lib.training import launch

EVERY = 30  # seconds between lines of a job that runs on
TITLES = {
    "data": "data",
    "teacher": "teacher",
    "stage1": "stage 1",
    "stage2": "stage 2",
    "finetune": "fine-tune",
    "table": "table",
    "figures": "figures",
    "report": "report",
}


def say(job: Job, text: str) -> None:
    """One line for the terminal; written at once, so that lines of jobs side by side do not mix."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {TITLES[job.rule]:<9}  {job.name:<12}  {text}\n")
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def tail(log: Path, lines: int = 1) -> list[str]:
    """The last lines of a log that say something."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


@contextlib.contextmanager
def gpus(wanted: int, total: int):
    """Names of `wanted` GPUs that no other job on this machine has, as CUDA_VISIBLE_DEVICES takes them.

    Snakemake counts GPUs and does not hand them out, so each one has a lock file. Yields "" (leave it to the
    environment) where SLURM or the user has chosen already, or no GPU is asked for.
    """
    if not wanted or "CUDA_VISIBLE_DEVICES" in os.environ or "SLURM_JOB_ID" in os.environ:
        yield ""
        return
    with contextlib.ExitStack() as held:
        taken: list[str] = []
        while len(taken) < wanted:
            for index in map(str, range(total)):
                if index not in taken and len(taken) < wanted:
                    with contextlib.suppress(BlockingIOError):
                        held.enter_context(
                            exclusive(
                                Path(tempfile.gettempdir()) / f"amif-gpu-{index}.lock", f"GPU {index}", wait=False
                            )
                        )
                        taken.append(index)
            if len(taken) < wanted:
                time.sleep(2)
        yield ",".join(taken)


def training_command(job: Job) -> list[str]:
    """The teacher's module, or the stage's notebook on the job's specification file, its executed copy in every run folder."""
    if job.rule == "teacher":
        return [sys.executable, "-m", "amif_lib.methods.amif.teacher", "--spec", job.spec]
    notebook = f"{NOTEBOOKS[job.rule]}.ipynb"
    first, *others = (str(Path("runs") / run) for run in job.runs)
    spec = paths.shown(paths.results() / job.spec)
    command = [sys.executable, "-m", "amif_lib.app.run_notebook", str(paths.NOTEBOOKS / notebook), "-p", "spec", spec]
    return [*command, "--out", str(Path(first) / notebook), *(part for each in others for part in ("--copy-to", each))]


def run(job: Job, command: list[str], log: Path, threads: int, wanted: int, total: int) -> dict[str, Any]:
    """Run `command` with its output in `log`; returns the line for the journal."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY") or launch.WAIT_POLICY,
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    say(job, f"started: {job.label}" if job.label else "started")
    with gpus(wanted, total) as devices, log.open("ab") as output:
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            while True:
                try:
                    status = child.wait(EVERY)
                    break
                except subprocess.TimeoutExpired:
                    say(job, f"{duration(time.time() - started)}: {' '.join(tail(log))[:110] or 'running'}")
        except BaseException:
            child.terminate()  # the notebook runner takes its kernel along
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(20)
            child.kill()
            raise
    spent = time.time() - started
    say(job, f"done in {duration(spent)}" if status == 0 else f"FAILED after {duration(spent)} (exit status {status})")
    return {
        "rule": job.rule,
        "name": job.name,
        "label": job.label,
        "started": started,
        "seconds": round(spent, 1),
        "status": status,
        "log": str(log),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m amif_lib.app.workflow.job", description="Run one job of the workflow."
    )
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--job", help="<rule>/<name> of a job in the plan")
    parser.add_argument("--makes", help="an output of a training in the plan")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpus", default="0/0", help="how many of how many")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args(arguments)
    jobs = read(options.plan)
    if options.makes:
        job = next(job for job in jobs if options.makes in job.outputs)
        options.command = training_command(job)
    else:
        job = next(job for job in jobs if f"{job.rule}/{job.name}" == options.job)
    wanted, total = map(int, options.gpus.split("/"))
    entry = run(job, options.command, options.log.resolve(), options.threads, wanted, total)
    with (options.plan.parent / "jobs.jsonl").open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(entry) + "\n")
    return entry["status"]


if __name__ == "__main__":
    sys.exit(main())
