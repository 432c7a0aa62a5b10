"""Pictures of the data: how much there is, what leaks and what samples look like.

Each function returns a figure, and the charts the numbers they show; `figures.save` writes both. Whoever draws images or
texts asks `redistribution` first.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from amif_lib.data import images, manifests, redistribution
from amif_lib.data.load import load_questions, load_studies

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

OPEN, CLOSED, STUDIES, LEAK = "#0173b2", "#de8f05", "#949494", "#d55e00"
COLOURS = {"open": OPEN, "closed": CLOSED, "studies": STUDIES}
SPLITS = ("train", "val", "test")
SHARES = {  # columns of `leaks.lines` that count test questions
    "on_train_image": "on an image of training",
    "paraphrase_in_train": "paraphrase, with its answer",
    "repeated_in_train": "repeated outright",
    "unseen_answer": "answer not in training",
}
SCORES = {
    "most_frequent": ("most frequent answer", STUDIES, "s"),
    "lookup": ("nearest question, same image", LEAK, "o"),
    "ceiling": ("ceiling of training answers", OPEN, "|"),
}


def splits_data(counts: pd.DataFrame) -> pd.DataFrame:
    """From `datasets.count_table`: `data_set, split, kind (open|closed|studies), number`, closed by the set's field."""
    rows = []
    for line in counts[counts["split"] != "all"].itertuples():
        if pd.notna(line.questions):
            kinds = {"open": line.questions - line.closed_field, "closed": line.closed_field}
        else:
            kinds = {"studies": line.studies}
        rows += [(line.data_set, line.split, kind, int(number)) for kind, number in kinds.items()]
    return pd.DataFrame(rows, columns=["data_set", "split", "kind", "number"])


def splits_chart(counts: pd.DataFrame) -> Figure:
    """Questions (open and closed) or studies per split, one panel per set with an axis of its own."""
    data = splits_data(counts)
    names = list(dict.fromkeys(data["data_set"]))
    rows = [max(1, data.loc[data["data_set"] == name, "split"].nunique()) for name in names]
    figure, axes = plt.subplots(
        len(names), 1, figsize=(6.4, 0.4 + 0.5 * len(names) + 0.32 * sum(rows)), squeeze=False, height_ratios=rows
    )
    for axis, name in zip(axes[:, 0], names, strict=True):
        part = data[data["data_set"] == name].pivot(index="split", columns="kind", values="number").fillna(0)
        part = part.reindex([split for split in SPLITS if split in part.index][::-1])
        left = np.zeros(len(part))
        for kind, colour in COLOURS.items():
            if kind in part:
                axis.barh(part.index, part[kind], left=left, color=colour, height=0.7)
                left += part[kind].to_numpy()
        for position, (end, (_, numbers)) in enumerate(zip(left, part.iterrows(), strict=True)):
            words = [f"{numbers[kind]:,.0f} {kind}" for kind in COLOURS if kind in part]
            axis.annotate(" + ".join(words), (end, position), (5, 0), textcoords="offset points", va="center", size=8)
        axis.set_title(f"{name}: {'questions' if 'open' in part else 'studies'}")
        axis.set(xlim=(0, 1.4 * left.max()), xticks=[])
        axis.tick_params(axis="y", length=0)
        axis.spines[["left", "bottom"]].set_visible(False)
    kinds = [kind for kind in COLOURS if kind in set(data["kind"])]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[kind]) for kind in kinds]
    figure.legend(handles, kinds, loc="outside lower center", ncols=len(kinds))
    return figure


def leak_data(table: pd.DataFrame) -> pd.DataFrame:
    """What `leak_chart` shows: `line, measure, percent` of the test questions."""
    rows = []
    for line in table.to_dict("records"):
        name = _line_name(line)
        rows += [(name, column, 100 * line[column] / line["n_test"]) for column in SHARES]
        rows += [(name, f"{score}_{part}", line[f"{score}_{part}"]) for score in SCORES for part in ("open", "closed")]
    return pd.DataFrame(rows, columns=["line", "measure", "percent"])


def _line_name(line: dict[str, object]) -> str:
    file = "" if line["training_file"] == "default" else f"{line['training_file']}"
    part = "" if (line["training"], line["test"]) == ("train", "test") else f"{line['training']} / {line['test']}"
    about = ", ".join(filter(None, (file, part))) or "train"
    return "\n".join([str(line["data_set"]), *textwrap.wrap(f"{about} ({line['n_train']:,})", 30)])


