"""How long each stage took in two results folders, side by side: what a change of the code brought.

`python -m amif_lib.app.benchmarks.stages BEFORE AFTER --out CSV` reads the finished runs of both (`metrics.json`) and needs no torch.
The folders should come from one machine, one after the other; settings may differ (epochs), so that a row is about a sample.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored as results

STAGES = ("stage1", "stage2", "finetune")


def stage_times(folder: Path) -> pd.DataFrame:
    """Columns `stage, runs, samples, seconds, milliseconds_per_sample` of a results folder, trainings and, as `evaluation`, answering.

    A training's samples are its steps times its batch (of a fine-tuning, the samples it counted); answering's its questions.
    Raises InputError where no finished run is there.
    """
    found: dict[str, dict[str, float]] = {}

    def add(stage: str, samples: float, seconds: float) -> None:
        total = found.setdefault(stage, {"runs": 0, "samples": 0.0, "seconds": 0.0})
        for name, value in (("runs", 1), ("samples", samples), ("seconds", seconds)):
            total[name] += value

    for path in sorted(folder.glob("runs/*/metrics.json")):
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if metrics.get("stage") not in STAGES:  # a teacher
            continue
        batch = json.loads((path.parent / "spec.json").read_text(encoding="utf-8"))["train"]["batch_size"]
        add(metrics["stage"], metrics.get("samples", metrics["steps"] * batch), metrics["train_time_s"])
        if "evaluation_time_s" in metrics:
            add("evaluation", metrics["test_questions"], metrics["evaluation_time_s"])
    if not found:
        raise InputError(f"{paths.shown(folder)}: no finished run; give a results folder")
    rows = [{"stage": stage, **found[stage]} for stage in (*STAGES, "evaluation") if stage in found]
    frame = pd.DataFrame(rows).astype({"runs": int, "samples": int})
    return frame.assign(milliseconds_per_sample=1000 * frame["seconds"] / frame["samples"])


def compare(before: Path, after: Path) -> pd.DataFrame:
    """Both folders' times per stage that both have, and `ratio`: how many times as long a sample took before."""
    sides = [stage_times(folder).set_index("stage") for folder in (before, after)]
    out = sides[0].add_suffix("_before").join(sides[1].add_suffix("_after"), how="inner")
    out["ratio"] = out["milliseconds_per_sample_before"] / out["milliseconds_per_sample_after"]
    codes = [" ".join(results.digests(_runs(folder))) for folder in (before, after)]
    return out.reset_index().round(4).assign(code_before=codes[0], code_after=codes[1])


def _runs(folder: Path) -> list[results.Run]:
    return [results.Run(path.parent) for path in sorted(folder.glob("runs/*/provenance.json"))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m amif_lib.app.benchmarks.stages", description=__doc__)
    parser.add_argument("before", type=Path, help="results folder of the earlier code")
    parser.add_argument("after", type=Path, help="results folder of the later code")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file too")
    given = parser.parse_args(arguments)
    try:
        table = compare(given.before, given.after)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table.drop(columns=["code_before", "code_after"]).to_string(index=False))
    if given.out:
        files.write_text(given.out, table.to_csv(index=False, lineterminator="\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
