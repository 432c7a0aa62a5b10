"""Pictures of where a model looks: Figs. 4 and 5 of the paper for a few examples, and the scores of all maps."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from amif_lib.reporting.figures import INTERVALS, Drawn, estimates, scale_note
from amif_lib.reporting.table_rows import dataset_name

RULE = "Examples by a rule and not by looking: in file order, the first {n} {what}. "
WITH_REGIONS = "whose text names a finding that the image shows, each with another finding. White: the known region"
WITHOUT_REGIONS = (
    "test questions that hold a word of a training answer which few questions hold, each with another word and image; "
    "what the word names has no known region, so that nothing is scored"
)
FLAT = "Each map is scaled from its lowest to its highest cell; the number below is its highest over its mean cell. "
SOURCES = {  # marker, colour, name
    "model": ("o", "#0173b2", "the row's model, 95% interval"),
    "untrained": ("s", "#de8f05", "untrained model"),
    "another region": ("v", "#029e73", "the model's map, regions of other images"),
    "centre": ("P", "#cc78bc", "Gaussian in the middle"),
    "chance": ("X", "#555555", "random map"),
}
NAMES = {"transport_plan": "transport plan", "attention": "attention", "gate": "gate"}
MEASURE_NAMES = {"pointing": "pointing game", "mass": "mass inside"}


def underlined(text: str, word: str, width: int = 24) -> str:
    """`text` in lines of at most `width` letters, the first `word` underlined by combining characters (U+0332)."""
    lines = textwrap.fill(" ".join(text.split()), width)  # cut first: the underline doubles the letters
    pattern = r"\s".join(re.escape(part) for part in word.split())
    return re.sub(pattern, lambda found: re.sub(r"(\S)", "\\1\u0332", found[0]), lines, count=1)


@dataclass(frozen=True)
class Column:
    """One kind of map of one run, in a gallery."""

    title: str
    source: str  # table and row
    kind: str
    maps: Maps


def local_alignment(scale: str) -> Drawn:
    """Fig. 4: transport plan of the underlined word, without and with hard-negative mining (Table 2, rows 4 and 8)."""
    wanted = {"without mining": ("table2", "4"), "with mining": ("table2", "8")}
    columns = _columns(scale, "stage2", "transport_plan", wanted)
    texts = f"reports of {columns[0].maps.data_set}, on which no student is trained"
    if not columns[0].maps.coverage.any():
        texts = f"test questions of {dataset_name(columns[0].maps.data_set)}, whose images no pre-training sees"
    caption = (
        "Fig. 4 of the paper: the share of the underlined word's transported mass that each patch receives after "
        f"stage 2, {'without and ' if len(columns) > 1 else ''}with hard-negative mining, {texts}. "
    )
    return _gallery(columns, caption, scale)


def gated_attention(scale: str) -> Drawn:
    """Fig. 5: attention of the underlined word to the patches, without and with the gate (Table 4, rows 5 and 6)."""
    columns = _columns(scale, "finetune", "attention", {"no gate": ("table4", "5"), "gate": ("table4", "6")})
    caption = (
        "Fig. 5 of the paper: attention of the underlined word to the patches in the last co-attention layer after "
        f"fine-tuning, {'without and ' if len(columns) > 1 else ''}with the gate, and the gate's mean over channels. "
        f"Test questions of {dataset_name(columns[0].maps.data_set)}. "
    )
    return _gallery([*columns, replace(columns[-1], title="mean over channels", kind="gate")], caption, scale)


def _columns(scale: str, stage: str, kind: str, wanted: dict[str, tuple[str, str]]) -> list[Column]:
    """A column per title, table and row; at a scale without that table the last one alone, of Table 1's full model."""
    if next(iter(wanted.values()))[0] not in tables_of(scale):
        full = next(row.row for row in map_scores.rows_of("table1", scale) if not row.extra)
        wanted = {list(wanted)[-1]: ("table1", full)}
    columns = []
    for title, (table, row) in wanted.items():
        tips = [run for entry in map_scores.rows_of(table, scale) if entry.row == row for run in entry.runs]
        files = (stored_maps.MAPS, stored_maps.EXAMPLE_MAPS)  # with regions, or examples without
        found = [paths.run_dir(run) / file for file in files for run in map_scores.with_maps(tips, stage, file)]
        if not found:
            raise InputError(f"{table} row {row}: no {stage} run holds maps (of real data, where images may be shown)")
        columns.append(Column(title, f"{table} row {row}", kind, stored_maps.read(found[0])))
    return columns


