"""Stored runs: opening one, telling whether it is finished, and which code made it.

`results/runs/<run_id>/` holds `spec.json`, `metrics.json`, `metrics.jsonl`, `provenance.json`, `model/` and, for a
fine-tuning, the predictions. Nothing here needs torch, `Run.model` excepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments.predictions import CANDIDATES, PREDICTIONS, read_predictions
from amif_lib.experiments.rows import RunSpec, parse, run_id

# What a run's numbers depend on beside its specification. Patterns relative to the package.
RESULT_MODULES = (
    "networks/*.py",
    "objectives/*.py",
    "methods/*/*.py",
    "training/*.py",
    "data/*.py",
    "data/readers/*.py",
)
# What makes a run's maps and soft-label pictures (`map_files`); training reads none of it, so they have a digest of their own.
MAP_MODULES = (
    "methods/amif/maps.py",
    "methods/amif/mined.py",
    "methods/amif/explain.py",
    "data/regions.py",
    "reporting/map_files.py",
)
VERSIONED = (
    "torch",
    "transformers",
    "accelerate",
    "open_clip_torch",
    "torchvision",
    "tokenizers",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
)
BLANK_TEST = "blank_test"  # predictions of the same model with blank images at test time only


class Run:
    """A stored run. Files are read when asked for; a missing one raises InputError with its name."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / "spec.json").is_file():
            raise InputError(
                f"{paths.shown(self.directory)}: not a run folder (no spec.json); give a run id or a "
                "folder under results/runs/"
            )

    def __repr__(self) -> str:
        return f"Run({self.run_id}: {self.spec.stage}, {self.spec.label or 'no label'})"

    @property
    def run_id(self) -> str:
        return self.directory.name

    @cached_property
    def spec(self) -> RunSpec:
        return parse(self._spec(), paths.shown(self.directory / "spec.json"))

    def _spec(self) -> dict[str, Any]:
        """The specification with its lineage; in reference results a parent is named by its run id."""
        content = self._json("spec.json")
        if isinstance(content.get("parent"), str):
            content["parent"] = Run(self.directory.parent / content["parent"])._spec()
        return content

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Final numbers of the run."""
        return self._json("metrics.json")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Code digest, commit, versions, hardware, wall time."""
        return self._json("provenance.json")

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per logged step of `metrics.jsonl`."""
        path = self._existing("metrics.jsonl")
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise InputError(f"{paths.shown(path)}: line {number} is not JSON; delete that line") from None
        return pd.DataFrame(rows)

    @cached_property
    def _stored(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return read_predictions(self.directory)

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per test question, columns of `COLUMNS`."""
        return self._stored[0]

    @property
    def candidates(self) -> pd.DataFrame:
        """The answers that were ranked, columns of `CANDIDATE_COLUMNS`."""
        return self._stored[1]

    @cached_property
    def blank_test(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Predictions and candidates of the same model with blank images at test time only."""
        return read_predictions(self.directory / BLANK_TEST)

    def model(self) -> Any:
        """The trained model, in eval mode on the CPU. Needs torch."""
        from amif_lib.methods.amif.network import AMiFForVQA

        return AMiFForVQA.from_pretrained(self._existing("model"))

    def _existing(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            raise InputError(
                f"{paths.shown(path)}: missing; the run is not finished, start it again (notebooks 03 to 05)"
            )
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self._existing(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(
                f"{paths.shown(path)}: not valid JSON, line {error.lineno}; delete the run folder and "
                "start the run again"
            ) from None
        if not isinstance(content, dict):
            raise InputError(f"{paths.shown(path)}: expected a JSON object")
        return content


def load_run(run: str | Path | RunSpec) -> Run:
    """Open a stored run by run id, by folder or by specification. Raises InputError where there is none."""
    if isinstance(run, RunSpec):
        return Run(run.directory)
    path = Path(run)
    return Run(path if path.is_dir() else paths.run_dir(str(run)))


def is_finished(spec: RunSpec) -> bool:
    """Whether a run has all that its readers need: metrics, provenance and, for a fine-tuning, predictions."""
    names = ["spec.json", "metrics.json", "provenance.json"]
    if spec.stage == "finetune":  # in reference results the candidates are stored once for many runs
        names += [PREDICTIONS] if paths.from_reference() else [PREDICTIONS, CANDIDATES]
    folder = spec.directory
    return all((folder / name).is_file() for name in names)


def missing(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """Those of `specs` that have no finished run, each once."""
    return [spec for spec in {run_id(spec): spec for spec in specs}.values() if not is_finished(spec)]


def code_digest(package: Path = paths.PACKAGE) -> str:
    """Short hash of the result-determining modules (`RESULT_MODULES`): names and text, line endings set aside."""
    return _digest(package, RESULT_MODULES)


def map_digest(package: Path = paths.PACKAGE) -> str:
    """The same of `MAP_MODULES`."""
    return _digest(package, MAP_MODULES)


def _digest(package: Path, modules: Iterable[str]) -> str:
    found = sorted({path for pattern in modules for path in package.glob(pattern)})
    total = hashlib.sha256()
    for path in found:
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        total.update(f"{path.relative_to(package).as_posix()}\0{text}\0".encode())
    return total.hexdigest()[:12]


def provenance(processes: int = 1, seconds: float = 0.0) -> dict[str, Any]:
    """What `provenance.json` says of a run: code, commit, versions, hardware and wall time in seconds.

    No user name, host name or path is in it, so that it can be published. GPUs are listed where torch is loaded.
    """
    torch = sys.modules.get("torch")  # the training has loaded it; a reader need not
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "code_digest": code_digest(),
        "commit": _commit(),
        "versions": versions,
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": gpus,
        },
        "processes": processes,
        "wall_time_s": round(seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """The clone's commit, with `+changes` where tracked files differ from it; empty outside a git clone."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(paths.ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
    except FileNotFoundError:  # no git on this machine
        return ""


def digests(runs: Iterable[Run]) -> dict[str, list[str]]:
    """Run ids by the code digest that made them. More than one key: the runs come from different code."""
    out: dict[str, list[str]] = {}
    for run in runs:
        out.setdefault(str(run.provenance.get("code_digest", "unknown")), []).append(run.run_id)
    return out


def published(table: str) -> pd.DataFrame:
    """The paper's numbers of a table: `row, label, dataset, split, value` (percent) and what describes the row."""
    path = paths.published() / f"{table}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.csv")))
        raise InputError(f"{paths.shown(path)}: no such file; the paper's tables are {known}")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    values = pd.to_numeric(frame["value"], errors="coerce")
    if not values.between(0, 100).all():
        line = int(values[~values.between(0, 100)].index[0]) + 2
        raise InputError(
            f"{paths.shown(path)}: line {line}: value {frame['value'][line - 2]!r} is not a percentage; "
            "restore the file"
        )
    return frame.assign(value=values)
