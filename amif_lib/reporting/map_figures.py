"""Pictures of where a model looks: Figs. 4 and 5 of the paper for a few examples, and the scores of all maps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.experiments import stored_maps
from amif_lib.experiments.rows import tables_of
from amif_lib.experiments.stored_maps import Maps
from amif_lib.reporting import map_scores
from amif_lib.reporting.figures import BLUE, GREY, DrawnFigure, estimates, scale_note
from amif_lib.reporting.table_rows import STAGES, dataset_name, planned_rows

RULE = "Examples by a rule and not by looking: in file order, the first {n} {what}. "
WITH_REGIONS = "whose text names a finding that the image shows, each with another finding. White: the known region"
WITHOUT_REGIONS = (
    "test questions that hold a word of a training answer, each with another word and image; what the word names has "
    "no known region"
)
FLAT = (
    "The word stands behind the arrow. Each map is scaled from its lowest to its highest cell; the number below is its "
    "highest over its mean cell. "
)
NAMES = {"transport_plan": "transport plan", "attention": "attention", "gate": "gate"}
SCORED = {"model": ("o", BLUE, "the row's model, simultaneous 95% interval")}


class Column(NamedTuple):
    """One kind of map of one run, in a gallery."""

    title: str
    source: str  # table and row
    kind: str
    maps: Maps


def local_alignment(scale: str) -> DrawnFigure:
    """Fig. 4: transport plan of a word, without and with hard-negative mining (Table 2, rows 4 and 8)."""
    wanted = {"without mining": ("table2", "4"), "with mining": ("table2", "8")}
    columns = _columns(scale, "stage2", "transport_plan", wanted)
    name = columns[0].maps.data_set
    texts = f"reports of {name}" if columns[0].maps.coverage.any() else f"test questions of {dataset_name(name)}"
    caption = (
        "Fig. 4 of the paper: the share of a word's transported mass that each patch receives after "
        f"stage 2, {' and '.join(column.title for column in columns)}, in {texts} on which no model was trained. "
    )
    return _gallery(columns, caption, scale)


def gated_attention(scale: str) -> DrawnFigure:
    """Fig. 5: attention of a word to the patches, without and with the gate (Table 4, rows 5 and 6)."""
    wanted = {"without gate": ("table4", "5"), "with gate": ("table4", "6")}
    columns = _columns(scale, "finetune", "attention", wanted)
    caption = (
        "Fig. 5 of the paper: attention of a word to the patches in the last co-attention layer after "
        f"fine-tuning, {' and '.join(column.title for column in columns)}, and the gate's mean over channels. "
        f"Test questions of {dataset_name(columns[0].maps.data_set)}. "
    )
    return _gallery([*columns, columns[-1]._replace(title="mean over channels", kind="gate")], caption, scale)


def _columns(scale: str, stage: str, kind: str, wanted: dict[str, tuple[str, str]]) -> list[Column]:
    """A column per title, table and row; at a scale without that table, only the last, of Table 1's full model."""
    if next(iter(wanted.values()))[0] not in tables_of(scale):
        full = next(row.row for row in planned_rows("table1", scale) if not row.extra)
        wanted = {list(wanted)[-1]: ("table1", full)}
    columns = []
    for title, (table, row) in wanted.items():
        runs = [run for entry in planned_rows(table, scale) if entry.row == row for run in entry.runs]
        found = map_scores.with_maps(runs, stage)
        if not found:
            raise InputError(f"{table} row {row}: no {stage} run holds maps (of real data, where images may be shown)")
        maps = stored_maps.read(paths.run_dir(found[0]) / stored_maps.MAPS)
        columns.append(Column(title, f"{table} row {row}", kind, maps))
    return columns


def _gallery(columns: Sequence[Column], caption: str, scale: str) -> DrawnFigure:
    """One row per example: the image with its region (if known), then the map of each column over the image."""
    first = columns[0].maps
    located, ids = first.coverage.any(), first.ids[first.examples].tolist()
    if any(column.maps.ids[column.maps.examples].tolist() != ids for column in columns):
        raise InputError("the rows' maps are of different examples; delete them and run the notebooks again")
    if not manifests.may_show(first.data_set, "images"):
        raise InputError(manifests.why_not(first.data_set, "images"))
    size = (1.75 * (1 + len(columns)) + 1.9, 1.75 * len(ids) + 0.4)
    figure, axes = plt.subplots(len(ids), 1 + len(columns), figsize=size, squeeze=False, layout="compressed")
    for axis, column in zip(axes[0, 1:], columns, strict=True):
        title = f"{NAMES[column.kind]}, {column.title}\n({column.source})"
        axis.set_title(title, fontsize="x-small", fontweight="normal", loc="center")
    plotted = []
    for place, (example, line) in enumerate(zip(first.examples, axes, strict=True)):
        text = textwrap.fill(" ".join(first.texts[example].split()), 24)
        line[0].set_ylabel(
            f"{text}\n→ {first.words[example]}", rotation=0, ha="right", va="center", fontsize="small", labelpad=8
        )
        for axis in line:
            axis.imshow(first.pictures[place], cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if located:
                side = (np.arange(len(first.outlines[place])) + 0.5) / len(first.outlines[place])
                axis.contour(side, side, first.outlines[place], levels=[0.5], colors="white", linewidths=1.1)
        for axis, column in zip(line[1:], columns, strict=True):
            values, covered = column.maps.values[column.kind][column.maps.examples[place]], first.coverage[example]
            axis.imshow(values, cmap="viridis", alpha=0.55, extent=(0, 1, 1, 0), interpolation="nearest")
            axis.set_xlabel(f"max / mean {values.max() / values.mean():.2f}", fontsize="x-small", labelpad=2)
            about = (ids[place], first.words[example], column.source, column.kind)
            plotted += [(*about, *cell, values[cell], covered[cell]) for cell in np.ndindex(values.shape)]
    names = ["id", "word", "run", "map", "cell_row", "cell_column", "value", "region_coverage"]
    rule = RULE.format(n=len(ids), what=WITH_REGIONS if located else WITHOUT_REGIONS)
    return figure, pd.DataFrame(plotted, columns=names), caption + rule + FLAT + scale_note(scale)


def scores(scale: str) -> DrawnFigure:
    """The scores of `map_scores.table`: a panel per stage and kind of map, a line per row."""
    found = map_scores.table(scale)
    points = 100 * found[["lead", "low", "high"]].set_axis(["value", "ci_low", "ci_high"], axis=1)
    drawn = points.assign(line=found["stage"].map(STAGES), column=found["map"].map(NAMES), kind="model")
    drawn["row"] = [f"{line.table} #{line.row} {textwrap.shorten(line.label, 36)}" for line in found.itertuples()]
    order = [*STAGES.values(), *NAMES.values()]
    drawn = drawn.sort_values(["line", "column"], key=lambda names: names.map(order.index), kind="stable")
    figure = estimates(drawn, SCORED, xlabel="lead of the own region, points")
    for axis in figure.axes:
        axis.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    caption = (
        "Do the maps point at the region of the finding that the word names? Share of a map inside the region, minus "
        "the share of the same map inside the regions of all other images, in percentage points: 0 for a map that is "
        f"flat or always looks at the same place. {found['n'].min()} to {found['n'].max()} words, of reports held out "
        "(stage 2) or of test questions (fine-tuned). Intervals from resampling images, for these trained models; "
        f"they hold for all {len(found)} scores together (Bonferroni). Rows that share their runs are drawn once. "
    )
    return figure, found, caption + scale_note(scale)