def _gallery(columns: Sequence[Column], caption: str, scale: str) -> Drawn:
    """One row per example: the image with its region, where one is known, then each column's map over it."""
    first = columns[0].maps
    located, ids = bool(first.coverage.any()), [first.ids[i] for i in first.examples]
    if any([column.maps.ids[i] for i in column.maps.examples] != ids for column in columns):
        raise InputError("the rows' maps are of different examples; delete them and run the notebooks again")
    if not manifests.may_show(first.data_set, "images"):
        raise InputError(manifests.why_not(first.data_set, "images"))
    size = (1.75 * (1 + len(columns)) + 1.9, 1.75 * len(ids) + 0.4)
    figure, axes = plt.subplots(len(ids), 1 + len(columns), figsize=size, squeeze=False, layout="compressed")
    plotted = []
    for place, (example, line) in enumerate(zip(first.examples, axes, strict=True)):
        text = underlined(first.texts[example], first.words[example])
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize="small", labelpad=8)
        for axis, column in zip(line, (None, *columns), strict=True):
            axis.imshow(first.pictures[place], cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if located:
                side = (np.arange(len(first.outlines[place])) + 0.5) / len(first.outlines[place])
                axis.contour(side, side, first.outlines[place], levels=[0.5], colors="white", linewidths=1.1)
            if column is None:
                continue
            values = column.maps.values[column.kind][column.maps.examples[place]]
            axis.imshow(values, cmap="viridis", alpha=0.55, extent=(0, 1, 1, 0), interpolation="nearest")
            axis.set_xlabel(f"max / mean {values.max() / values.mean():.2f}", fontsize="x-small", labelpad=2)
            if place == 0:
                title = f"{NAMES[column.kind]}, {column.title}\n({column.source})"
                axis.set_title(title, fontsize="x-small", fontweight="normal", loc="center")
            covered = first.coverage[example] if located else np.full(values.shape, np.nan)
            about = (ids[place], first.words[example], column.source, column.kind)
            plotted += [(*about, *cell, values[cell], covered[cell]) for cell in np.ndindex(values.shape)]
    names = ["id", "word", "run", "map", "cell_row", "cell_column", "value", "region_coverage"]
    alone = "" if len({column.source for column in columns}) > 1 else f"SCALE={scale} runs no row to set beside it. "
    rule = RULE.format(n=len(ids), what=WITH_REGIONS if located else WITHOUT_REGIONS)
    return figure, pd.DataFrame(plotted, columns=names), caption + alone + rule + FLAT + scale_note(scale)


def scores(found: pd.DataFrame, stage: str, scale: str, tables: Sequence[str] = ("table2", "table4")) -> Drawn:
    """What `map_scores.table` found for the rows of some tables: a panel per kind of map and measure, a line per row.

    Rows that share their runs are drawn once; of a row with several question sets the pooled scores are drawn.
    """
    part = found[(found["stage"] == stage) & found["table"].isin(tables)]
    if part.empty:
        raise InputError(f"no {stage} run of {', '.join(tables)} holds maps")
    part = part[(part["dataset"] == "all") | ~part["row"].isin(part.loc[part["dataset"] == "all", "row"])]
    part = part.drop_duplicates(["run_ids", "map", "measure", "source"])
    part = part.sort_values("map", key=lambda column: column.map(list(NAMES).index), kind="stable")
    drawn = part.assign(line=part["map"].map(NAMES), column=part["measure"].map(MEASURE_NAMES), kind=part["source"])
    drawn["row"] = [f"{line.table} #{line.row} {textwrap.shorten(line.label, 36)}" for line in part.itertuples()]
    drawn.loc[drawn["kind"] != "model", ["ci_low", "ci_high"]] = np.nan  # one interval a line can be read
    figure = estimates(drawn, SOURCES)
    for axis in figure.axes[: len(MEASURE_NAMES)]:
        axis.set_xlim(left=0)  # of the whole column
    what = "Reports on which no student is trained" if stage == "stage2" else "Test questions"
    caption = (
        f"Do the maps point at the known region? {what}, n = {part['n'].min()} to {part['n'].max()}; a cell belongs to "
        f"the region where the region covers half of it. {INTERVALS} {scale_note(scale)}"
    )
    return figure, part, caption
