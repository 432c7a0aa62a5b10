"""Start a training: in the calling process, or as a subprocess where several processes train.

So a notebook's kernel is never forked after CUDA has started, and a crash leaves a log and an exit status.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import own_loss, stored
from amif_lib.experiments.own_loss import Loss
from amif_lib.experiments.run_spec import RunSpec

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1")  # on a free port
REFUSED = "InputError: "  # begins the line in which a training says what the user can correct
WAIT_POLICY = "PASSIVE"  # waiting threads sleep; if they spin, small steps beside another job take ten times as long


def train(run: RunSpec, processes: int | None = None, loss: Loss | None = None) -> Path:
    """Train one run, unless it is finished, and return its directory `results/runs/<run_id>/`.

    `processes` defaults to $AMIF_PROCESSES, else the number of visible GPUs, else 1; the result does not depend on it.
    If another process is training the run, wait for it. `loss` is for a run of `own_loss.with_loss`, trained in this
    process. Raises InputError for what the user can correct, RuntimeError for a failed subprocess.
    """
    import torch

    paths.refuse_reference("training")
    count = processes if processes is not None else asked("AMIF_PROCESSES") or max(1, torch.cuda.device_count())
    if count < 1:
        raise InputError(f"processes={count}: must be at least 1")
    if loss:
        own_loss.check(run, loss)
    if run.own_loss and count > 1:
        print(f"run {run.run_id}: a loss that a notebook defines trains in one process, not in {count}", flush=True)
        count = 1
    with files.exclusive(run.directory / ".lock", f"run {run.run_id}", remedy=files.RESULTS) as lock:
        if stored.is_finished(run):
            print(f"run {run.run_id} ({run.stage}) is finished: {paths.shown(run.directory)}", flush=True)
        elif count == 1:
            from amif_lib.training.loop import fit

            fit(run, loss)
        else:
            _subprocess(run, count, lock)
    return run.directory


def asked(variable: str, least: int = 1) -> int | None:
    """A whole number from the environment, None if unset. Raises InputError for anything else, or if below `least`."""
    text = os.environ.get(variable)
    if text and (not text.isdecimal() or int(text) < least):
        raise InputError(f"{variable}={text!r}: give a whole number of at least {least}")
    return int(text) if text else None


def command(processes: int, spec_file: Path) -> tuple[list[str], dict[str, str]]:
    """Command line and environment that train a run on several processes of this machine, each on its own GPU if any.

    On several machines, start `torchrun --nnodes N ... -m amif_lib.training.loop --spec RUN` on each of them yourself.
    """
    import torch  # takes seconds, and `make plan` only needs `asked`

    gpus = torch.cuda.device_count()  # asks the driver's library; does not initialise CUDA
    if 0 < gpus < processes:
        remedy = "lower AMIF_PROCESSES or set CUDA_VISIBLE_DEVICES"
        raise InputError(f"{processes} processes asked for, {gpus} GPUs visible; {remedy}")
    environment = {"OMP_WAIT_POLICY": WAIT_POLICY, **os.environ, "PYTHONUNBUFFERED": "1", "AMIF_HEADLESS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    launcher = [*TORCHRUN, "--nproc_per_node", str(processes)]
    return [sys.executable, *launcher, "-m", "amif_lib.training.loop", "--spec", str(spec_file)], environment


def _subprocess(run: RunSpec, processes: int, lock: int | None) -> None:
    """Train in a subprocess, whose output is passed on line by line up to an InputError, and kept in `train.log`."""
    stored.refuse_another(run)
    spec_file, path, refusal = run.directory / "spec.json", run.directory / "train.log", ""
    files.write_json(spec_file, run.model_dump(mode="json"))
    line, environment = command(processes, spec_file)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pipes |= {"encoding": "utf-8", "errors": "replace"}
    held = () if lock is None else (lock,)  # if this process is killed, the child keeps the lock until it ends
    child = subprocess.Popen(line, env=environment, cwd=paths.ROOT, start_new_session=True, pass_fds=held, **pipes)
    try:
        with path.open("a", encoding="utf-8") as log:
            for text in child.stdout:
                refusal = refusal or (text if text.startswith(REFUSED) else "")
                if not refusal:
                    print(text, end="", flush=True)
                print(text, end="", flush=True, file=log)
        status = child.wait()
    except BaseException:  # interrupted in the notebook, or the kernel is shutting down: end the training too
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(child.pid, sent)
                child.wait(15)
        raise
    if status and refusal:
        raise InputError(refusal.removeprefix(REFUSED).strip())
    if status:
        tail = "\n".join(path.read_text(encoding="utf-8").splitlines()[-30:])
        raise RuntimeError(f"training {run.run_id} failed (exit status {status}); {paths.shown(path)} ends:\n{tail}")
