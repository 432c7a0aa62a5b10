"""`make clean`: remove what can be made again in seconds. Data are never touched, finished runs only when named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from amif_lib.core import paths
from amif_lib.core.errors import InputError

CACHES = ("__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache")
KEPT = ("runs", "paper", "reference", "private")  # folders of results/ that are not a scale's


def clean(runs: list[str] | None = None, dry_run: bool = False) -> list[Path]:
    """Remove caches, workflow state, logs and executed table notebooks; returns what was removed.

    `runs`: None leaves every run alone; ids remove these runs and every run that starts from one of them; an empty list
    removes all runs with the tables and reports made from them. A teacher loses its cache too. Raises InputError for an unknown id.
    """
    found = [
        path
        for name in CACHES
        for folder in ("amif_lib", "tests", "notebooks")
        for path in (paths.ROOT / folder).rglob(name)
    ]
    found += [paths.ROOT / name for name in CACHES]
    scales = [
        path
        for path in sorted(paths.results().glob("*"))
        if path.is_dir() and path.name not in KEPT and path.name[0] != "."
    ]
    found += [paths.results() / ".snakemake"]
    if runs is not None and not runs:
        folders = [path for path in (paths.results() / "runs").glob("*") if path.is_dir()]
        found += [paths.results() / "runs", *scales, *_teacher_caches(folders)]
        found += [path for root in _teacher_roots() for path in root.glob("*.part-*")]  # of interrupted ones
    else:
        found += [
            folder / name
            for folder in scales
            for name in (
                "logs",
                "specs",
                "notebooks",
                "preview.json",
                "preview.config.json",
                "plan.config.json",
                "jobs.jsonl",
            )
        ]
        chosen = _with_descendants(runs or [])
        found += [*chosen, *_teacher_caches(chosen)]
    found = [path for path in found if path.exists()]
    for path in found:
        print(f"{'would remove' if dry_run else 'removed'} {paths.shown(path)}")
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not found:
        print("nothing to remove")
    return found


def _with_descendants(names: list[str]) -> list[Path]:
    """Folders of these runs and of all runs whose specification holds one of them as parent or grandparent."""
    folders = {path.name: path for path in (paths.results() / "runs").glob("*") if path.is_dir()}
    if unknown := [name for name in names if name not in folders]:
        raise InputError(f"RUNS: {', '.join(unknown)}: no such run under {paths.shown(paths.results() / 'runs')}")
    chosen = set(names)
    for name, folder in folders.items():
        if chosen & set(_ancestors(folder)):
            chosen.add(name)
    return [folders[name] for name in sorted(chosen)]


def _teacher_caches(folders: list[Path]) -> list[Path]:
    """What teachers among these run folders keep beside the data (`teachers.cache`)."""
    return [root / folder.name for root in _teacher_roots() for folder in folders]


def _teacher_roots() -> list[Path]:
    roots = {paths.prepared_root(base) for base in (paths.data_root(), paths.phantom_root())}
    return [root / "teachers" for root in sorted(roots)]


def _ancestors(folder: Path) -> list[str]:
    """Ids of the runs and of the teacher that a stored run starts from."""
    from amif_lib.experiments import rows as experiments
    from amif_lib.methods.amif.teacher import teacher_ids

    try:
        spec = experiments.parse(json.loads((folder / "spec.json").read_text(encoding="utf-8")), str(folder))
    except (OSError, ValueError):  # a teacher's folder, or a run that never got as far as its specification
        return []
    return [name for run in spec.lineage() for name in (run.run_id, *teacher_ids(run))]
