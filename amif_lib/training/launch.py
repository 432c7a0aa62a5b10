"""Start a training: in the calling process, or as a subprocess where several processes train.

So a kernel never forks after CUDA was touched, and a crash leaves a log and an exit status instead of a dead kernel.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import yaml

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored
from amif_lib.experiments.rows import load_spec
from amif_lib.experiments.run_spec import RunSpec

TAIL = 30  # lines of a failed training's log that the error repeats
WAIT_POLICY = "PASSIVE"  # waiting threads sleep: where they spin, small steps beside another job take ten times as long
FEWER_ROWS = "fewer_rows"  # in the run's folder: one of several processes ran out of memory, and how many rows to try


def train(spec: RunSpec | str | Path, processes: int | None = None) -> Path:
    """Train one run, unless it is finished, and return its directory `results/runs/<run_id>/`.

    `spec` is a RunSpec, a run file, or `<scale>/<table>/<row>[/<stage>]` where that names a single run. `processes`
    defaults to $AMIF_PROCESSES, else the number of visible GPUs, else 1; the result does not depend on it. A run that
    another process is training is waited for. Raises InputError for a bad spec, RuntimeError for a failed subprocess.
    """
    paths.refuse_reference("training")
    run = spec if isinstance(spec, RunSpec) else _single(str(spec))
    count = processes if processes is not None else asked("AMIF_PROCESSES") or max(1, _gpus())
    if count < 1:
        raise InputError(f"processes={count}: at least 1")
    with files.exclusive(run.directory / ".lock", f"run {run.run_id}") as lock:
        if stored.is_finished(run):
            print(f"run {run.run_id} ({run.stage}) is finished: {paths.shown(run.directory)}", flush=True)
        elif count == 1:
            from amif_lib.training.loop import fit

            fit(run)
        else:
            _subprocess(run, count, lock)
    return run.directory


def asked(variable: str, least: int = 1) -> int | None:
    """A whole number from the environment, or None. Raises InputError where it is none, or below `least`."""
    text = os.environ.get(variable)
    if text and (not text.isdigit() or int(text) < least):
        raise InputError(f"{variable}={text!r}: give a whole number of at least {least}")
    return int(text) if text else None


def command(run: RunSpec, processes: int, spec_file: Path) -> tuple[list[str], dict[str, str]]:
    """Command line and environment that train `run` on several processes of this machine."""
    module = ["-m", "amif_lib.training.loop", "--spec", str(spec_file)]
    environment = {"OMP_WAIT_POLICY": WAIT_POLICY, **os.environ, "PYTHONUNBUFFERED": "1", "AMIF_HEADLESS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    environment["OMP_NUM_THREADS"] = str(max(1, _threads() // processes))
    count, port, gpus = str(processes), str(free_port()), _gpus()
    if gpus == 0:
        environment["ACCELERATE_USE_CPU"] = "true"
        launcher = ["torch.distributed.run", "--nproc_per_node", count, "--master_addr", "127.0.0.1"]
        return [sys.executable, "-m", *launcher, "--master_port", port, *module], environment
    if processes > gpus:
        remedy = "lower AMIF_PROCESSES or set CUDA_VISIBLE_DEVICES"
        raise InputError(f"{processes} processes asked for, {gpus} GPUs visible; {remedy}")
    launcher, own = ["accelerate.commands.launch"], _accelerate_config()
    if own.get("num_machines", 1) == 1:  # else the user's cluster set-up says how many processes and where
        launcher += ["--num_processes", count, "--main_process_port", port]
    if not own:  # name what accelerate would otherwise warn about
        launcher += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", *launcher, *module], environment


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _single(spec: str) -> RunSpec:
    found = load_spec(spec)
    if len(found) != 1:
        names = ", ".join(f"{run.run_id} ({run.data.questions or run.stage}: {run.label})" for run in found[:3])
        names += f" and {len(found) - 3} more" * (len(found) > 3)
        raise InputError(f"spec={spec!r}: names {len(found)} runs, one is needed: {names}")
    return found[0]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()  # asks the driver's library; does not initialise CUDA


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(text) if text.isdigit() else cores


def _accelerate_config() -> dict:
    """What `accelerate config` saved on this machine, or nothing."""
    from accelerate.commands.config.config_args import default_config_file

    path = Path(default_config_file)
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _subprocess(run: RunSpec, processes: int, lock: int | None) -> None:
    """Train in a subprocess; where its processes run out of memory it is started again, with fewer rows at a time."""
    stored.refuse_another(run)
    spec_file, fewer, log = (run.directory / name for name in ("spec.json", FEWER_ROWS, "train.log"))
    files.write_json(spec_file, run.model_dump(mode="json"))
    settings: dict[str, str] = {}
    while True:
        fewer.unlink(missing_ok=True)
        line, environment = command(run, processes, spec_file)
        status, tail = _logged(log, line, environment | settings, lock)
        if not status:
            return
        if not fewer.is_file():
            what = f"training {run.run_id} failed (exit status {status})"
            raise RuntimeError(f"{what}; {paths.shown(log)} ends:\n{tail}")
        rows = fewer.read_text(encoding="utf-8").strip()
        settings = {"AMIF_MICRO_BATCH": rows}
        print(f"out of memory: started again with AMIF_MICRO_BATCH={rows}, from the last stored step")


def _logged(path: Path, line: list[str], environment: dict[str, str], lock: int | None) -> tuple[int, str]:
    """Exit status and last lines of a command, whose lines are passed on as they come and kept in the file `path`."""
    tail: deque[str] = deque(maxlen=TAIL)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pipes |= {"encoding": "utf-8", "errors": "replace"}
    held = () if lock is None else (lock,)  # an orphan keeps the lock for as long as it lives
    child = subprocess.Popen(line, env=environment, cwd=paths.ROOT, start_new_session=True, pass_fds=held, **pipes)
    try:
        with path.open("a", encoding="utf-8") as log:
            for text in child.stdout:
                print(text, end="", flush=True)
                log.write(text)
                log.flush()
                tail.append(text)
        return child.wait(), "".join(tail)
    except BaseException:  # interrupted in the notebook or the kernel is going down: take the training along
        _stop(child)
        raise


def _stop(child: subprocess.Popen, patience: float = 15) -> None:
    """End a training and its worker processes, politely first."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            return
