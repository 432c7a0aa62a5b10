"""Makes a small copy of a scale's results, to be committed: `python -m amif_lib reference --scale small`.

`python -m amif_lib reference 02a 21` executes those notebooks and replaces only their committed copies.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.experiments import stored, stored_maps
from amif_lib.experiments.identity import data_sets
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions, write_predictions
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.experiments.stored import Run
from amif_lib.methods.amif import settings
from amif_lib.reporting import figures, report, table_rows, tables
from amif_lib.reporting.table_rows import Selection, planned_tables

CHECKPOINT = 8_000_000  # bytes of the full model's weights, all stages and the teacher together
NOTEBOOK = 250_000  # bytes; a larger notebook is left out
# Colours and size of the pictures in an executed notebook; the first that makes it small enough is used.
LOOKS = ((256, 1.0), (128, 1.0), (64, 1.0), (64, 0.5), (32, 0.5))  # 32 colours only where no 64 fit
PICTURE = "picture:"  # with a file name, the tag of a cell whose picture README shows
COPIED = [f"{folder}/*{ending}" for folder in ("tables", "figures") for ending in (".csv", ".md", ".tex", ".txt")]
COPIED += ["tables/*.npz", "figures/*.png", "baselines/*.parquet", "benchmarks/*.csv", "notebooks/*.ipynb"]
MARGIN = 10.0  # nats below the best candidate; candidates further below have almost no probability


def store(scale: str) -> Path:
    """Replace `results/reference/<scale>/` by the scale's tables, figures, executed notebooks and runs.

    For the full model's first training these include its notebooks, its losses and, up to `CHECKPOINT` bytes together,
    the weights of its stages and of its teacher, which notebooks 02a to 02c read. What a manifest does not
    allow to be passed on is not copied. Raises InputError if a run of the plan's tables is missing.
    """
    paths.refuse_reference("reference")
    source, target, names = paths.scale_dir(scale), paths.reference(scale), planned_tables(scale)
    collected = [tables.collect(name, scale) for name in names]
    runs, lines = report.all_runs(collected), [line for table in collected for line in table.lines]
    without = {run.run_id for line in lines if not line.entry for run in line.runs}  # shown without the right image
    rows = Selection.planned(names[0], scale).headlines("table1", scale)
    heads = [run for row in rows for run in row.runs if run.seed == 0 and stored.is_finished(run)]
    shown = {run.run_id for head in heads for run in head.trainings()}
    part = target.with_name(f".{scale}.part")
    shutil.rmtree(part, ignore_errors=True)
    for file in (file for pattern in COPIED for file in sorted(source.glob(pattern))):
        _copy(file, part / file.parent.name / file.name)
    for run in runs:
        _copy_run(run, part / "runs" / run.run_id, run.run_id in shown, run.run_id in without)
        for notebook in run.directory.glob("*.ipynb") if run.run_id in shown else ():
            if not (part / "notebooks" / notebook.name).is_file():  # of a fine-tuning, that of the first question set
                _copy(notebook, part / "notebooks" / notebook.name)
    for run in heads[:1]:
        _copy_weights(run, part / "runs")
    asked = {name: known for name, known in table_rows.asked_for(scale).items() if name in names}
    plan = {"tables": asked, "jobs": [{"rule": "table", "name": name} for name in names]}
    files.write_text(part / "plan.json", json.dumps(plan, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    return target


def _copy_run(run: Run, folder: Path, shown: bool, without: bool) -> None:
    for name in ("spec.json", "metrics.json", "provenance.json", *(["metrics.jsonl"] if shown else [])):
        if (run.directory / name).is_file():
            _copy(run.directory / name, folder / name)
    if run.spec.stage == "finetune" and manifests.may_show(run.spec.data.questions, "texts"):
        for part in map(Path, ("", stored.BLANK_TEST, stored.SHUFFLED_TEST) if without else ("",)):
            if (run.directory / part / PREDICTIONS).is_file():
                frame, candidates = read_predictions(run.directory / part)
                frame = smaller(frame, candidates, MARGIN if shown and part == Path() else 0)
                write_predictions(folder / part, frame, candidates)
    first = all(step.seed == 0 for step in run.spec.trainings())
    if first and (run.directory / stored_maps.MAPS).is_file() and not _withheld(run):
        _copy(run.directory / stored_maps.MAPS, folder / stored_maps.MAPS)


def _copy_weights(run: RunSpec, folder: Path) -> None:
    steps = run.trainings()
    sources = {step.run_id: step.directory / "model" for step in steps}
    if teacher := settings.teacher_id(steps[0]):
        sources[teacher] = settings.cache(steps[0]) / "fold0"
    weights = {path: name for name, source in sources.items() for path in source.glob("*") if path.is_file()}
    if absent := sorted(set(sources) - set(weights.values())):
        print(f"left out: the weights of {', '.join(absent)}, which are not here; notebooks 02a to 02c need them")
    if not _withheld(Run(run.directory)) and sum(path.stat().st_size for path in weights) <= CHECKPOINT:
        for path, name in weights.items():
            _copy(path, folder / name / "model" / path.name)


def _withheld(run: Run) -> bool:
    """Whether a run was trained on images or texts that may not be passed on."""
    return bool(manifests.notice({name for step in run.spec.trainings() for name in data_sets(step)}))


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless it is a notebook that is too large; the clone's absolute path is removed from texts."""
    content = source.read_bytes()
    if source.suffix in (".json", ".ipynb"):
        content = content.replace(f"{paths.ROOT.as_posix()}/".encode(), b"")
    if source.suffix == ".jsonl":  # losses by step: four digits are more than a curve shows
        content = "".join(f"{json.dumps(_rounded(json.loads(line)))}\n" for line in files.whole_lines(source)).encode()
    if source.suffix == ".ipynb":
        content = _small_notebook(json.loads(content))
        if len(content) > NOTEBOOK:
            print(f"left out: {paths.shown(source)}: {len(content) / 1000:.0f} kB, above {NOTEBOOK / 1000:.0f} kB")
            return
    with files.atomic_write(target) as partial:
        partial.write_bytes(content)
    if source.suffix == ".ipynb":
        _keep_pictures(json.loads(content)["cells"])


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in line.items()}


