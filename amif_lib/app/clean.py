"""`make clean`: remove what can be made again in seconds. Data are never touched, finished runs only when asked for."""

from __future__ import annotations

import shutil

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError

CACHES = ("__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache")
WORKFLOW = ("logs", "specs", "preview.json")  # in the folder of a scale
OWN = ("runs", "audit", "from_reference", ".snakemake")  # .snakemake records which code made each table


def main(runs: bool = False) -> None:
    """Remove caches and logs; with `runs` also the user's runs, tables and reports. Prints what was removed.

    Raises InputError while a workflow or a training is running.
    """
    results = paths.results()
    scales = [results / path.stem for path in (paths.SPECS / "scales").glob("*.yaml")]
    for folder in (*scales, *(results.glob("runs/*") if runs else ())):
        try:
            for lock in folder.glob(".lock"):
                with files.exclusive(lock, paths.shown(folder), wait=False):
                    pass
        except BlockingIOError as error:
            raise InputError(f"{error}; nothing was removed, run make clean when it has ended") from None
    found = [paths.ROOT / name for name in CACHES]
    for folder in ("amif_lib", "notebooks", "tests"):
        found += [path for name in CACHES for path in (paths.ROOT / folder).rglob(name)]
    found += [results / ".snakemake" / "log", *(scale / name for scale in scales for name in WORKFLOW)]
    found += [*scales, *(results / name for name in OWN)] if runs else []
    kept = (paths.published(), paths.data_root(), paths.phantom_root(), paths.prepared_root(paths.data_root()))
    holding = {above for folder in kept for above in (folder, *folder.parents)}
    for path in (path for path in found if path.exists() and path.resolve() not in holding):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        print(f"{'could not remove' if path.exists() else 'removed'} {paths.shown(path)}")
