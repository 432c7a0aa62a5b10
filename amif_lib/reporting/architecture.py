"""The architecture figure: the parts of AMiF, the losses that act on them, and which stage trains which part."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from PIL import Image

STAGES = {
    "stage1": ("#0173b2", "stage 1: global alignment"),
    "stage2": ("#d55e00", "stage 2: local alignment and mining"),
    "finetune": ("#029e73", "fine-tuning on questions"),
}
EVERY, GREY, PALE = tuple(STAGES), "#767676", "#ededed"
# By name of the network's module: centre and size of its box, text, and the stages that train it.
PARTS = {
    "image_encoder": ((4.0, 6.4), (2.0, 1.2), "image encoder\nVision Transformer", EVERY),
    "text_encoder": ((4.0, 2.2), (2.0, 1.2), "text encoder\nBERT", EVERY),
    "teacher": ((4.0, 4.3), (2.0, 1.2), "teacher\nfrozen", ()),
    "image_projection": ((6.5, 5.65), (1.5, 0.6), "projection", ("stage1",)),
    "text_projection": ((6.5, 2.95), (1.5, 0.6), "projection", ("stage1",)),
    "co_attention": (
        (9.2, 4.3),
        (1.7, 5.4),
        "co-attention\n\npatches look\nat words,\nwords look\nat patches",
        EVERY[1:],
    ),
    "pair_head": ((11.6, 2.2), (1.5, 1.2), "pair head", ("stage2",)),
    "gated_cross_attention": (
        (12.15, 4.6),
        (2.4, 1.5),
        "gated cross-attention\nhow much knowledge\nto let in",
        ("finetune",),
    ),
    "decoder": ((14.9, 4.6), (1.7, 1.5), "answer decoder", ("finetune",)),
}
# Boxes without weights: centre, size, text, and the stage of which it is a loss ("": it is no loss).
LOSSES = {
    "global": ((6.5, 4.3), (2.5, 1.3), "global alignment\nsoft labels $H$ against $P$\nEq. 1–8", "stage1"),
    "local": ((11.6, 7.6), (2.9, 1.0), "optimal transport from\npatches to words, Eq. 9–10", "stage2"),
    "hard_negatives": ((11.6, 0.6), (3.0, 0.9), "is this pair the true one?\nEq. 12–13", "stage2"),
    "answer": ((14.9, 2.2), (2.2, 1.0), "likelihood of the\nright answer", "finetune"),
    "mined": ((7.0, 0.6), (3.6, 0.9), "hard negatives: wrong pairs,\ndrawn where $H$ is large, Eq. 11", ""),
    "knowledge": ((15.0, 7.6), (2.9, 1.0), "prior knowledge: the\nanswers of the training set", ""),
}
# fmt: off
ARROWS = (  # from x, y, to x, y, and how much the line bends
    (2.15, 6.4, 3.0, 6.4, 0), (2.15, 2.2, 3.0, 2.2, 0), (2.1, 5.6, 3.0, 4.6, 0), (2.1, 3.0, 3.0, 4.0, 0),
    (5.0, 6.2, 5.75, 5.75, 0), (5.0, 2.4, 5.75, 2.85, 0), (6.5, 5.35, 6.5, 4.93, 0), (6.5, 3.25, 6.5, 3.67, 0),
    (5.0, 4.3, 5.25, 4.3, 0), (5.0, 6.6, 8.35, 6.6, 0), (5.0, 2.0, 8.35, 2.0, 0), (7.75, 4.0, 7.9, 1.05, -0.3),
    (8.8, 0.6, 9.4, 1.6, 0.3), (10.05, 6.6, 10.6, 7.1, 0), (10.05, 2.2, 10.85, 2.2, 0), (11.6, 1.6, 11.6, 1.05, 0),
    (10.05, 4.6, 10.95, 4.6, 0), (14.2, 7.1, 12.6, 5.35, 0.15), (13.35, 4.6, 14.05, 4.6, 0), (14.9, 3.85, 14.9, 2.7, 0),
)
# fmt: on


def draw(picture: Image.Image, question: str, answer: str) -> Figure:
    """The figure with an example: a greyscale picture as input, a question, and the answer as output."""
    figure, axis = plt.subplots(figsize=(12, 6.35), layout="none")
    figure.subplots_adjust(0, 0, 1, 1)
    for x, y, to_x, to_y, bend in ARROWS:
        look = {"arrowstyle": "-|>", "color": GREY, "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (to_x, to_y), (x, y), arrowprops=look)
    for (x, y), (width, height), text, stages in PARTS.values():
        _box(axis, x, y, width, height, text, "black" if stages else GREY, "white" if stages else PALE)
        for place, stage in enumerate(reversed(stages)):
            at = (x + width / 2 - 0.2 - 0.3 * place, y + height / 2)
            axis.add_patch(Circle(at, 0.13, color=STAGES[stage][0], zorder=4))
    for (x, y), size, text, stage in LOSSES.values():
        colour = STAGES[stage][0] if stage else GREY
        _box(axis, x, y, *size, text, colour, colour if stage else PALE, "white" if stage else "black")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0.4, 2.1, 5.55, 7.25))
    axis.text(1.25, 7.45, "image", ha="center", fontsize=9)
    _box(axis, 1.25, 2.2, 1.75, 1.5, "report,\nlater question\n" + fill(f"“{question}”", 14), GREY, "white")
    axis.text(15.95, 4.6, fill(f"“{answer}”", 17), va="center", fontsize=9)
    for place, (colour, name) in enumerate(STAGES.values()):
        axis.add_patch(Circle((0.7 + 4.3 * place, -0.55), 0.13, color=colour))
        axis.text(0.95 + 4.3 * place, -0.55, name, va="center", fontsize=9)
    says = "dot: trained in this stage\nfilled box: loss of this stage"
    axis.text(16.9, -0.55, says, ha="right", va="center", fontsize=8)
    axis.set(xlim=(0, 17.3), ylim=(-0.9, 8.7), aspect="equal")
    axis.axis("off")
    return figure


def _box(
    axis: Axes, x: float, y: float, width: float, height: float, text: str, edge: str, face: str, ink: str = "black"
) -> None:
    shape = {"boxstyle": "round,pad=0,rounding_size=0.15", "edgecolor": edge, "facecolor": face, "zorder": 2}
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **shape))
    axis.text(x, y, text, ha="center", va="center", color=ink, fontsize=8.5, zorder=3, linespacing=1.3)
