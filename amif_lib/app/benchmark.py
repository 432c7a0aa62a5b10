"""`python -m amif_lib.app.benchmark`: how fast this machine trains and answers at a scale's size, on synthetic inputs.

Writes `training.csv`, `answering.csv` and `hours.csv` to `results/<scale>/benchmarks/` and prints them. Needs torch,
transformers and accelerate (with pydantic and PyYAML), no network and no data; see `benchmarks.training`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments


def show(path: Path, columns: tuple[str, ...]) -> None:
    """Print some columns of a CSV as a plain table."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = [list(columns), *([row[name] or "-" for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def read_rates(text: str) -> dict[str, float]:
    """FLOP/s by stage from JSON. Raises InputError where it is something else."""
    try:
        rates = json.loads(text)
        return {stage: float(rates[stage]) for stage in ("stage1", "stage2", "finetune")}
    except (ValueError, KeyError, TypeError):
        raise InputError(
            '--rates: give JSON such as {"stage1": 1e14, "stage2": 8e13, "finetune": 6e13}, in FLOP/s'
        ) from None


COLUMNS = {
    "training.csv": (
        *(
            "objective",
            "stage",
            "batch",
            "rows_at_once",
            "text_length",
            "compiled",
            "seconds_per_step",
            "samples_per_second",
        ),
        *("tflop_per_second", "share_of_matmul_rate", "peak_memory_gb"),
    ),
    "answering.csv": ("questions", "candidates", "seconds_per_question", "questions_per_second"),
    "hours.csv": ("table", "objective", "stage", "runs", "hours"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m amif_lib.app.benchmark",
        description="Time training and answering at a scale's size on synthetic inputs; needs no network and no data.",
    )
    parser.add_argument("--scale", default="paper", help="demo, small, base or paper (default)")
    parser.add_argument("--device", default="", choices=("", "cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each training, after two untimed ones")
    parser.add_argument("--batch", type=int, default=0, help="samples in a batch; default: the scale's")
    parser.add_argument("--text-length", type=int, default=0, help="report tokens; default: the scale's")
    parser.add_argument(
        "--objective",
        choices=("default", "cheapest", "both"),
        default="default",
        help="stage 2 as the scale has it, or its cheapest reading: one view, positives of images with their reports alone, 64 "
        "report tokens",
    )
    parser.add_argument(
        "--compile", choices=("no", "yes", "both"), default="no", help="torch.compile the network's blocks"
    )
    parser.add_argument(
        "--memory-gb", type=float, default=0, help="of the GPU that may be used, to see what fits a smaller one"
    )
    parser.add_argument("--out", type=Path, help="folder for the CSV files; default: results/<scale>/benchmarks")
    parser.add_argument("--rates", help="project hours from rates that another machine measured: JSON, FLOP/s by stage")
    given = parser.parse_args(arguments)
    try:
        if given.steps < 1 or given.batch < 0 or given.text_length < 0:
            raise InputError("--steps needs at least 1, --batch and --text-length at least 0 (the scale's own)")
        folder = given.out or paths.results() / given.scale / "benchmarks"
        experiments.scale_settings(given.scale)
        from amif_lib.app.benchmarks import training

        objectives = ("default", "cheapest") if given.objective == "both" else (given.objective,)
        if given.rates and given.objective == "both":
            raise InputError("--rates: those of one --objective at a time; give default or cheapest")
        if given.rates:
            files = [
                training.write_hours(folder, read_rates(given.rates), given.scale, given.text_length, objectives[0])
            ]
        else:
            ways = {"no": (False,), "yes": (True,), "both": (False, True)}[given.compile]
            training.cap_memory(given.memory_gb)
            files = training.write(
                folder,
                given.scale,
                given.device,
                given.steps,
                given.batch,
                given.text_length,
                ways,
                objectives=objectives,
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in files:
        print(f"\n{paths.shown(path)}")
        show(path, COLUMNS[path.name.replace("_cheapest", "")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
