"""Pictures of pre-training: what the soft labels ask for and what the student learnt, and which negatives were mined."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import redistribution
from amif_lib.reporting import map_files
from amif_lib.reporting.figures import Drawn, note
from amif_lib.reporting.map_files import HARD_NEGATIVES, SOFT_LABELS
from amif_lib.reporting.map_scores import rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from amif_lib.experiments.rows import RunSpec

PANELS = {"teacher": "teacher's Q", "labels": "soft labels H", "student": "student's P"}
PAIRS = {"i2t": "image to text", "t2t": "text to text"}
KINDS = {"image_text": "image-text", "image_image": "image-image", "text_text": "text-text"}
GALLERY = 6


def soft_label_maps(scale: str) -> Drawn:
    """Heat maps of the teacher's Q, the labels H and the student's P on one batch; beside them a one-hot student's P."""
    used = [paths.run_dir(headline(scale, "stage1").run_id) / SOFT_LABELS]
    full = map_files.read_arrays(used[0])
    pictures = [
        (pair, title, full[f"{pair}_{key}"])
        for pair in PAIRS
        for key, title in PANELS.items()
        if f"{pair}_{key}" in full
    ]
    one_hot = _one_hot(scale)
    if one_hot is not None and (other := map_files.read_arrays(one_hot))["ids"].tolist() == full["ids"].tolist():
        used.append(one_hot)
        title = "P of a student with one-hot labels"
        pictures += [(pair, title, other[f"{pair}_student"]) for pair in PAIRS]
    findings = [text or "no finding" for text in full["findings"].tolist()]
    order = np.array(sorted(range(len(findings)), key=lambda i: (findings[i] == "no finding", findings[i], i)))
    across = max(sum(pair == p for p, *_ in pictures) for pair in PAIRS)
    figure, axes = plt.subplots(2, across, figsize=(2.5 * across + 1.2, 5.6), squeeze=False)
    plotted = []
    for line, pair in zip(axes, PAIRS, strict=True):
        own = [(title, values) for p, title, values in pictures if p == pair]
        for axis in line[len(own) :]:
            axis.set_axis_off()
        for axis, (title, values) in zip(line, own, strict=False):
            shown = values.astype(float)[np.ix_(order, order)]
            # the square root of the probability: what lies off the diagonal would be black else
            image = axis.imshow(np.sqrt(shown), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(title, fontsize="small")
            axis.set(xticks=[], yticks=[])
            if axis is line[0]:
                axis.set_ylabel(PAIRS[pair])
                _groups(axis, [findings[i] for i in order])
            plotted += [
                (pair, title, full["ids"][order[i]], full["ids"][order[j]], shown[i, j])
                for i, j in np.ndindex(shown.shape)
            ]
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=np.sqrt([0, 0.05, 0.2, 0.5, 1]))
    bar.ax.set_yticklabels(["0", ".05", ".2", ".5", "1"])
    bar.set_label("probability (colour: square root)", fontsize="small")
    caption = (
        f"Soft labels of stage 1 on the first {len(order)} samples of its first batch: whom each sample (row) is asked to "
        "resemble. Samples with equal findings lie side by side. Probabilities are over these samples. " + note(scale)
    )
    return figure, pd.DataFrame(plotted, columns=["pair", "panel", "row_id", "column_id", "probability"]), caption


def _groups(axis: Axes, findings: list[str]) -> None:
    starts = [i for i, name in enumerate(findings) if i == 0 or name != findings[i - 1]]
    ends = [*starts[1:], len(findings)]
    large = [(a, b) for a, b in zip(starts, ends, strict=True) if b - a > 1 and any(findings)]
    axis.set_yticks([(a + b - 1) / 2 for a, b in large], [textwrap.shorten(findings[a], 22) for a, _ in large])
    axis.tick_params(axis="y", length=0, labelsize=6)