def _keep_pictures(cells: list[dict[str, Any]]) -> None:
    """Write the pictures of cells tagged `picture:NAME` to `results/reference/pictures/`."""
    for cell in cells:
        for name in (tag.removeprefix(PICTURE) for tag in cell["metadata"]["tags"] if tag.startswith(PICTURE)):
            png = next(each["data"]["image/png"] for each in cell["outputs"] if "image/png" in each.get("data", ()))
            with files.atomic_write(paths.reference("pictures") / f"{name}.png") as partial:
                partial.write_bytes(base64.b64decode(png))


def keep_notebook(executed: Path, scale: str) -> None:
    """Replace a scale's committed copy of an executed notebook. Raises InputError where it is too large."""
    target = paths.reference(scale) / "notebooks" / executed.name
    target.unlink(missing_ok=True)
    _copy(executed, target)
    if not target.is_file():
        raise InputError(f"{executed.name}: too large to be committed; make its pictures or tables smaller")


def _small_notebook(notebook: dict[str, Any]) -> bytes:
    """An executed notebook without hidden data, and with so few colours in its pictures that it is small enough."""
    notebook["metadata"].pop("widgets", None)
    shown = [output["data"] for cell in notebook["cells"] for output in cell.get("outputs", ()) if "data" in output]
    for cell in notebook["cells"]:
        cell["metadata"] = {"tags": cell.get("metadata", {}).get("tags", [])}  # no time stamps
    for data in shown:
        if "text/html" in data:
            data.pop("text/plain", None)
    pictures = [(data, base64.b64decode(data["image/png"])) for data in shown if "image/png" in data]
    for look in LOOKS:
        for data, png in pictures:
            data["image/png"] = base64.b64encode(figures.small_png(png, *look)).decode()
        text = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
        if len(text) <= NOTEBOOK:
            break
    return text


def smaller(frame: pd.DataFrame, candidates: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Predictions whose log-likelihoods compress well, and from which every protocol chooses the same answers.

    Among the candidates that each protocol ranks, those within `margin` nats of the best keep their log-likelihood; all
    others get the same lower one.
    """
    exact = np.stack(frame["log_likelihoods"]).astype(np.float32)  # (n, K)
    train, val, test = (candidates[f"in_{split}"].to_numpy(dtype=bool) for split in ("train", "val", "test"))
    kept = np.zeros(exact.shape, dtype=bool)
    for ranked in (test, train, train | val):
        kept |= ranked & (exact >= np.where(ranked, exact, -np.inf).max(1, keepdims=True) - margin)
    low = np.where(kept, exact, 0).min(1, keepdims=True) - 100
    return frame.assign(log_likelihoods=list(np.where(kept, exact, low)))
