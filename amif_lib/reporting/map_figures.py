"""Pictures of where a model looks: Figs. 4 and 5 of the paper for fixed examples, and the scores of all maps.

What is drawn was stored by `maps.ensure` when the runs were trained; neither torch nor data is needed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import redistribution
from amif_lib.experiments.rows import tables_of
from amif_lib.reporting import map_files, map_scores
from amif_lib.reporting.figures import Drawn, note
from amif_lib.reporting.layout import dataset_name, short_name
from amif_lib.reporting.map_files import Maps
from amif_lib.reporting.map_scores import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HELD = "studies that no student is trained on"
RULE = (
    "Examples by rule, not by looking: in file order, the first {n} whose text names a finding that the image shows, each "
    "with another finding. White: the known region. Each map is scaled from its lowest to its highest cell; the number "
    "below says how far it is from flat (highest over mean cell)."
)
RULE_WITHOUT_REGIONS = (
    "Examples by rule, not by looking: in file order, the first {n} test questions that hold a word of a training answer which "
    "few questions hold, each with another word and image; what the word names has no known region, so that nothing is "
    "scored. Each map is scaled from its lowest to its highest cell; the number below says how far it is from flat (highest "
    "over mean cell)."
)
TITLES = {
    "pointing": "pointing game",
    "iou": "IoU",
    "mass": "mass inside",
}
MARKS = {  # source -> marker, colour, name
    "model": ("o", "#0173b2", "the row's model, 95% interval"),
    "untrained": ("s", "#de8f05", "untrained model"),
    "another region": ("v", "#029e73", "the model's map, regions of other images"),
    "centre": ("+", "#cc78bc", "Gaussian in the middle"),
    "chance": ("|", "#555555", "random map"),
}
MAP_NAMES = {"transport_plan": "transport plan", "attention": "attention", "gate": "gate"}


def underlined(text: str, word: str, width: int = 24) -> str:
    """`text` in lines of at most `width` letters with the first `word` underlined.

    Lines are cut first, since the underline is a combining character (U+0332) after each letter, which every output can show.
    """
    lines = textwrap.fill(" ".join(text.split()), width)
    pattern = r"\s".join(re.escape(part) for part in word.split())
    return re.sub(pattern, lambda found: re.sub(r"(\S)", "\\1\u0332", found[0]), lines, count=1)


def local_alignment(scale: str) -> Drawn:
    """Fig. 4: the transport plan of the underlined word, without and with hard-negative mining (Table 2, rows 4 and 8)."""
    columns = _columns(
        scale, "stage2", [("without mining", "table2", "4"), ("with mining", "table2", "8")], "transport_plan"
    )
    first = columns[0].maps
    texts = (
        f"reports of {first.data_set}, which no student is trained on"
        if first.coverage.any()
        else f"test questions of {dataset_name(first.data_set)}, whose images no pre-training sees"
    )
    compared = "without and with" if len(columns) > 1 else "with"
    caption = (
        "Fig. 4 of the paper: share of the underlined word's transported mass that each patch receives after stage 2, "
        f"{compared} hard-negative mining, on {texts}. "
    )
    return _gallery(columns, caption, scale)


def gated_attention(scale: str) -> Drawn:
    """Fig. 5: attention of the underlined word to the patches, without and with the gate (Table 4, rows 5 and 6)."""
    columns = _columns(
        scale, "finetune", [("attention, no gate", "table4", "5"), ("attention, gate", "table4", "6")], "attention"
    )
    gated = columns[-1]
    columns.append(replace(gated, title=gated.title.replace("attention, gate", "the gate itself"), kind="gate"))
    caption = (
        "Fig. 5 of the paper: attention of the underlined word to the patches in the last co-attention layer after "
        f"fine-tuning {'without and with' if len(columns) > 2 else 'with'} the gate, and the gate's mean over channels, test questions of "
        f"{dataset_name(gated.maps.data_set)}. "
    )
    return _gallery(columns, caption, scale)


@dataclass(frozen=True)
class Column:
    """A column of a gallery: one kind of map of one run."""

    title: str
    maps: Maps
    kind: str
    source: str  # table and row
    file: Path


def _columns(scale: str, stage: str, wanted: Sequence[tuple[str, str, str]], kind: str) -> list[Column]:
    """A column per `(title, table, row)`; at a scale without that table the last one alone, of Table 1's full model."""
    if wanted[0][1] not in tables_of(scale):
        full = next((row.row for row in map_scores.rows_of("table1", scale) if not row.extra), "")
        wanted = [(wanted[-1][0], "table1", full)]
    columns = []
    for title, table, row in wanted:
        path = _file(scale, table, row, stage)
        columns.append(
            Column(f"{title}\n({short_name(table)} row {row})", map_files.read(path), kind, f"{table} row {row}", path)
        )
    return columns


