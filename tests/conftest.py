"""Fixtures that several test files share. No test reads or writes the clone's `results/` or `data/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# One folder for the whole session, that of the first process: pytest's workers inherit its environment.
FOLDER = os.environ.get("AMIF_TEST_FOLDER") or tempfile.mkdtemp(prefix="amif-tests-")
os.environ["AMIF_TEST_FOLDER"] = FOLDER
for name in ("RESULTS", "PREPARED", "PHANTOM"):
    os.environ[f"AMIF_{name}"] = f"{FOLDER}/{name.lower()}"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in ("FROM", "SCALE", "MACHINE", "DATASETS", "ROWS", "SEEDS", "PRETRAIN_SEEDS", "AMIF_PROCESSES"):
    os.environ.pop(name, None)  # make passes them on; a test sets what it needs
matplotlib.use("Agg")  # not by $MPLBACKEND, by which kernels would show no pictures


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(FOLDER, ignore_errors=True)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder, committed results aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and "reference" not in path.parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="session", autouse=True)
def users_files_stay_as_they_are():
    """The clone's own runs, tables and data are neither changed nor added to by any test."""
    before = [_state(ROOT / name) for name in ("results", "data")]
    yield
    assert [_state(ROOT / name) for name in ("results", "data")] == before, "a test has written into results/ or data/"


@pytest.fixture(scope="module")
def own_results(tmp_path_factory: pytest.TempPathFactory):
    """A results folder for one test file, whose trainings show no progress."""
    patch = pytest.MonkeyPatch()
    patch.setenv("AMIF_RESULTS", str(tmp_path_factory.mktemp("results")))
    patch.setenv("AMIF_HEADLESS", "1")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets: `$DATA_ROOT`, or `shared/data` beside the clone."""
    candidates = [Path(os.environ["DATA_ROOT"])] if os.environ.get("DATA_ROOT") else []
    candidates.append(ROOT.parent / "shared" / "data")
    for folder in candidates:
        if (folder / "vqa_rad").is_dir():
            return folder
    pytest.skip("real data sets not found (set DATA_ROOT to the folder that holds vqa_rad/)")


@pytest.fixture
def real_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as what DATA_ROOT names."""
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    return shared_data


def python(
    *arguments: str, cwd: Path = ROOT, status: int | None = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """This interpreter in a process of its own on the kit in `cwd`; ends with `status` (None: with any)."""
    command, settings = [sys.executable, *arguments], os.environ | {"PYTHONPATH": str(cwd)} | environment
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=cwd, env=settings, timeout=600, **pipes)
    assert status in (None, done.returncode), done.stdout + done.stderr
    return done


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)
