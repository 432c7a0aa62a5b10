"""One page of every setting: its default, its alternatives, and what the paper leaves open.

`python -m amif_lib settings` prints it; a test keeps `amif_lib/specs/SETTINGS.md` equal to it.
"""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel

from amif_lib import experiments

SECTIONS: dict[str, type[BaseModel]] = {
    "model": experiments.ModelSpec,
    "init": experiments.InitSpec,
    "data": experiments.DataSpec,
    "teacher": experiments.TeacherSpec,
    "objective": experiments.ObjectiveSpec,
    "knowledge": experiments.KnowledgeSpec,
    "train": experiments.TrainSpec,
}
# Points of the paper's text that are settled by construction rather than by a setting.
FIXED = {
    "Global batch (Eq. 2's N)": "the whole batch over all processes, gathered with gradients; never per process",
    "Weights of Eq. 7": "half of each image direction, text-text in full, as printed",
    "Co-attention start": "random at the start of stage 2: no stage-1 loss touches it",
    "Co-attention layer": "self-attention, cross-attention, feed-forward in two streams (M3AE's form; the parameter count fits only this)",
    "Weights of same-modality pairs": "each side runs through its own modality's stream; an embedding of three values tells the pair type",
    "Positive of an image pair": "the two views of the study; the negative's partner takes the same view slot",
    "Padding in transport": "zero mass; masses are uniform over real tokens",
    "Joint representation F_i": "image tokens and question tokens one after the other, padding masked",
    "Norms in gated cross-attention": "after the residual (BERT's form), with Eq. 14's residual inside the cross-attention block",
    "Embedder of the knowledge": "the text encoder's word and position embeddings, trained",
    "Decoder cross-attention": "random at the start; output layer tied to the word embeddings",
    "Epoch that is evaluated": "the last one; no checkpoint is chosen on the test set",
    "Teacher's images": "clean, embedded once; students see augmented views of them",
    "Several pre-training sets": "concatenated and shuffled together",
    "Masked language modelling": "none: the paper names no such loss",
}


def page() -> str:
    """The settings as Markdown."""
    lines = [
        "# Every setting",
        "",
        "Generated from `amif_lib/experiments.py`. The default is the value a run has when its file says nothing. "
        "Scales (`specs/scales/`) and table rows change some of them; a run's `spec.json` holds what it used.",
        "",
    ]
    for name, model in SECTIONS.items():
        lines += [
            f"## {name}",
            "",
            " ".join((model.__doc__ or "").split()) or "Optimisation.",
            "",
            "| setting | default | alternatives | meaning |",
            "|---|---|---|---|",
        ]
        for field, info in model.model_fields.items():
            choices = _choices(info.annotation)
            others = ", ".join(f"`{c}`" for c in choices if c != info.default)
            default = info.get_default(call_default_factory=True)
            lines.append(f"| `{field}` | `{default}` | {others} | {info.description or ''} |")
        lines.append("")
    lines += ["## Settled by construction", "", "| point | reading |", "|---|---|"]
    lines += [f"| {point} | {reading} |" for point, reading in FIXED.items()]
    return "\n".join(lines) + "\n"


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return (True, False) if annotation is bool else ()
