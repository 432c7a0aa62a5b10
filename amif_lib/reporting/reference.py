"""Our own runs' results, copied out of a results folder in a small form to be committed, and read with FROM=reference.

`python -m amif_lib reference --scale small` fills `results/reference/<scale>/` from finished runs: what `make figures` and
`make report` need, so that both can be made again in a fresh clone without torch and without data. Without
FROM=reference nothing takes it for a run. What a manifest does not allow to be passed on is not copied.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests, redistribution
from amif_lib.experiments import compact
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions
from amif_lib.experiments.rows import RunSpec
from amif_lib.reporting import map_files
from amif_lib.reporting.table_rows import Selection, planned_tables, required_runs
from amif_lib.scoring import baselines

BYTES = 20_000_000  # all scales together (DESIGN.md)
MAPS_BYTES = 6_000_000  # of a scale's arrays; what is over it is left out, rows that no figure of maps shows first
SHOWN = ("table2", "table4")  # the tables that figures of maps show
FILE_BYTES = 400_000  # a figure's file above this is left out: it can be drawn again
POINTS = {"finetune": 50, "stage1": 100, "stage2": 100}  # of a training's history
ARRAYS = (map_files.MAPS, map_files.EXAMPLE_MAPS, map_files.SOFT_LABELS, map_files.HARD_NEGATIVES)


def store(scale: str) -> Path:
    """Store tables, figures and runs of a scale in `results/reference/<scale>/`, replacing what was there.

    Raises InputError where tables or runs are missing, or where the reference as a whole would pass `BYTES`.
    """
    paths.refuse_reference("reference")
    source, target = paths.scale_dir(scale), paths.reference(scale)
    made = sorted((source / "tables").glob("*.*"))
    if not made:
        raise InputError(f"{paths.shown(source)}: no tables; run `make reproduce SCALE={scale}` first")
    aside = target.with_name(f".{scale}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _fill(aside, scale, source, made)
        _refuse_size(aside, target)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _fill(aside: Path, scale: str, source: Path, made: list[Path]) -> None:
    for file in made:
        if file.suffix in (".csv", ".md", ".tex"):
            _copy(file, aside / "tables" / file.name)
    for file in sorted((source / "figures").glob("*.*")):
        if file.suffix == ".png":
            _copy_png(file, aside / "figures" / file.name)
        elif file.suffix in (".csv", ".svg", ".txt") and file.stat().st_size <= FILE_BYTES:
            _copy(file, aside / "figures" / file.name)
    for file in sorted((source / "benchmarks").glob("*.csv")):
        _copy(file, aside / "benchmarks" / file.name)
    names = planned_tables(scale)
    specs = _runs(scale)
    left = MAPS_BYTES
    for path in sorted((source / "maps").glob("*.npz")):
        _copy(path, aside / "maps" / path.name)
        left -= path.stat().st_size
    headlines = {  # answered on blank images too, and drawn in the figure of calibration
        run.run_id
        for name in names
        for row in Selection.planned(name, scale).headlines(name, scale)
        for run in row.runs
    }
    shown = {spec.run_id for spec in _runs(scale, [name for name in names if name in SHOWN])}
    specs.sort(key=lambda spec: spec.run_id not in shown)  # those first, as long as there is room for maps
    for spec in specs:
        folder = aside / "runs" / spec.run_id
        files.write_text(folder / "spec.json", _plain(_own_spec(spec)))
        for name in ("metrics.json", "provenance.json"):
            files.write_text(folder / name, _plain(json.loads((spec.directory / name).read_text(encoding="utf-8"))))
        if (spec.directory / "metrics.jsonl").is_file():
            lines = thinned(results.Run(spec.directory).history, spec.stage)
            files.write_text(folder / "metrics.jsonl", "".join(_plain(line) for line in lines))
        if spec.stage == "finetune" and redistribution.may_show(spec.data.questions, "texts"):
            headline = spec.run_id in headlines
            for part in ("", results.BLANK_TEST) if headline else ("",):
                if (spec.directory / part / PREDICTIONS).is_file():
                    stored = read_predictions(spec.directory / part)
                    compact.write(folder / part, *stored, aside / compact.SHARED, probabilities=headline and not part)
        for name in ARRAYS if not redistribution.notice(spec) and spec.seed == 0 else ():
            if (path := spec.directory / name).is_file() and path.stat().st_size <= left:
                _copy(path, folder / name)
                left -= path.stat().st_size
    for dataset, settings in {
        (spec.data.questions, tuple(spec.data.question_settings.items())) for spec in specs if spec.stage == "finetune"
    }:
        path = baselines.stored_path(scale, dataset, **_asked(dict(settings)))
        if path.is_file() and redistribution.may_show(dataset, "texts"):
            whole = pd.read_parquet(path)
            compact.write_parquet(aside / "baselines" / path.name, whole)
    files.write_text(aside / "plan.json", json.dumps(_plan(scale, names, specs), indent=1) + "\n")


def _asked(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("training_file", "language")}


def _runs(scale: str, names: Sequence[str] | None = None) -> list[RunSpec]:
    """Every run behind the scale's tables (or those named), ancestors first, in the tables' order."""
    tips = [run for name in (planned_tables(scale) if names is None else names) for run in required_runs(name, scale)]
    found = list({run.run_id: run for tip in tips for run in tip.lineage()}.values())
    if lacking := results.missing(found):
        raise InputError(
            f"scale {scale}: runs {', '.join(run.run_id for run in lacking)} are not finished; run `make reproduce SCALE={scale}`"
        )
    return found


def _plan(scale: str, names: list[str], specs: list[RunSpec]) -> dict[str, Any]:
    """What `FROM=reference` must know: the selection, the tables and the form of each set that has several."""
    whole = Selection.planned(names[0], scale)
    path = paths.plan(scale)
    asked = files.read_yaml(path)["selection"] if path.is_file() else asdict(replace(whole, only=()))
    asked.pop("only", None)
    forms = {}
    for name in sorted({name for spec in specs for name in experiments.data_sets(spec)}):
        manifest = manifests.load(name)
        if manifest.alternatives:
            forms[name] = manifests.as_found(manifest).version
    return {"selection": asked, "jobs": [{"rule": "table", "name": name} for name in names], "forms": forms}


def _own_spec(spec: RunSpec) -> dict[str, Any]:
    """A specification whose parent is named by its run id: each one is stored once."""
    content = spec.model_dump(mode="json")
    return content | {"parent": spec.parent.run_id if spec.parent else None}


def thinned(history: pd.DataFrame, stage: str) -> list[dict[str, Any]]:
    """A history of at most `POINTS` lines: each the mean over a block of steps, `step` being the block's last one.

    Of a fine-tuning only step and total loss are kept. Numbers have four digits.
    """
    columns = ["step", "total"] if stage == "finetune" else list(history.select_dtypes("number"))
    columns = [name for name in columns if name in history]
    size = max(1, math.ceil(len(history) / POINTS[stage]))
    block = pd.Series(range(len(history))) // size
    mean = history[columns].reset_index(drop=True).groupby(block).mean()
    mean["step"] = history["step"].reset_index(drop=True).groupby(block).last()
    return [
        {
            name: int(value) if name == "step" else float(f"{value:.4g}")
            for name, value in line.items()
            if value == value
        }
        for line in mean.to_dict("records")
    ]


def _refuse_size(aside: Path, target: Path) -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    others = [path for path in target.parent.glob("*") if path.is_dir() and path not in (aside, target)]
    total = size(aside) + sum(map(size, others))
    if total >= BYTES:
        parts = ", ".join(f"{path.name} {size(path) / 1e6:.1f} MB" for path in sorted(aside.iterdir()) if path.is_dir())
        raise InputError(
            f"results/reference would hold {total / 1e6:.1f} MB, at most {BYTES / 1e6:.0f} are kept ({parts}); "
            "store fewer rows or seeds"
        )


def _copy_png(source: Path, target: Path) -> None:
    """Copy a picture with a palette of 128 colours, which our figures hardly need more of, where that is smaller."""
    with files.write_aside(target) as aside:
        with Image.open(source) as picture:
            small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(aside, format="PNG", optimize=True)
        if aside.stat().st_size >= source.stat().st_size:
            shutil.copyfile(source, aside)


def _plain(content: Any) -> str:
    """One line of JSON; paths inside the clone become relative, since they say where it lay."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.replace(f"{paths.ROOT.as_posix()}/", "") + "\n"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