def hard_negative_gallery(scale: str) -> Drawn:
    """What was mined in the last step of stage 2: six image-text pairs, and how often negatives show the same findings."""
    spec = headline(scale, "stage2")
    path = paths.run_dir(spec.run_id) / HARD_NEGATIVES
    if not path.is_file():
        raise InputError(f"{paths.shown(path)}: missing; notebook 04 makes it once the run is trained")
    table = pd.read_csv(path, keep_default_na=False)
    shows = {"text", "negative_text"} <= set(table) and not redistribution.withheld(spec.data.pretrain, "texts")
    if not shows:
        table = table.drop(columns=["text", "negative_text"], errors="ignore")
    known = "same_findings" in table
    if not shows and not known:
        raise InputError("texts of the pre-training sets may not be shown and their findings are not known")
    figure, axes = plt.subplots(
        2, 1, figsize=(10.4, 6.6 if shows else 2.6), height_ratios=(3.4, 1) if shows else (0.01, 1)
    )
    axes[0].set_axis_off()
    part = table[table["pair"] == "image_text"].head(GALLERY)
    if shows and len(part):
        cells = [
            [
                textwrap.fill(textwrap.shorten(line.text, 190), 68),
                textwrap.fill(textwrap.shorten(line.negative_text, 190), 68),
                f"{100 * line.probability:.1f}%\n({line.probability / line.uniform:.1f} x uniform)",
                {"True": "the same", "False": "others"}.get(str(getattr(line, "same_findings", "")), ""),
            ]
            for line in part.itertuples()
        ]
        drawn = axes[0].table(
            cells,
            colLabels=["report of the image", "mined text", "drawn with", "findings"],
            colWidths=[0.4, 0.4, 0.12, 0.08],
            cellLoc="left",
            loc="center",
            bbox=(0, 0, 1, 1),
        )
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7)
        for (row, _), cell in drawn.get_celld().items():
            cell.set(edgecolor="0.8", linewidth=0.6)
            cell.PAD = 0.015
            if row == 0:
                cell.set_height(0.4 * cell.get_height())
                cell.set_text_props(fontweight="bold")
    if known:
        _same_findings(axes[1], table)
    else:
        axes[1].set_axis_off()
    caption = (
        f"Hard negatives drawn in the last step of stage 2 (batch of {table['id'].nunique()}): the first {len(part)} of the "
        "batch, with the probability that each had of being drawn. Below: how likely a negative is to show the very same "
        "findings as the sample, which makes it a negative in name only. " + note(scale)
    )
    return figure, table, caption


def _same_findings(axis: Axes, table: pd.DataFrame) -> None:
    kinds = [kind for kind in KINDS if kind in set(table["pair"])]
    y = -np.arange(len(kinds), dtype=float)
    series = (
        ("drawn in this step", "same_findings", "#0173b2"),
        ("expected, by the labels", "p_same", "#56b4e9"),
        ("expected, if all were equally likely", "uniform_same", "#949494"),
    )
    for place, (name, column, colour) in enumerate(series):
        own = (
            table[column].map({"True": 1.0, "False": 0.0, True: 1.0, False: 0.0})
            if column == "same_findings"
            else table[column]
        )
        shares = [100 * own[table["pair"] == kind].astype(float).mean() for kind in kinds]
        bars = axis.barh(y + 0.26 - 0.26 * place, shares, height=0.24, color=colour, label=name)
        axis.bar_label(bars, [f"{share:.0f}" for share in shares], size=7, padding=2)
    axis.set_yticks(y, [KINDS[kind] for kind in kinds])
    axis.set(xlabel="negatives with the same findings, %")
    axis.margins(x=0.08)
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def headline(scale: str, stage: str) -> RunSpec:
    """The full model's run of a pre-training stage, of the first start and data set."""
    for row in rows_of("table1", scale):
        if not row.extra:
            for run in row.runs[0].lineage():
                if run.stage == stage:
                    return run
    raise InputError(f"SCALE={scale}: the full model has no {stage}")


def _one_hot(scale: str) -> Path | None:
    """The same arrays of Table 2 row 3, whose labels are one-hot; None where it was not run."""
    for row in (row for row in rows_of("table2", scale) if row.row == "3"):
        run = next(run for run in row.runs[0].lineage() if run.stage == "stage1")
        if (path := paths.run_dir(run.run_id) / SOFT_LABELS).is_file():
            return path
    return None
