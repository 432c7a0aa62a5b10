"""`make lab`: JupyterLab on working copies of the notebooks, in kernels whose waiting threads sleep."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from amif_lib.app.run_notebook import read_notebook
from amif_lib.core import files, paths

FOLDER = paths.ROOT / "lab"
WITHOUT_NEWS = paths.PACKAGE / "app" / "jupyter"  # settings without JupyterLab's question about news on first start
MADE_FROM = ".made_from.json"  # in the folder of the copies: the digest of the original that each was made from


def main(copies: int, arguments: list[str]) -> int:
    """Open notebook 00 in JupyterLab, in `lab/` or, without copies, in `notebooks/`; `arguments` are JupyterLab's."""
    folder = FOLDER if copies else paths.NOTEBOOKS
    if copies and (kept := make_copies(paths.NOTEBOOKS, FOLDER)):
        print(f"{paths.shown(FOLDER)}/: kept as you left them: {', '.join(kept)}")
        print("For a fresh copy of a notebook, delete it there and run make lab again.")
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # kernels inherit it
    settings = [str(WITHOUT_NEWS), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    environment["JUPYTER_CONFIG_PATH"] = os.pathsep.join(settings)
    first = f"--LabApp.default_url=/lab/tree/{folder.name}/00_start_here.ipynb"
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={paths.ROOT}", first, *arguments]
    return subprocess.call(command, cwd=paths.ROOT, env=environment)


def make_copies(originals: Path, copies: Path) -> list[str]:
    """Make missing copies and renew those that nobody changed; returns the names of the others, which are kept.

    A name ends in "(older than its original)" if the original has changed since the copy was made.
    """
    record = copies / MADE_FROM
    made_from, kept = files.read_yaml(record) if record.is_file() else {}, []
    for original in sorted(path for kind in ("*.ipynb", "*.py") for path in originals.rglob(kind)):
        name = original.relative_to(originals).as_posix()
        copy, new = copies / name, files.sha256(original)
        if ".ipynb_checkpoints" in name:
            continue
        if copy.is_file() and files.sha256(copy) not in (new, made_from.get(name)):
            kept.append(name if made_from.get(name) == new else f"{name} (older than its original)")
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
        made_from[name] = new
    files.write_json(record, made_from)
    return kept


def notebook_map() -> str:
    """The notebooks as a Markdown table: name, title, and the minutes that the committed executed copy took."""
    lines = ["| notebook | what it is about | minutes |", "|---|---|---:|"]
    for path in sorted(paths.NOTEBOOKS.glob("[0-8]*.ipynb")) + sorted(paths.NOTEBOOKS.glob("90_*.ipynb")):
        title = re.sub(r"^# (\d\d[a-z]?: )?", "", "".join(read_notebook(path)["cells"][0]["source"]).splitlines()[0])
        executed = paths.reference("demo") / "notebooks" / path.name
        about = read_notebook(executed)["metadata"].get("papermill", {}) if executed.is_file() else {}
        minutes = f"{about['duration'] / 60:.1f}" if about.get("duration") else "–"
        lines.append(f"| [{path.stem}]({path.name}) | {title} | {minutes} |")
    return "\n".join(lines)
