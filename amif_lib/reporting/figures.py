"""What all figures share: style and saving, a plot of estimates with intervals, and training curves. No torch."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from amif_lib.core import files
from amif_lib.core.errors import InputError
from amif_lib.experiments.stored import Run
from amif_lib.reporting.table_rows import SCALE_NOTES, STAGES, dataset_name

DrawnFigure = tuple[Figure, pd.DataFrame, str]  # a figure, the numbers in it, its caption

DPI = 200
INTERVALS = "with 95% intervals from resampling images or cases; the spread between trainings is not in them."
BLUE, GREY, ORANGE = "#0173b2", "#767676", "#d55e00"


def use_style() -> None:
    """Set the look of all figures: seaborn's ticks with the kit's style sheet on top."""
    sns.set_theme(style="ticks", palette="colorblind")
    plt.style.use(Path(__file__).with_name("amif.mplstyle"))


def save(figure: Figure, path: Path | str, data: pd.DataFrame | None = None, caption: str = "") -> list[Path]:
    """Write `path` + `.pdf`, `.svg`, `.png`, the plotted numbers as `.csv` and the caption as `.txt` where given.

    Returns the paths. No date is written, so that equal figures give equal files.
    """
    written = []
    undated = {"pdf": {"CreationDate": None, "ModDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    for kind, metadata in undated.items():
        drawn = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "amif", "svg.fonttype": "none", "pdf.fonttype": 42}):
            figure.savefig(drawn, format=kind, metadata=metadata, dpi=DPI)
        written.append(Path(f"{path}.{kind}"))
        with files.atomic_write(written[-1]) as partial:
            partial.write_bytes(small_png(drawn.getvalue()) if kind == "png" else drawn.getvalue())
    texts = {"csv": "" if data is None else data.to_csv(index=False, lineterminator="\n", float_format="%.6g")}
    for kind, text in (texts | {"txt": caption and caption + "\n"}).items():
        if text:
            written.append(Path(f"{path}.{kind}"))
            files.write_text(written[-1], text)
    return written


def embedded(png: Path, page: Path) -> dict[str, Any]:
    """A saved figure for a page in the folder `page`: data, size (110 CSS pixels per inch), caption and links."""
    with Image.open(png) as image:
        width, height = (round(110 * side / DPI) for side in image.size)
    links = {"plotted numbers": png.with_suffix(".csv"), "vector graphics": png.with_suffix(".svg")}
    links = {title: os.path.relpath(file, page) for title, file in links.items() if file.is_file()}
    text = png.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8").strip() if text.is_file() else png.stem.replace("_", " ")
    data = base64.b64encode(png.read_bytes()).decode()
    return {"data": data, "width": width, "height": height, "caption": caption, "links": links}


def small_png(png: bytes, colours: int = 256, size: float = 1.0) -> bytes:
    """A PNG reduced to a palette of colours, about a third of the bytes, and scaled by `size`."""
    picture, out = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    picture = picture.resize([round(side * size) for side in picture.size])
    small = picture.quantize(colours, dither=Image.Dither.NONE)
    small.save(out, format="PNG", optimize=True, dpi=(DPI, DPI))
    return out.getvalue()


def scale_note(scale: str) -> str:
    """The last sentence of a caption: what results of this scale can be compared with."""
    return f"SCALE={scale}: {SCALE_NOTES[scale]}."


def estimates(
    data: pd.DataFrame, looks: Mapping[str, tuple[str, str, str]], spread: float = 0, xlabel: str = "accuracy, %"
) -> Figure:
    """Estimates with intervals: a grid of panels, in each a line per row of a table and a marker per kind.

    `data` has the columns `line` and `column` (place and title of the panel), `row` (label on the left), `kind`,
    `value`, `ci_low` and `ci_high` (NaN: no interval). `looks`: marker, colour and legend of each kind. `spread`:
    distance between kinds, in lines. Panels share the x axis.
    """
    looks = {kind: look for kind, look in looks.items() if kind in set(data["kind"])}
    columns = data["column"].unique()
    rows = {line: part["row"].unique() for line, part in data.groupby("line", sort=False)}
    number = [len(own) for own in rows.values()]
    size = (2.4 + (1.9 * len(columns) if len(columns) > 1 else 5), 0.9 + 0.5 * len(rows) + 0.27 * sum(number))
    grid = {"sharex": "all", "squeeze": False, "height_ratios": number}
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, **grid)
    for (line, labels), panels in zip(rows.items(), axes, strict=True):
        height = {label: -place for place, label in enumerate(labels)}
        for column, axis in zip(columns, panels, strict=True):
            part = data[(data["line"] == line) & (data["column"] == column)]
            for place, (kind, (marker, colour, _)) in enumerate(looks.items()):
                own = part[part["kind"] == kind]
                y = own["row"].map(height).astype(float) - spread * (place - (len(looks) - 1) / 2)
                axis.hlines(y, own["ci_low"], own["ci_high"], color=colour, linewidth=1.5)
                face = "white" if marker == "D" else colour
                axis.scatter(own["value"], y, 26, marker=marker, facecolor=face, edgecolor=colour, zorder=3)
            axis.set_title(": ".join(filter(None, (line, column))), fontsize="x-small")
            axis.set_yticks(list(height.values()), labels if axis is panels[0] else [], fontsize="x-small")
            axis.set_ylim(0.4 - len(height), 0.6)
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
            axis.set_visible(len(part) > 0 or axis is panels[0])
            axis.grid(axis="x", color="0.92", linewidth=0.8)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel, fontsize="x-small")
    marks = [plt.Line2D([], [], marker=marker, color=colour, linestyle="") for marker, colour, _ in looks.values()]
    figure.legend(marks, [name for *_, name in looks.values()], loc="outside lower center", ncols=3)
    return figure


def training_curves(runs: Sequence[Run]) -> tuple[Figure, pd.DataFrame]:
    """Loss against step, with a panel per stage and a colour per label, and the plotted numbers.

    The loss is the running mean of the total over 1/40 of the steps. Raises InputError without runs.
    """
    if not runs:
        raise InputError("training curves: no finished run; train one first")
    parts = []
    for run in runs:
        label = run.spec.label.split(": ", 1)[-1] or run.run_id  # without `table4 row 6:`
        label += f", {dataset_name(run.spec.data.questions)}" if run.spec.stage == "finetune" else ""
        about = {"stage": STAGES[run.spec.stage], "label": label, "run_id": run.run_id, "step": run.history["step"]}
        loss = run.history["total"].rolling(max(1, len(run.history) // 40), min_periods=1).mean()
        parts.append(pd.DataFrame(about | {"loss": loss}))
    data = pd.concat(parts, ignore_index=True)
    panels = list(data.groupby("stage", sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.0), squeeze=False)
    for axis, (stage, part) in zip(axes[0], panels, strict=True):
        legend = part["label"].nunique() > 1 and "full"
        curves = {"x": "step", "y": "loss", "hue": "label", "units": "run_id", "estimator": None, "legend": legend}
        sns.lineplot(part, **curves, ax=axis)
        axis.set_title(stage)
    return figure, data