def _file(scale: str, table: str, row: str, stage: str) -> Path:
    """Where the maps lie of a row's first run of a stage that has some: those with regions, else examples."""
    tips = [run for entry in map_scores.rows_of(table, scale) if entry.row == row for run in entry.runs]
    for name in (map_files.MAPS, map_files.EXAMPLE_MAPS):
        if runs := map_scores.with_maps(tips, stage, name):
            return paths.run_dir(next(iter(runs))) / name
    raise InputError(
        f"{short_name(table)} row {row}: no {stage} run holds maps (of real data there are some where images may be shown)"
    )


def _gallery(columns: Sequence[Column], caption: str, scale: str) -> Drawn:
    """One row per example: the image with its region, where one is known, then each column's map over it."""
    first, located = columns[0].maps, bool(columns[0].maps.coverage.any())
    for column in columns:
        maps = column.maps
        if maps.data_set != first.data_set or [maps.ids[i] for i in maps.examples] != [
            first.ids[i] for i in first.examples
        ]:
            own, other = (each.title.splitlines()[0] for each in (column, columns[0]))
            raise InputError(f"{own}: its examples are not those of {other}")
    if not redistribution.may_show(first.data_set, "images"):
        raise InputError(redistribution.why_not(first.data_set, "images"))
    rows = len(first.examples)
    figure, axes = plt.subplots(
        rows,
        1 + len(columns),
        figsize=(1.75 * (1 + len(columns)) + 1.9, 1.75 * rows + 0.4),
        squeeze=False,
        layout="compressed",
    )
    plotted = []
    for line, (place, example) in zip(axes, enumerate(first.examples), strict=True):
        picture, outline = first.pictures[place], first.outlines[place] if located else None
        for axis in line:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        text = underlined(first.texts[example], first.words[example])
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize="small", labelpad=8)
        _outline(line[0], outline)
        for axis, column in zip(line[1:], columns, strict=True):
            values = column.maps.values[column.kind][column.maps.examples[place]]
            axis.imshow(values, cmap="viridis", alpha=0.55, extent=(0, 1, 1, 0), interpolation="nearest")
            _outline(axis, outline)
            axis.set_xlabel(f"max / mean {values.max() / values.mean():.2f}", fontsize="x-small", labelpad=2)
            if place == 0:
                axis.set_title(column.title, fontsize="small", fontweight="normal", loc="center")
            about = (first.ids[example], first.words[example], column.source, column.kind)
            plotted += [
                (*about, i, j, values[i, j], first.coverage[example, i, j] if located else np.nan)
                for i, j in np.ndindex(values.shape)
            ]
    names = ["id", "word", "run", "map", "cell_row", "cell_column", "value", "region_coverage"]
    alone = "" if len({column.source for column in columns}) > 1 else f"SCALE={scale} runs no row to set beside it. "
    caption += alone
    rule = (RULE if located else RULE_WITHOUT_REGIONS).format(n=rows)
    return figure, pd.DataFrame(plotted, columns=names), f"{caption}{rule} {note(scale)}"


def _outline(axis: Axes, region: np.ndarray | None) -> None:
    if region is None:
        return
    side = (np.arange(region.shape[0]) + 0.5) / region.shape[0]
    axis.contour(side, side, region.astype(float), levels=[0.5], colors="white", linewidths=1.1)


