"""Figures from stored results: one style, vector and raster output, the plotted numbers beside the picture.

No figure needs torch. What a figure shows is written as CSV next to it, so that it can be drawn again by other means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.reporting.layout import dataset_name
from amif_lib.reporting.table_rows import SCALE_NOTES, is_baseline, is_synthetic, real_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from amif_lib.experiments.stored import Run

Drawn = tuple["Figure", pd.DataFrame, str]  # a figure, the numbers in it, its caption

OURS, BASELINE, PAPER = "#0173b2", "#767676", "#d55e00"
MARKERS = {"ours": "o", "baseline": "s", "paper": "D"}
COLOURS = {"ours": OURS, "baseline": BASELINE, "paper": PAPER}
# Equal input must give equal bytes, so no date is written.
METADATA = {"pdf": {"CreationDate": None, "ModDate": None}, "svg": {"Date": None}, "png": {"Software": None}}


def use_style() -> None:
    """Set the look of all figures: seaborn's ticks with the kit's style sheet on top."""
    sns.set_theme(style="ticks", palette="colorblind")
    plt.style.use(paths.PACKAGE / "reporting" / "amif.mplstyle")


def save(figure: Figure, path: Path | str, data: pd.DataFrame | None = None, caption: str = "") -> list[Path]:
    """Write `path` + `.pdf`, `.svg`, `.png`, the plotted numbers as `.csv`, and the caption as `.txt` where given.

    Returns the paths. Equal figures give equal files.
    """
    path = Path(path)
    written = []
    with mpl.rc_context({"svg.hashsalt": "amif", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.draw_without_rendering()  # laid out once, not anew for every format
        figure.set_layout_engine("none")
        for kind, metadata in METADATA.items():
            written.append(path.with_name(f"{path.name}.{kind}"))
            with files.write_aside(written[-1]) as aside:
                figure.savefig(aside, format=kind, metadata=metadata)
    if data is not None:
        written.append(path.with_name(f"{path.name}.csv"))
        files.write_text(written[-1], data.to_csv(index=False, lineterminator="\n"))
    if caption:
        written.append(path.with_name(f"{path.name}.txt"))
        files.write_text(written[-1], caption + "\n")
    return written


def note(scale: str) -> str:
    """The last sentence of a caption: what the scale is worth."""
    return f"SCALE={scale}: {SCALE_NOTES[scale]}."


def training_data(runs: Sequence[Run]) -> pd.DataFrame:
    """Total loss per step of each run: `stage, run_id, label, step, loss, smoothed` (running mean over 1/40 of it)."""
    if not runs:
        raise InputError("training curves: no run given")
    data = pd.concat([_loss(run) for run in runs], ignore_index=True)
    for told_by in ("dataset", "run_id"):  # the same row on several question sets, or with several seeds
        shared = data.groupby(["stage", "label"])["run_id"].transform("nunique") > 1
        if told_by == "run_id" or data.loc[shared, "dataset"].nunique() > 1:
            data.loc[shared, "label"] += " (" + data.loc[shared, told_by] + ")"
    return data.drop(columns="dataset")


def _loss(run: Run) -> pd.DataFrame:
    history = run.history
    if not {"step", "total"} <= set(history):
        path = paths.shown(run.directory / "metrics.jsonl")
        raise InputError(f"{path}: no step and total in it; start the run again")
    smooth = history["total"].rolling(max(1, len(history) // 40), min_periods=1).mean()
    label = run.spec.label.split(": ", 1)[-1] or f"run {run.run_id}"  # without `table4 row 6:`
    return pd.DataFrame(
        {
            "stage": run.spec.stage,
            "run_id": run.run_id,
            "label": label,
            "dataset": dataset_name(run.spec.data.questions) if run.spec.stage == "finetune" else "",
            "step": history["step"],
            "loss": history["total"],
            "smoothed": smooth,
        }
    )


def training_curves(runs: Sequence[Run]) -> Figure:
    """Total loss against step, one panel per stage, one line per run: pale every step, strong the running mean."""
    data = training_data(runs)
    titles = {
        "stage1": "Stage 1: global alignment",
        "stage2": "Stage 2: local alignment, hard negatives",
        "finetune": "Fine-tuning",
    }
    stages = [stage for stage in titles if stage in set(data["stage"])]
    figure, axes = plt.subplots(1, len(stages), figsize=(4.2 * len(stages), 3.0), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        part = data[data["stage"] == stage]
        for position, (_, line) in enumerate(part.groupby("run_id", sort=False)):
            colour = f"C{position % 8}"
            axis.plot(line["step"], line["loss"], color=colour, alpha=0.18, linewidth=0.8)
            axis.plot(line["step"], line["smoothed"], color=colour, label=line["label"].iloc[0])
        axis.set(title=titles[stage], xlabel="step", ylabel="loss" if axis is axes[0][0] else "")
        axis.set_ylim(bottom=min(0, part["smoothed"].min()))
        if part["run_id"].nunique() > 1:
            axis.legend(loc="upper right", fontsize="x-small")
    return figure


def accuracy_data(
    cells: pd.DataFrame, dataset: str | None = None, protocol: str = "paper", with_paper: bool | None = None
) -> pd.DataFrame:
    """What `accuracy_plot` shows: `split, label, kind (ours|baseline|paper), accuracy, ci_low, ci_high`, in percent."""
    dataset = dataset or str(cells["dataset"].iloc[0])
    part = cells[(cells["dataset"] == dataset) & (cells["protocol"] == protocol)]
    if part.empty:
        raise InputError(
            f"accuracy plot: no cell of {dataset!r} under protocol {protocol!r}; choose from "
            f"{', '.join(sorted(set(cells['dataset'])))}"
        )
    ours = part.assign(kind=["baseline" if is_baseline(row) else "ours" for row in part["row"]], accuracy=part["ours"])
    columns = ["split", "label", "kind", "accuracy", "ci_low", "ci_high"]
    shown = not is_synthetic(dataset) if with_paper is None else with_paper
    printed = part[part["paper"].notna()] if shown else part.iloc[:0]
    paper = printed.assign(kind="paper", accuracy=printed["paper"], ci_low=np.nan, ci_high=np.nan)
    return pd.concat([ours[columns], paper[columns]] if len(paper) else [ours[columns]], ignore_index=True)


def accuracy_plot(
    cells: pd.DataFrame, dataset: str | None = None, protocol: str = "paper", with_paper: bool | None = None
) -> Figure:
    """Accuracy with 95% intervals: our rows, the baselines below them and the paper's number beside each row.

    `cells` is what `tables.table` gives; `dataset` defaults to its first. One panel per split (overall, open, closed).
    The paper's numbers are drawn for real data only, unless `with_paper` says otherwise: one axis with synthetic data
    would suggest a comparison.
    """
    dataset = dataset or str(cells["dataset"].iloc[0])
    data = accuracy_data(cells, dataset, protocol, with_paper)
    part = cells[(cells["dataset"] == dataset) & (cells["protocol"] == protocol)]
    questions = part.groupby("split")["n_questions"].first()
    labels = list(dict.fromkeys(data["label"]))
    splits = [split for split in ("overall", "open", "closed") if split in set(data["split"])]
    figure, axes = plt.subplots(
        1, len(splits), sharey=True, squeeze=False, figsize=(3.4 + 2.4 * len(splits), 0.9 + 0.36 * len(labels))
    )
    gap = data.loc[data["kind"] == "ours", "label"].nunique()  # baselines start below a gap
    height = {label: -(position + (0.6 if position >= gap else 0)) for position, label in enumerate(labels)}
    for axis, split in zip(axes[0], splits, strict=True):
        _draw_points(axis, data[data["split"] == split], height)
        axis.set(title=f"{split} (n = {questions[split]})", xlabel="accuracy, %", xlim=(-2, 102))
        axis.set_xticks(range(0, 101, 25))
        axis.set_yticks([height[label] for label in labels], labels)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
    handles, names = _legend(data, dataset)
    figure.legend(handles, names, loc="outside upper left", ncols=len(names), handletextpad=0.3, columnspacing=1.6)
    return figure


def _draw_points(axis: Axes, data: pd.DataFrame, height: dict[str, float]) -> None:
    for kind, marker in MARKERS.items():
        own = data[data["kind"] == kind]
        y = own["label"].map(height)
        if kind != "paper":
            axis.hlines(y, own["ci_low"], own["ci_high"], color=COLOURS[kind], linewidth=1.6, zorder=2)
        axis.scatter(
            own["accuracy"],
            y,
            marker=marker,
            s=34 if kind != "paper" else 30,
            zorder=3,
            linewidth=1.3,
            facecolor="white" if kind == "paper" else COLOURS[kind],
            edgecolor=COLOURS[kind],
        )
        for value, level in zip(own["accuracy"], y, strict=True):
            axis.annotate(
                f"{value:.1f}",
                (value, level),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                color=COLOURS[kind],
            )
    axis.set_ylim(min(height.values()) - 0.6, 0.8)


def _legend(data: pd.DataFrame, dataset: str) -> tuple[list[object], list[str]]:
    on = f" (on real {dataset_name(real_name(dataset))})" if is_synthetic(dataset) else ""
    names = {"ours": "this kit, 95% interval", "baseline": "baseline, 95% interval", "paper": f"paper{on}"}
    shown = [kind for kind in MARKERS if kind in set(data["kind"])]
    handles = [
        plt.Line2D(
            [],
            [],
            marker=MARKERS[kind],
            color=COLOURS[kind],
            linestyle="-" if kind != "paper" else "",
            markerfacecolor="white" if kind == "paper" else COLOURS[kind],
        )
        for kind in shown
    ]
    return handles, [names[kind] for kind in shown]
