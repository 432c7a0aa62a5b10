"""`make clean`: remove what can be made again in seconds. Data are never touched, finished runs only when asked for."""

from __future__ import annotations

import shutil

from amif_lib.core import paths

CACHES = ("__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache", ".snakemake")
WORKFLOW = (".snakemake", "logs", "specs", "preview.json")
OTHERS = ("runs", "paper", "reference", "private")  # folders of results/ that are not a scale's


def main(runs: bool = False) -> None:
    """Remove caches and workflow state; with `runs` also runs, tables and reports of one's own. Prints what went."""
    results = paths.results()
    scales = [folder for folder in results.glob("*") if folder.is_dir() and folder.name not in (*OTHERS, *WORKFLOW)]
    found = [paths.ROOT / name for name in CACHES]
    for folder in ("amif_lib", "notebooks", "tests"):
        found += [path for name in CACHES for path in (paths.ROOT / folder).rglob(name)]
    found += [folder / name for folder in (results, *scales) for name in WORKFLOW]
    found += [*scales, results / "runs"] if runs else []
    for path in filter(lambda path: path.exists(), found):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        print(f"removed {paths.shown(path)}")