def scores_figure(scores: pd.DataFrame, stage: str, scale: str, tables: Sequence[str] = ("table2", "table4")) -> Drawn:
    """Scores of `map_scores.table` for the rows of some tables: a panel per measure and map, a line per row.

    Rows that share their runs are drawn once. Where a row has several question sets the pooled scores are drawn.
    """
    part = scores[(scores["stage"] == stage) & scores["table"].isin(tables)]
    if part.empty:
        raise InputError(f"no {stage} run of {', '.join(short_name(name) for name in tables)} holds maps")
    part = part[(part["dataset"] == "all") | ~part["row"].isin(part.loc[part["dataset"] == "all", "row"])]
    rows: dict[str, dict[str, list[str]]] = {}
    for line in part.drop_duplicates(["table", "row"]).itertuples():
        rows.setdefault(line.run_ids, {}).setdefault(short_name(line.table), []).append(f"#{line.row}")
    labels = part.drop_duplicates("run_ids").set_index("run_ids")["label"]
    lines = {
        ids: ", ".join(f"{name} {' '.join(own)}" for name, own in by_table.items())
        + f"\n{textwrap.shorten(labels[ids], 40)}"
        for ids, by_table in rows.items()
    }
    part = part.drop_duplicates(["run_ids", "map", "measure", "source"]).assign(
        name=lambda frame: frame["run_ids"].map(lines)
    )
    kinds = [name for name in MAP_NAMES if name in set(part["map"])]
    height = {ids: -place for place, ids in enumerate(lines)}
    figure, axes = plt.subplots(
        len(kinds),
        len(MEASURES),
        sharey=True,
        sharex="col",
        squeeze=False,
        figsize=(9.6, 0.9 + len(kinds) * (0.5 + 0.36 * len(lines))),
    )
    for line, kind in zip(axes, kinds, strict=True):
        for axis, measure in zip(line, MEASURES, strict=True):
            panel = part[(part["map"] == kind) & (part["measure"] == measure)]
            for source, (marker, colour, _) in MARKS.items():
                own = panel[panel["source"] == source]
                y = np.array([height[ids] for ids in own["run_ids"]])
                if source == "model":
                    axis.hlines(y, own["ci_low"], own["ci_high"], color=colour, linewidth=1.6, zorder=3)
                axis.scatter(own["value"], y, marker=marker, color=colour, s=30, zorder=4 if source == "model" else 2)
            axis.set(ylim=(min(height.values()) - 0.6, 0.6))
            axis.set_yticks(list(height.values()), list(lines.values()), fontsize="x-small")
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
            axis.spines["left"].set_visible(False)
            axis.set_title(f"{MAP_NAMES[kind]}: {TITLES[measure]}", fontsize="small")
    for axis in axes[0]:
        axis.set_xlim(left=0)  # of the whole column
    shown = [source for source in MARKS if source in set(part["source"])]
    handles = [plt.Line2D([], [], marker=MARKS[s][0], color=MARKS[s][1], linestyle="") for s in shown]
    figure.legend(handles, [MARKS[s][2] for s in shown], loc="outside lower center", ncols=3)
    sets = sorted(set(part["dataset"]) - {"all"})
    on = dataset_name(sets[0]) if len(sets) == 1 else "test questions of all sets"
    what = f"reports of {HELD}" if stage == "stage2" else on
    n = f"n = {part['n'].min()}" if part["n"].nunique() == 1 else f"n = {part['n'].min()} to {part['n'].max()}"
    caption = (
        f"Do the maps point at the known region? {what}, {n}; a cell belongs to the region where the region covers half "
        "of it (else the most covered cell). Intervals from resampling images, no spread between trainings. "
        + ("Rows whose maps are among the committed ones. " if paths.from_reference() else "")
        + note(scale)
    )
    return figure, part.drop(columns="name"), caption


def _files(scores: pd.DataFrame, scale: str) -> list[Path]:
    """Every stored file that scores were made from: the runs' maps and those of untrained models."""
    found = [paths.run_dir(run_id) / map_files.MAPS for ids in scores["run_ids"].unique() for run_id in ids.split()]
    asked = scores[["stage", "dataset"]].drop_duplicates().itertuples(index=False)
    fresh = [map_scores.untrained_path(scale, stage, data_set) for stage, data_set in asked]
    return [path for path in (*found, *fresh) if path.is_file()]
