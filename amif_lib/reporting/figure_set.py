"""Every figure of a scale that its stored runs allow: `make figures`. No torch, no data, no training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import tables_of
from amif_lib.reporting import figures, map_figures, map_scores, pretraining_figures, result_figures
from amif_lib.reporting.figures import Drawn

SCORES = "map_scores.csv"
INDEX = "figures.csv"  # which figures there are, with their captions; written last by `main`


def draw_all(scale: str, only: Collection[str] = ()) -> list[Path]:
    """Draw what the stored runs allow into `results/<scale>/figures/`, each as PDF, SVG, PNG, CSV and caption.

    `only` names the figures to draw (default: all), such as `fig6_lambda`.
    A figure whose runs are absent is left out, and one line says which and why; a figure of an earlier call goes with it, so
    that nothing stale is taken for new. Returns the files; raises InputError where nothing at all can be drawn.
    """
    import matplotlib.pyplot as plt

    figures.use_style()
    map_scores.rows_of.cache_clear()  # the plan may be another one by now
    folder, tables, written = paths.scale_dir(scale) / "figures", tables_of(scale), []
    scores: list[Drawn] = []

    def scored(stage: str) -> Drawn:
        if not scores:
            scores.append((None, map_scores.table(scale, tables), ""))
            files.write_text(
                folder / SCORES, scores[0][1].to_csv(index=False, lineterminator="\n", float_format="%.5g")
            )
            written.append(folder / SCORES)
        return map_figures.scores_figure(scores[0][1], stage, scale)

    drawings: dict[str, Callable[[], Drawn]] = {
        "fig4_local_alignment": lambda: map_figures.local_alignment(scale),
        "fig5_gated_attention": lambda: map_figures.gated_attention(scale),
        "fig6_lambda": lambda: result_figures.lambda_curve(scale),
        "map_scores_stage2": lambda: scored("stage2"),
        "map_scores_finetune": lambda: scored("finetune"),
        "training_curves": lambda: training_curves(scale),
        "soft_labels": lambda: pretraining_figures.soft_label_maps(scale),
        "hard_negatives": lambda: pretraining_figures.hard_negative_gallery(scale),
        "accuracy_by_type": lambda: result_figures.accuracy_by_type(scale),
        "calibration": lambda: result_figures.calibration(scale),
        "run_costs": lambda: result_figures.run_costs(scale, tables),
    }
    if unknown := sorted(set(only) - set(drawings)):
        raise InputError(f"figure {unknown[0]!r}: unknown; choose from {', '.join(drawings)}")
    drawings = {name: draw for name, draw in drawings.items() if not only or name in only}
    if any(name.startswith("map_scores") for name in drawings):
        (folder / SCORES).unlink(missing_ok=True)
    left_out = []
    for name, draw in drawings.items():
        try:
            figure, data, caption = draw()
        except InputError as error:
            left_out.append(f"{name}: {error}")
            for old in folder.glob(f"{name}.*"):
                old.unlink()
            continue
        written += figures.save(figure, folder / name, data, caption)
        plt.close(figure)
    for line in left_out:
        print(f"left out: {line}")
    if len(left_out) == len(drawings):
        raise InputError(f"SCALE={scale}: no figure can be drawn; train its runs first (make reproduce SCALE={scale})")
    return written


def is_current(scale: str) -> bool:
    """Whether `main` has drawn the scale's figures since its tables were last made anew."""
    index, folder = paths.scale_dir(scale) / "figures" / INDEX, paths.scale_dir(scale) / "tables"
    made = [path for path in folder.glob("*.csv") if path.stem != "claims"]  # that one the report writes after drawing
    return index.is_file() and all(path.stat().st_mtime <= index.stat().st_mtime for path in made)


def start(scale: str) -> subprocess.Popen:
    """Let another process draw the scale's figures; `finish` waits for it."""
    line = [sys.executable, "-m", "amif_lib", "figures", "--scale", scale, "--allow-none"]
    origin = ["--from", "reference"] if paths.from_reference() else []
    environment = os.environ | {"AMIF_RESULTS": str(paths.results())}  # as this process has it, wherever it stands
    return subprocess.Popen(
        [*line, *origin],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        cwd=paths.ROOT,
        env=environment,
    )


def finish(scale: str, process: subprocess.Popen) -> None:
    """Wait for what `start` started and pass on what it printed. Raises InputError with its last line where it failed."""
    said = process.communicate()[0]
    print(said, end="", flush=True)
    if process.returncode:
        lines = said.strip().splitlines() or [f"exit status {process.returncode}"]
        raise InputError(f"SCALE={scale}: the figures could not be drawn: {lines[-1].removeprefix('error: ')}")
    index = paths.scale_dir(scale) / "figures" / INDEX
    if not index.is_file():
        raise InputError(
            f"{paths.shown(index)}: not written by python -m amif_lib figures --scale {scale}; run it by itself"
        )
    index.touch()  # newer than tables that were made meanwhile, of the same runs


def training_curves(scale: str) -> Drawn:
    """The full model's losses: both pre-training stages and the fine-tuning on each question set."""
    runs = {}
    for row in map_scores.rows_of("table1", scale):
        for run in (run for tip in row.runs for run in tip.lineage() if not row.extra):
            if all((paths.run_dir(run.run_id) / name).is_file() for name in ("metrics.jsonl", "metrics.json")):
                runs[run.run_id] = results.load_run(run.run_id)
    caption = "Total loss of the full model: every step (pale) and its running mean. " + figures.note(scale)
    return figures.training_curves(list(runs.values())), figures.training_data(list(runs.values())), caption


def main(scale: str, allow_none: bool = False) -> int:
    """`python -m amif_lib figures`; with `allow_none` runs that allow no figure are no error."""
    mpl.use("Agg")
    try:
        written = draw_all(scale)
    except InputError:
        if not allow_none:
            raise
        written = []
    captions = {path.stem: path.read_text(encoding="utf-8").strip() for path in written if path.suffix == ".txt"}
    index = pd.DataFrame({"figure": list(captions), "caption": list(captions.values())})
    files.write_text(paths.scale_dir(scale) / "figures" / INDEX, index.to_csv(index=False, lineterminator="\n"))
    for path in written:
        if path.suffix in (".png", ".csv"):
            print(paths.shown(path))
    return 0
