"""Stored runs: open one, check that it is finished and is the run asked for, and note what made it."""

from __future__ import annotations

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

from amif_lib import methods
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments.identity import difference, run_id, settings_read
from amif_lib.experiments.predictions import CANDIDATES, PREDICTIONS, read_predictions
from amif_lib.experiments.run_spec import RunSpec, parse

VERSIONED = ("torch", "transformers", "accelerate", "open_clip_torch", "tokenizers", "numpy", "pandas", "pillow")
CODE = ("amif_lib", "data_manifests")  # folders of the clone that determine results
BLANK_TEST = "blank_test"  # predictions of the same model with blank images at test time only
SHUFFLED_TEST = "shuffled_test"  # and with another test image in place of each
BY_PATH = ("init.image", "init.text", "init.decoder", "init.tokenizer", "teacher.source")  # may name files


class Run:
    """A stored run. Files are read when asked for; a missing one raises InputError with its name."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / "spec.json").is_file():
            shown = paths.shown(self.directory)
            raise InputError(f"{shown}: not a run folder (no spec.json); give a run id or a folder in results/runs/")

    def __repr__(self) -> str:
        return f"Run({self.run_id}: {self.spec.stage}, {self.spec.label or 'no label'})"

    @property
    def run_id(self) -> str:
        return self.directory.name

    @cached_property
    def spec(self) -> RunSpec:
        unknown = "the run was made by another version of the kit; delete its folder to train it again"
        return parse(self.stored_spec(), paths.shown(self.directory / "spec.json"), unknown)

    def stored_spec(self) -> dict[str, Any]:
        """`spec.json` with the runs before it; in reference results a parent is named by its run id."""
        content = self._json("spec.json")
        if isinstance(content.get("parent"), str):
            content["parent"] = Run(self.directory.parent / content["parent"]).stored_spec()
        return content

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Final numbers of the run."""
        return self._json("metrics.json")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """The content of `provenance.json`, written by `provenance` when the run ended."""
        return self._json("provenance.json")

    @property
    def commit(self) -> str:
        """The commit that made the run, with `+changes` if its code was edited; 'unknown' outside a clone."""
        return (self.provenance.get("commit") or "unknown") + "+changes" * bool(self.provenance.get("changes"))

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per logged step of `metrics.jsonl`."""
        return pd.DataFrame(map(json.loads, files.whole_lines(self._existing("metrics.jsonl"))))

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per test question, columns of `predictions.COLUMNS`."""
        return read_predictions(self.directory)[0]

    @property
    def candidates(self) -> pd.DataFrame:
        """The answers that were ranked, columns of `predictions.CANDIDATE_COLUMNS`."""
        return read_predictions(self.directory)[1]

    @property
    def blank_test(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Predictions and candidates of the same model with blank images at test time only."""
        return read_predictions(self.directory / BLANK_TEST)

    @property
    def shuffled_test(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Predictions and candidates of the same model, each question with the image of another."""
        return read_predictions(self.directory / SHUFFLED_TEST)

    def model(self) -> Any:
        """The trained model, in eval mode on the CPU. Needs torch."""
        return methods.load(self.spec.method).model(self._existing("model"))

    def _existing(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            raise InputError(f"{paths.shown(path)}: missing; the run is not finished, start it again")
        return path

    def _json(self, name: str) -> dict[str, Any]:
        return files.read_yaml(self._existing(name))


def load_run(run: str | Path | RunSpec) -> Run:
    """Open a stored run by run id, by folder or by specification. Raises InputError where there is none."""
    if isinstance(run, RunSpec):
        return Run(run.directory)
    return Run(Path(run) if Path(run).is_dir() else paths.run_dir(str(run)))


def is_finished(spec: RunSpec) -> bool:
    """Whether the run is stored with all that its readers need: metrics, provenance and a fine-tuning's answers.

    Raises InputError if its folder holds a run with other settings, or if a file that it was trained from has changed.
    """
    answers = (PREDICTIONS, CANDIDATES) if spec.stage == "finetune" else ()
    names = ("spec.json", "metrics.json", "provenance.json", *answers)
    if not all((spec.directory / name).is_file() for name in names):
        return False
    refuse_another(spec)
    made, now = load_run(spec).provenance.get("inputs", {}), inputs(spec)
    if other := [name for name in now if made.get(name, now[name]) != now[name]]:
        said = f"was trained from another {other[0]} than the present one"
        raise InputError(f"{paths.shown(spec.directory)}: {said}; delete this folder to train it again")
    return True


def inputs(spec: RunSpec) -> dict[str, str]:
    """SHA-256 of the files that a run starts from, if they are on disk: its parent's weights, and those in settings."""
    read, found = settings_read(spec), {}
    if spec.parent and (stored := spec.parent.directory / "provenance.json").is_file():
        found["parent"] = files.read_yaml(stored).get("files", {}).get("model/model.safetensors")
    for name in BY_PATH:
        path = str(read.get(name, "")).rpartition(":")[2]
        place = paths.of_setting(path)
        if path and place.is_file():
            found[name] = files.sha256(place)
        elif path and place.is_dir():
            found[name] = files.digest(file_digests(place))
    return {name: value for name, value in found.items() if value}


def refuse_another(spec: RunSpec) -> None:
    """Raise InputError if the run's folder holds a specification that differs in a setting that the run reads."""
    folder = spec.directory
    if (folder / "spec.json").is_file() and (found := difference(Run(folder).stored_spec(), spec)):
        remedy = "move it elsewhere, or, if another version of the kit made it, delete it to train it again"
        raise InputError(f"{paths.shown(folder)}: holds a run that differs from this one in {found}; {remedy}")


def missing(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """The runs of `specs` that are not finished, each once."""
    return [spec for spec in {run_id(spec): spec for spec in specs}.values() if not is_finished(spec)]


# --- provenance --------------------------------------------------------------------------------------------------


def provenance(spec: RunSpec | None = None, processes: int = 1, seconds: float = 0.0) -> dict[str, Any]:
    """The content of `provenance.json`: code, versions, hardware, wall time in seconds, seeds and files of a run.

    It holds no user name, host name or path, so that it can be published. GPUs are listed if torch is loaded.
    """
    torch = sys.modules.get("torch")  # the training has loaded it; a reader need not
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in VERSIONED}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changes": bool(_git("status", "--porcelain", "--", *CODE)),
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
        "seeds": {run.stage: run.seed for run in spec.trainings()} if spec else {},
        "inputs": inputs(spec) if spec else {},
        "files": file_digests(spec.directory) if spec else {},
    }


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a run or a checkpoint is read from, by path relative to its folder."""
    kinds = (".safetensors", ".bin", ".parquet", ".json", ".jsonl", ".txt")
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in kinds and path.name != "provenance.json"]
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in found}


def _git(*arguments: str) -> str:
    """Output of a git command in the clone; empty outside a clone or without git."""
    try:
        done = subprocess.run(["git", "-C", str(paths.ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def published(table: str) -> pd.DataFrame:
    """The paper's numbers of a table: `row, label, dataset, split, value` (percent) and columns about the row."""
    frame = pd.read_csv(paths.published() / f"{table}.csv", dtype=str, keep_default_na=False)
    return frame.assign(value=frame["value"].astype(float))
