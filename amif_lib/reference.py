"""Our own runs' tables, figures and predictions, copied out of a results folder to be committed.

`python -m amif_lib reference --scale small` fills `results/reference/<scale>/` from finished runs. Nothing reads it as a
run: it stands beside a user's results for comparison. What a manifest does not allow to be passed on is not copied.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from amif_lib import evaluate, experiments, paths, redistribution, results, tables
from amif_lib.errors import InputError

KEPT = ("spec.json", "metrics.json", "provenance.json")  # of every run; predictions where the set's texts may be shown


def store(scale: str) -> Path:
    """Copy tables, figures and runs of a scale to `results/reference/<scale>/`, replacing what was there."""
    source, target = paths.scale_dir(scale), paths.ROOT / "results" / "reference" / scale
    made = sorted((source / "tables").glob("*.*"))
    if not made:
        raise InputError(f"{paths.shown(source)}: no tables; run `make reproduce SCALE={scale}` first")
    aside = target.with_name(f".{scale}.part")
    shutil.rmtree(aside, ignore_errors=True)
    for file in [*made, *sorted((source / "figures").glob("*.*"))]:
        if file.suffix in (".csv", ".md", ".tex", ".png", ".svg"):
            _copy(file, aside / file.relative_to(source))
    for spec in _runs(scale):
        folder = aside / "runs" / spec.run_id
        for name in KEPT:
            _copy(spec.directory / name, folder / name)
        if spec.stage == "finetune" and redistribution.may_show(spec.data.questions, "texts"):
            for part in (Path(), Path(results.BLANK_TEST)):
                for name in (evaluate.PREDICTIONS, evaluate.CANDIDATES):
                    if (spec.directory / part / name).is_file():
                        _copy(spec.directory / part / name, folder / part / name)
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
    return target


def _runs(scale: str) -> list[experiments.RunSpec]:
    tips = [run for name in experiments.tables_of(scale) for run in tables.required_runs(name, scale)]
    found = list({run.run_id: run for tip in tips for run in tip.lineage()}.values())
    if lacking := results.missing(found):
        raise InputError(
            f"scale {scale}: runs {', '.join(run.run_id for run in lacking)} are not finished; run `make reproduce SCALE={scale}`"
        )
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
