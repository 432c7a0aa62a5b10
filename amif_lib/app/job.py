"""Run one job of the workflow: its output goes to a log, and a line to the terminal at start, end and in between."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from amif_lib.app.jobs import Job, read
from amif_lib.core import files, paths
from amif_lib.training import launch

EVERY = 30  # seconds between two lines of a running job


def since(started: float) -> timedelta:
    """Time since `started` (seconds since 1970), which prints as 0:02:05."""
    return timedelta(seconds=round(time.time() - started))


def tail(log: Path, lines: int) -> str:
    """The last lines of a log that are not empty, indented."""
    kept = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in kept[-lines:])


@contextlib.contextmanager
def claimed_gpus(wanted: int, total: int) -> Iterator[str]:
    """Numbers of `wanted` GPUs that no other job on this machine uses, for CUDA_VISIBLE_DEVICES.

    Snakemake counts GPUs but does not assign them, so each has a lock file. If the user's CUDA_VISIBLE_DEVICES names
    GPUs, only those are used. Yields "" if no GPU is wanted, or if SLURM assigns them (`total` is 0).
    """
    if not wanted or not total:
        yield ""
        return
    names = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    taken: list[str] = []
    with contextlib.ExitStack() as held:
        while len(taken) < wanted:
            for index in names or map(str, range(total)):
                lock = Path(tempfile.gettempdir()) / f"amif-{os.getuid()}-gpu-{index}.lock"  # of this user alone
                with contextlib.suppress(BlockingIOError):
                    if index not in taken and len(taken) < wanted:
                        held.enter_context(files.exclusive(lock, f"GPU {index}", wait=False))
                        taken.append(index)
            if len(taken) < wanted:
                time.sleep(2)
        yield ",".join(taken)


def run(job: Job, log: Path, threads: int = 1, gpus: int = 0, total_gpus: int = 0) -> int:
    """Run a job's command with its output in `log`; returns its exit status."""
    own = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment = {"OMP_WAIT_POLICY": launch.WAIT_POLICY, **os.environ, **own}
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {job}:  {text}", flush=True)

    say("started")
    with claimed_gpus(gpus, total_gpus) as devices, log.open("ab") as output:
        output.write(f"started on {time.ctime()}\n".encode())
        output.flush()
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        command, streams = [sys.executable, *job.command], {"stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, cwd=paths.ROOT, env=environment, stdin=subprocess.DEVNULL, **streams)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        status = None
        try:
            while status is None:
                try:
                    status = child.wait(EVERY)
                except subprocess.TimeoutExpired:
                    say(f"{since(started)}: {tail(log, 1)[:110].strip()}")
        finally:
            if status is None:
                child.terminate()  # the notebook runner ends its kernel
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(20)
                child.kill()
    if status:
        say(f"FAILED after {since(started)} (exit status {status}); {paths.shown(log)} ends:\n{tail(log, 15)}")
    else:
        say(f"done in {since(started)}")
    return status


def main() -> int:
    """`python -m amif_lib.app.job --plan PLAN --makes OUTPUT`: run the job of a plan that makes this output."""
    parser = argparse.ArgumentParser(prog="python -m amif_lib.app.job", description="Run one job of the workflow.")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--makes", required=True, help="an output of a job in the plan")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpus", default="0/0", help="GPUs for this job / GPUs of the machine")
    options = parser.parse_args()
    job = next(job for job in read(options.plan) if options.makes in job.outputs)
    log = options.plan.resolve().parent / "logs" / f"{job.rule}_{job.name}.log"
    return run(job, log, options.threads, *map(int, options.gpus.split("/")))


if __name__ == "__main__":
    sys.exit(main())
