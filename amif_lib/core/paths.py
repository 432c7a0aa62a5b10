"""Every path of the kit, written in one place. Nothing else in the library spells out a directory."""

from __future__ import annotations

import os
from pathlib import Path

from amif_lib.core.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # the clone: notebooks/, results/, data_manifests/ lie here
SPECS = PACKAGE / "specs"
NOTEBOOKS = ROOT / "notebooks"
MANIFESTS = ROOT / "data_manifests"


def results() -> Path:
    """Where results go: `$AMIF_RESULTS`, or `results/` of the clone; read at each call, so tests can redirect it."""
    return Path(os.environ.get("AMIF_RESULTS") or ROOT / "results").expanduser().resolve()


def from_reference() -> bool:
    """Whether stored runs are those of `results/reference/` (`FROM=reference`); InputError for any other FROM."""
    origin = os.environ.get("FROM", "")
    if origin not in ("", "reference"):
        raise InputError(f"FROM={origin}: unknown; use FROM=reference, or leave it unset for your own runs")
    return bool(origin)


def refuse_reference(what: str) -> None:
    """Raise InputError under `FROM=reference`, which is read-only, for the command `what`, which would write runs."""
    if from_reference():
        remedy = "use make report or make figures, or leave FROM unset"
        raise InputError(f"FROM=reference: {what} makes runs, but committed results are read-only; {remedy}")


def reference(scale: str = "") -> Path:
    """Committed results of our own runs. Always those of the clone; only `python -m amif_lib reference` writes them."""
    return ROOT / "results" / "reference" / scale


def published() -> Path:
    """The paper's numbers, one CSV per table. Always those of the clone: a redirected results folder has none."""
    return ROOT / "results" / "paper"


def data_root() -> Path:
    """Where data sets lie: `$DATA_ROOT`, or `data/` of the clone (not committed)."""
    return Path(os.environ.get("DATA_ROOT") or ROOT / "data").expanduser().resolve()


def of_setting(name: str) -> Path:
    """The file or folder that a setting names: relative to `$DATA_ROOT`, whichever folder a notebook or job runs in."""
    return data_root() / Path(name).expanduser()


def phantom_root() -> Path:
    """Where demo data is written. It is the kit's own, so it never goes into a user's `$DATA_ROOT`."""
    return Path(os.environ.get("AMIF_PHANTOM") or ROOT / "data" / "phantom").expanduser().resolve()


def prepared_root(base: Path) -> Path:
    """Where files derived from data sets go: `$AMIF_PREPARED`, or `.amif/` in the folder `base` that holds the sets.

    Prepared images and hashes name images and hold their content, so they stay with the data and out of `results/`.
    If `base` has no write bits (shared data), it is `data/.amif/` of the clone, which is not committed.
    """
    chosen = os.environ.get("AMIF_PREPARED")
    if not chosen and base.is_dir() and not (base / ".amif").exists() and not _writable(base):
        return ROOT / "data" / ".amif"
    return Path(chosen or base / ".amif").expanduser().resolve()


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)  # root may write anywhere, but should not


def run_dir(run_id: str) -> Path:
    """`results/runs/<run_id>/`; under FROM=reference the committed copy of it."""
    if from_reference():
        return next(iter(reference().glob(f"*/runs/{run_id}")), reference() / "runs" / run_id)
    return results() / "runs" / run_id


def scale_dir(scale: str) -> Path:
    """`results/<scale>/`: tables, figures, report and executed notebooks that belong to a scale rather than a run.

    Under FROM=reference `results/from_reference/<scale>/`: neither the reference nor the user's results are changed.
    """
    return results() / "from_reference" / scale if from_reference() else results() / scale


def scale_source(scale: str) -> Path:
    """Where to read files stored with a scale's runs: `results/<scale>/`, or under FROM=reference the reference."""
    return reference(scale) if from_reference() else results() / scale


def plan(scale: str) -> Path:
    """The file in which `make reproduce` notes what was asked for (`DATASETS= ROWS= SEEDS=`)."""
    return scale_source(scale) / "plan.json"


def shown(path: Path) -> str:
    """A path for messages: relative to the clone if it lies inside, else absolute."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
