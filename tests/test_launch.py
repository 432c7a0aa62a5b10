"""Starting trainings: one run at a time, the right command for processes and GPUs, failures with their log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.training import launch
from tests import tiny

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom amif_lib.core.files import exclusive\n"
    "with exclusive(Path(sys.argv[1]), 'it'):\n    print('held', flush=True)\n    time.sleep(float(sys.argv[2]))"
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> experiments.RunSpec:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "some results"))
    for name in ("AMIF_PROCESSES", "AMIF_WORKERS", "AMIF_MICRO_BATCH"):
        monkeypatch.delenv(name, raising=False)
    return experiments.load_spec("demo/table4/1")[0]


def holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    line, environment = [sys.executable, "-c", HOLD, str(path), str(seconds)], {"PYTHONPATH": str(paths.ROOT)}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_at_a_time_and_a_dead_one_lets_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "run" / ".lock"
    process = holder(lock, 2)
    with pytest.raises(BlockingIOError, match=f"process {process.pid} on"), files.exclusive(lock, "run x", wait=False):
        pass
    with files.exclusive(lock, "run x"):  # waits for the other to end
        assert process.wait(timeout=10) == 0
    assert f"run x is in use by process {process.pid} on" in capsys.readouterr().out
    process = holder(lock, 100)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with files.exclusive(lock, "run x", wait=False):
        assert lock.read_text().startswith(f"process {os.getpid()} on")


def test_bad_requests(run, monkeypatch, tmp_path) -> None:
    with pytest.raises(InputError, match="processes=0"):
        launch.train(run, 0)
    (tmp_path / "some results").touch()  # a file where a folder should be
    with pytest.raises(InputError, match=r"cannot be written .*; set AMIF_RESULTS"):
        launch.train(run, 1)
    for text, least in (("0", 1), ("many", 0)):
        monkeypatch.setenv("AMIF_WORKERS", text)
        with pytest.raises(InputError, match=f"AMIF_WORKERS={text!r}: give a whole number of at least {least}"):
            launch.asked("AMIF_WORKERS", least)


@pytest.mark.parametrize("gpus", [0, 2])
def test_processes_share_the_threads_and_take_a_gpu_each(monkeypatch, tmp_path, gpus) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    _, environment = launch.command(2, tmp_path / "spec.json")
    assert environment["OMP_NUM_THREADS"] == "3" and environment["OMP_WAIT_POLICY"] == "PASSIVE"
    if gpus:
        with pytest.raises(InputError, match="8 processes asked for, 2 GPUs visible"):
            launch.command(8, tmp_path / "spec.json")


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let this stand for the training that the subprocess would run."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    monkeypatch.setattr(launch, "command", lambda count, spec: ([sys.executable, "-c", text, str(spec)], environment))


def test_a_subprocess_reads_the_written_specification_and_its_lines_are_passed_on(run, monkeypatch, capsys) -> None:
    script(monkeypatch, "import sys, pathlib; print('spec', pathlib.Path(sys.argv[1]).name); print('step 1')")
    assert launch.train(run, 2) == run.directory
    assert "spec spec.json\nstep 1\n" in capsys.readouterr().out
    assert (run.directory / "train.log").read_text().endswith("step 1\n")
    assert experiments.load_spec(str(run.directory / "spec.json"))[0].run_id == run.run_id


def test_a_failing_subprocess_raises_with_the_end_of_its_log(run, monkeypatch) -> None:
    script(monkeypatch, "print('step 1'); raise SystemExit('CUDA out of memory')")
    with pytest.raises(RuntimeError, match=r"(?s)exit status 1.*train\.log.*step 1.*CUDA out of memory"):
        launch.train(run, 2)


def test_what_the_user_can_correct_is_one_line_from_several_processes_too(run, capsys) -> None:
    uneven = tiny.run(stage1={"batch_size": 9}).parent.parent
    with pytest.raises(InputError, match=r"^train.batch_size: 9 is not a multiple of 2 processes; change one of them$"):
        launch.train(uneven, 2)
    assert "Traceback" not in capsys.readouterr().out


WITH_A_WORKER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(worker.pid, flush=True)
time.sleep(100)
"""


def test_an_interrupted_cell_takes_the_training_and_its_workers_along(run, monkeypatch) -> None:
    script(monkeypatch, WITH_A_WORKER)
    seen = []

    def interrupt(*values: str, **options: object) -> None:
        seen.append(int(values[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupt)
    with pytest.raises(KeyboardInterrupt):
        launch.train(run, 2)
    monkeypatch.undo()

    def gone(process: int) -> bool:
        return not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie"

    deadline = time.monotonic() + 20
    while not gone(seen[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(seen[0])