def leak_chart(table: pd.DataFrame) -> Figure:
    """Left: the share of test questions that training gives something away about. Right: accuracy without any model.

    One row per line of `leaks.lines`; accuracies apart for open and closed questions (`answer_type`).
    """
    data = leak_data(table).set_index(["line", "measure"])["percent"]
    names = list(dict.fromkeys(data.index.get_level_values("line")))
    figure, axes = plt.subplots(1, 3, sharey=True, figsize=(10.4, 1.3 + 0.95 * len(names)), width_ratios=(1.25, 1, 1))
    y = np.arange(len(names))[::-1].astype(float)
    colours = (LEAK, "#cc78bc", "#ca9161", STUDIES)
    for position, ((column, label), colour) in enumerate(zip(SHARES.items(), colours, strict=True)):
        values = [data[name, column] for name in names]
        bars = axes[0].barh(y + 0.3 - 0.2 * position, values, height=0.18, color=colour, label=label)
        axes[0].bar_label(bars, [f"{value:.1f}" for value in values], size=7, padding=2, color=colour)
    axes[0].set(xlim=(0, 112), yticks=y, yticklabels=names, title="Share of the test questions, %")
    for axis, part in zip(axes[1:], ("open", "closed"), strict=True):
        for score, (label, colour, marker) in SCORES.items():
            values = [data[name, f"{score}_{part}"] for name in names]
            size = 260 if marker == "|" else 38
            axis.scatter(values, y, marker=marker, s=size, color=colour, label=label, zorder=3, linewidth=2.2)
        axis.hlines(y, 0, 100, color="0.9", zorder=0)
        axis.set(xlim=(-4, 104), title=f"Without a model: {part}, %", ylim=(-0.6, len(names) - 0.4))
    for axis in axes:
        axis.set_xticks(range(0, 101, 25))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    for axis, place in ((axes[0], "outside lower left"), (axes[1], "outside lower right")):
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc=place, ncols=2 if axis is axes[0] else 1, fontsize=8, markerscale=0.6)
    return figure


def samples(files: Sequence[Path], captions: Sequence[str] = (), columns: int = 6, size: float = 1.5) -> Figure:
    """Images side by side on black, aspect ratio kept, each with its caption below where captions are given."""
    rows = -(-len(files) // columns)
    below = 0.55 if captions else 0.0
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + below) * rows), squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(files):
            axis.imshow(images.contact_sheet([files[place]], 1, 256))
            if captions:
                text = textwrap.wrap(captions[place], round(size * 15))
                text = [*text[:3], text[3] + " ..."] if len(text) > 4 else text[:4]
                axis.text(0, -0.04, "\n".join(text), transform=axis.transAxes, va="top", fontsize=6.5)
    return figure


def pick(name: str, number: int = 12) -> tuple[list[Path], list[str]]:
    """Images of a set, evenly spread over it, each with its text or its question and answer."""
    if manifests.load(name).role == "questions":
        pairs = {q.image_path: f"{q.question} \u2192 {q.answer}" for q in load_questions(name)}
    else:
        pairs = {study.images[0].path: study.text for study in load_studies(name)}
    files = sorted(pairs)[:: max(1, len(pairs) // number)][:number]
    files = [file for file in files if not images.trouble(file)]  # the data check has counted those
    return files, [pairs[file] for file in files]


def store_samples(name: str, wanted: Path, number: int = 12) -> tuple[Path | None, list[str]]:
    """Draw samples of a set as a PNG in the folder `wanted`, or under `results/private/` where that is not allowed.

    Returns the file and what is withheld from others, one line each: images (then the picture is private), texts. Of a
    set that `manifests.stays_with_data` nothing is drawn.
    """
    if manifests.stays_with_data(name):
        why = f"{manifests.load(name).title}: no sample is drawn, not even a private one: credentialed data stay where they lie"
        return None, [f"{why} (licence: {manifests.load(name).licence.text})."]
    files, captions = pick(name, number)
    kept_back = [kind for kind in redistribution.KINDS if not redistribution.may_show(name, kind)]
    public = "images" not in kept_back
    figure = samples(files, captions if not public or "texts" not in kept_back else ())
    path = redistribution.folder(wanted, images=[name]) / f"samples_{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None}, dpi=110)
    plt.close(figure)
    return path, [redistribution.why_not(name, kind) for kind in kept_back]
