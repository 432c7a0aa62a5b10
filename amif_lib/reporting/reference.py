"""A scale's results in a small form to be committed: `python -m amif_lib reference --scale small`.

With FROM=reference, `make figures` and `make report` then need only `results/reference/<scale>/` of a fresh clone, no
torch and no data; what a manifest does not allow to be passed on is not copied.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.manifests import may_show
from amif_lib.experiments import stored, stored_maps
from amif_lib.experiments.identity import data_sets
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions, write_predictions
from amif_lib.experiments.rows import RunSpec
from amif_lib.reporting.table_rows import Selection, planned_tables, required_runs

TOTAL = 30_000_000  # bytes of all scales together (DESIGN.md)
LARGEST = {".ipynb": 250_000, ".svg": 400_000}  # bytes; a larger file is left out
COPIED = (
    "tables/*.csv",
    "tables/*.md",
    "tables/*.tex",
    "figures/*.csv",
    "figures/*.txt",
    "figures/*.png",
    "figures/*.svg",
)
COPIED += ("benchmarks/*.csv", "notebooks/*.ipynb")
POINTS = 100  # of a training's history
MARGIN = 10.0  # nats below the best candidate: what lies further below holds next to no probability


def store(scale: str) -> Path:
    """Replace `results/reference/<scale>/` by the scale's tables, figures, executed notebooks and runs.

    Raises InputError where a run of the plan's tables is missing, or where the reference would pass `TOTAL` bytes.
    """
    paths.refuse_reference("reference")
    source, target, names = paths.scale_dir(scale), paths.reference(scale), planned_tables(scale)
    tips = [run for name in names for run in required_runs(name, scale)]
    specs = {run.run_id: run for tip in tips for run in tip.lineage()}
    if lacking := stored.missing(specs.values()):
        raise InputError(f"scale {scale}: run {lacking[0].run_id} is not finished; run `make reproduce SCALE={scale}`")
    headline = {
        run.run_id: run for row in Selection.planned(names[0], scale).headlines(names[0], scale) for run in row.runs
    }
    shown = {run.run_id for tip in headline.values() for run in tip.lineage()}  # its notebooks are shown as examples
    aside = target.with_name(f".{scale}.part")
    shutil.rmtree(aside, ignore_errors=True)
    for pattern in COPIED:
        for file in sorted(source.glob(pattern)):
            _copy(file, aside / file.parent.name / file.name)
    for file in sorted((source / "baselines").glob("*.parquet")):  # others lie in results/private/
        _copy(file, aside / "baselines" / file.name)
    for spec in specs.values():
        _copy_run(spec, aside / "runs" / spec.run_id, probabilities=spec.run_id in headline)
        for notebook in spec.directory.glob("*.ipynb") if spec.run_id in shown and spec.seed == 0 else ():
            _copy(notebook, aside / "notebooks" / notebook.name)
    plan = json.loads(paths.plan(scale).read_text(encoding="utf-8")) if paths.plan(scale).is_file() else {}
    plan = {
        "selection": plan.get("selection", {}),
        "jobs": [{"rule": "table", "name": name} for name in names],
    }
    files.write_text(aside / "plan.json", json.dumps(plan, indent=1) + "\n")
    total = sum(
        path.stat().st_size for path in target.parent.rglob("*") if path.is_file() and target not in path.parents
    )
    if total > TOTAL:
        shutil.rmtree(aside)
        raise InputError(f"results/reference would hold {total / 1e6:.0f} MB; at most {TOTAL / 1e6:.0f} are kept")
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
    return target


def _copy_run(spec: RunSpec, folder: Path, probabilities: bool) -> None:
    for name in ("spec.json", "metrics.json", "provenance.json"):
        _copy(spec.directory / name, folder / name)
    if (spec.directory / "metrics.jsonl").is_file():
        files.write_text(folder / "metrics.jsonl", thinned(stored.Run(spec.directory).history))
    if spec.stage == "finetune" and may_show(spec.data.questions, "texts"):
        run = stored.Run(spec.directory)
        write_predictions(folder, *smaller(run.predictions, run.candidates, probabilities))
        for name in (stored.BLANK_TEST, stored.SHUFFLED_TEST):
            if (spec.directory / name / PREDICTIONS).is_file():
                found = read_predictions(spec.directory / name)
                write_predictions(folder / name, *smaller(*found, probabilities=False))
    sets = {name for run in spec.lineage() for name in data_sets(run)}
    first = all(run.seed == 0 for run in spec.lineage())
    if first and not manifests.notice(sets) and (spec.directory / stored_maps.MAPS).is_file():
        _copy(spec.directory / stored_maps.MAPS, folder / stored_maps.MAPS)


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless it is too large; in a text the clone's own path, which says where it lay, is left out."""
    if source.stat().st_size > LARGEST.get(source.suffix, float("inf")):
        print(f"left out: {paths.shown(source)}: above {LARGEST[source.suffix] / 1000:.0f} kB")
    elif source.suffix in (".json", ".ipynb"):
        text = source.read_text(encoding="utf-8").replace(f"{paths.ROOT.as_posix()}/", "")
        files.write_text(target, text)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def thinned(history: pd.DataFrame) -> str:
    """A history as JSON lines, at most `POINTS`: means over blocks of steps, `step` being the block's last one."""
    block = np.arange(len(history)) * min(POINTS, len(history)) // len(history)
    means = history.select_dtypes("number").groupby(block).mean().assign(step=history["step"].groupby(block).last())
    return means.to_json(orient="records", lines=True, double_precision=4)


def smaller(frame: pd.DataFrame, candidates: pd.DataFrame, probabilities: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions whose log-likelihoods compress well, and by which every protocol chooses the same answers.

    The best candidates of each set that a protocol chooses among are kept in half precision, with `probabilities` also
    those within `MARGIN` of the best; the others get one low number. A question whose choice would change keeps all.
    """
    exact = np.stack(frame["log_likelihoods"]).astype(np.float32)  # (n, K)
    train, val, test = (candidates[f"in_{split}"].to_numpy(dtype=bool) for split in ("train", "val", "test"))
    yes_no, tokens = candidates["answer"].isin(["yes", "no"]).to_numpy(), candidates["tokens"].to_numpy()
    sets = [test, train, train | val, train | val | test]
    sets += [among & yes_no for among in sets]

    def best(scores: np.ndarray, by: np.ndarray | int) -> np.ndarray:  # by sum (1) or mean (tokens) -> (n, sets)
        return np.stack([np.where(among, scores / by, -np.inf).argmax(1) for among in sets], axis=1)

    kept = np.zeros(exact.shape, dtype=bool)
    for among in sets:
        kept |= among & (exact >= np.where(among, exact, -np.inf).max(1, keepdims=True) - MARGIN * probabilities)
    low = np.where(kept, exact, 0).min(1, keepdims=True) - 100
    values = np.where(kept, exact.astype(np.float16), low * tokens).astype(np.float32)
    for by in (1, tokens):
        changed = (best(values, by) != best(exact, by)).any(1)
        values[changed] = exact[changed]
    return frame.assign(log_likelihoods=list(values)), candidates
