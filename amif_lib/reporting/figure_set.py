"""Every figure of a scale that its stored runs allow: `make figures`. No torch, no data, no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored
from amif_lib.reporting import figures, map_figures, tables
from amif_lib.reporting.figures import BLUE, GREY, DrawnFigure, scale_note
from amif_lib.reporting.table_rows import dataset_name, planned_rows

INDEX = "figures.csv"  # which figures there are, with their captions; written last


def draw_all(scale: str) -> list[Path]:
    """Draw the figures whose runs are stored to `results/<scale>/figures/`, each as PDF, SVG, PNG, CSV and caption.

    For a figure that is left out, a line says why, and an older copy is removed, as it may be out of date. Returns the
    paths of the files.
    """
    figures.use_style()
    drawings: dict[str, Callable[[], DrawnFigure]] = {
        "fig4_local_alignment": lambda: map_figures.local_alignment(scale),
        "fig5_gated_attention": lambda: map_figures.gated_attention(scale),
        "fig6_lambda": lambda: lambda_curve(tables.collect("lambda_sweep", scale).cells),
        "map_scores": lambda: map_figures.scores(scale),
        "training_curves": lambda: training_curves(scale),
    }
    folder, written, captions = paths.scale_dir(scale) / "figures", [], {}
    for name, draw in drawings.items():
        for old in folder.glob(f"{name}.*"):
            old.unlink()
        try:
            figure, data, captions[name] = draw()
        except InputError as error:
            print(f"left out: {name}: {error}")
            continue
        written += figures.save(figure, folder / name, data, captions[name])
        plt.close(figure)
    index = pd.DataFrame(captions.items(), columns=["figure", "caption"])
    files.write_text(folder / INDEX, index.to_csv(index=False, lineterminator="\n"))
    return written


def lambda_curve(cells: pd.DataFrame) -> DrawnFigure:
    """Fig. 6: overall accuracy against lambda, a panel per question set, from the cells of the table `lambda_sweep`.

    The paper does not print its values, so none are drawn. Raises InputError for fewer than two values of lambda.
    """
    part = cells[(cells["split"] == "overall") & (cells["protocol"] == "paper")]
    part = part.assign(**{"lambda": pd.to_numeric(part["row"], errors="coerce")}).dropna(subset="lambda")  # no baseline
    if part["lambda"].nunique() < 2:
        raise InputError("lambda_sweep: the plan has one value of lambda; a curve needs two or more")
    sets = list(part.sort_values("lambda", kind="stable").groupby("dataset", sort=False))
    figure, axes = plt.subplots(1, len(sets), figsize=(2.4 * len(sets) + 1.4, 2.7), squeeze=False)
    for axis, (name, own) in zip(axes[0], sets, strict=True):
        axis.vlines(own["lambda"], own["ci_low"], own["ci_high"], color=BLUE, linewidth=1.4)
        axis.plot(own["lambda"], own["ours"], marker="o", markersize=5, color=BLUE)
        axis.axvline(0.01, color=GREY, linestyle=":", linewidth=1)
        axis.set_xscale("symlog", linthresh=0.001, linscale=0.5)
        axis.set_xticks([0, 0.001, 0.01, 0.1, 1], ["0", ".001", ".01", ".1", "1"], fontsize="x-small")
        axis.minorticks_off()
        axis.set(xlabel="λ", xlim=(-0.0004, 1.6 * own["lambda"].max()))
        axis.set_title(dataset_name(name).replace(" (", "\n("), fontsize="small")
    axes[0, 0].set_ylabel("accuracy, %")
    columns = ["dataset", "lambda", "ours", "ours_sd", "ci_low", "ci_high", "n_seeds", "n_questions", "run_ids"]
    caption = (
        "Fig. 6 of the paper: overall accuracy (protocol paper) against the weight λ of the positive pair, "
        f"{figures.INTERVALS} Dotted: the paper's choice, 0.01. The paper prints no numbers for this "
        f"figure. Each panel has an axis of its own. {scale_note(part['scale'].iloc[0])}"
    )
    return figure, part[columns], caption


def training_curves(scale: str) -> DrawnFigure:
    """The full model's losses: both pre-training stages and the fine-tuning on each question set."""
    full = [run for row in planned_rows("table1", scale) if not row.extra for run in row.runs]
    ids = dict.fromkeys(run.run_id for each in full for run in each.trainings())
    runs = [stored.load_run(run_id) for run_id in ids if (paths.run_dir(run_id) / "metrics.jsonl").is_file()]
    caption = "Total loss of the full model, running mean over 1/40 of the steps. " + scale_note(scale)
    return *figures.training_curves(runs), caption
