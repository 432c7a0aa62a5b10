"""`make clean`: remove what can be made again in seconds. Data are never touched, finished runs only when asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from amif_lib.core import paths

CACHES = ("__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache")
WORKFLOW = (".snakemake", "logs", "specs", "jobs.jsonl", "preview.json", "preview.config.json", "plan.config.json")
OTHERS = ("runs", "paper", "reference", "private")  # folders of results/ that are not a scale's


def clean(runs: bool = False, dry_run: bool = False) -> list[Path]:
    """Remove caches and workflow state; with `runs` also runs, tables and reports of one's own. Returns what went."""
    found = list(_found(runs))
    for path in found if not dry_run else ():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return found


def _found(runs: bool) -> Iterator[Path]:
    yield from (path for path in (paths.ROOT / ".snakemake",) if path.exists())
    for folder in ("amif_lib", "notebooks", "tests"):
        yield from (path for name in CACHES for path in (paths.ROOT / folder).rglob(name))
    yield from (path for name in CACHES if (path := paths.ROOT / name).exists())
    results = paths.results()
    scales = [path for path in results.glob("*") if path.is_dir() and path.name not in (*OTHERS, *WORKFLOW)]
    if runs:
        yield from (path for path in (*scales, results / "runs", results / ".snakemake") if path.exists())
        return
    yield from (path for folder in (results, *scales) for name in WORKFLOW if (path := folder / name).exists())
