"""One page of every setting: its default, its alternatives, and what the paper leaves open.

`python -m amif_lib settings` prints it; a test keeps `amif_lib/specs/SETTINGS.md` equal to it.
"""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from amif_lib.experiments import rows as experiments
from amif_lib.scoring import evaluate

SECTIONS: dict[str, type[BaseModel]] = {
    "model": experiments.ModelSpec,
    "init": experiments.InitSpec,
    "data": experiments.DataSpec,
    "teacher": experiments.TeacherSpec,
    "objective": experiments.ObjectiveSpec,
    "knowledge": experiments.KnowledgeSpec,
    "train": experiments.TrainSpec,
    "protocol": evaluate.Protocol,
}
# The points that the paper's text leaves open, numbered; the settings that decide them. One without a setting is in FIXED.
POINTS: dict[str, tuple[str, ...]] = {
    "labels H = Q + lambda I sum to 1 + lambda": ("objective.renormalise_labels", "objective.positive_weight"),
    "teacher's temperature": ("objective.teacher_temperature",),
    "text-text alignment of a report with itself": ("objective.text_text_diagonal", "objective.text_text_second"),
    "proj()": ("model.projection", "model.projection_sharing"),
    "view of the image-text loss": ("objective.inter_view",),
    "N of Eq. 2": ("train.batch_size", "objective.queue"),
    "student's temperatures": ("objective.temperature", "objective.learn_temperature"),
    "weights in Eq. 6 and 7": (),
    "losses of stage 2": ("objective.weight_local", "objective.weight_hard_negatives", "objective.weight_global"),
    "what stage 2 trains": ("objective.stage2_trains",),
    "start of the co-attention": ("init.co_attention",),
    "form of the co-attention": ("model.co_attention",),
    "co-attention of pairs of one modality": ("model.same_modality_pairs",),
    "Concat of unequal lengths (Eq. 12)": ("model.pair_pooling",),
    "pooler before the pair head": ("model.pair_pooler",),
    "positives of the pair loss": ("objective.pair_positives", "objective.image_image_views"),
    "positive of a text pair": ("objective.text_positive", "objective.token_drop", "model.pair_head"),
    "positive of an image pair": (),
    "distribution of hard negatives": (
        "objective.negative_distribution",
        "objective.negative_top_k",
        "objective.negative_temperature",
    ),
    "false negatives": ("objective.exclude_duplicates",),
    "view and direction of negatives": ("objective.same_view_negatives", "objective.negative_directions"),
    "reduction of the pair loss": ("objective.pair_reduction",),
    "normalisation in the transport cost": ("objective.cost",),
    "tokens in transport": ("objective.transport_tokens",),
    "padding in transport": (),
    "marginals": ("objective.marginals",),
    "gradient of the transport plan": ("objective.plan_gradient",),
    "transport on positives alone": ("objective.local_contrast", "objective.weight_local"),
    "fused or unimodal tokens in transport": ("objective.transport_on",),
    "masked language modelling": ("objective.weight_mlm", "objective.mlm_probability"),
    "joint representation F_i": (),
    "form of the knowledge": ("knowledge.form", "knowledge.positions", "knowledge.max_tokens"),
    "source of the vocabulary": ("knowledge.source", "knowledge.vocabulary"),
    "embedder of the knowledge": ("knowledge.embedder",),
    "gate": ("knowledge.gate", "model.gate_input"),
    "norms of the gated module": ("model.gated_norm",),
    "which decoder layers cross-attend": ("model.decoder_cross_layers", "model.decoder_cross_placement"),
    "start and output layer of the decoder": ("init.decoder", "model.decoder_output"),
    "candidate answers": ("protocol.candidates",),
    "score of a candidate": ("protocol.score",),
    "candidates of closed questions": ("protocol.closed_candidates",),
    "metric, open and closed": ("protocol.closed",),
    "epoch that is evaluated": ("train.epoch_choice",),
    "image augmentation": (
        "data.augment_single_view",
        "data.augment_multi_view",
        "data.augment_questions",
        "data.flip",
        "data.colour",
    ),
    "MIMIC-CXR studies with one image": ("data.single_view_studies",),
    "report text": ("data.report_sections", "data.text_length"),
    "what the teacher sees": ("teacher.views",),
    "learning rates": ("train.learning_rate", "train.fusion_multiplier"),
    "schedule": ("train.warmup", "train.schedule"),
    "mixed precision": ("train.precision",),
    "merge of the pre-training sets": ("data.merge",),
    "blocks of the ViT": ("model.image_layers",),
    "L in pre-training and fine-tuning": ("model.fusion_layers",),
}
# What has no setting, or lacks a reading that others have, and why.
FIXED = {
    "weights in Eq. 6 and 7": "half of each image direction, text-text in full, as printed; there is no other reading",
    "N per process (N of Eq. 2)": "the global batch is gathered over all processes with its gradients; columns of one's own "
    "process alone would make a result depend on the number of processes",
    "flattened tokens (Concat of unequal lengths)": "a linear layer needs one length, and texts differ in theirs",
    "positive of an image pair": "the two views of the study, the only pair that the text offers; the negative's partner "
    "takes the same view slot",
    "padding in transport": "zero mass, and masses that sum to 1 over real tokens; mass on padding has no meaning",
    "joint representation F_i": "image tokens and question tokens one after the other, padding masked: F_i has p + t rows",
    "residual of Eq. 14": "inside the cross-attention block, with the norm that `gated_norm` says",
    "two first tokens and 128 candidates (score of a candidate)": "ALBEF's ranking counts the first token twice and "
    "ranks only the 128 candidates whose first token is likeliest: an approximation to ranking all, which is done here",
    "VQA-soft (metric)": "needs ten people's answers to a question; these sets have one, and any accepted one counts",
    "best epoch on the test set (epoch that is evaluated)": "the test set would be trained on",
    "L in pre-training and fine-tuning": "one module with one setting, carried over from stage 2",
}


def page() -> str:
    """The settings as Markdown."""
    lines = [
        "# Every setting",
        "",
        "Generated from `amif_lib/experiments/run_spec.py`, `objective_spec.py`, `teacher_spec.py` and `evaluate.py`. The default is the "
        "value a run has when its file says nothing. Scales (`specs/scales/`) and table rows change some of them; a run's "
        "`spec.json` holds what it used.",
        "",
        "## Points that the paper leaves open",
        "",
        "| point | what is open | decided by | default |",
        "|---|---|---|---|",
    ]
    for number, (point, names) in enumerate(POINTS.items(), start=1):
        decided = ", ".join(f"`{name}`" for name in names) or "see *Settled by construction*"
        defaults = ", ".join(f"`{_shown(_field(name))}`" for name in names)
        lines.append(f"| {number} | {point} | {decided} | {defaults} |")
    lines += ["", "## Settled by construction", "", "| point | reading |", "|---|---|"]
    lines += [f"| {point} | {reading} |" for point, reading in FIXED.items()]
    for name, model in SECTIONS.items():
        lines += ["", f"## {name}", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| setting | default | alternatives | meaning |", "|---|---|---|---|"]
        for field, info in model.model_fields.items():
            others = ", ".join(f"`{c}`" for c in _choices(info.annotation) if c != info.default)
            lines.append(f"| `{field}` | `{_shown(info)}` | {others} | {info.description or ''} |")
    lines += ["", "Presets of the protocol:", "", "| preset | candidates | closed | closed candidates | score | note |"]
    lines += ["|---|---|---|---|---|---|"]
    for p in evaluate.PROTOCOLS.values():
        lines.append(
            f"| `{p.name}@{p.version}` | `{p.candidates}` | `{p.closed}` | `{p.closed_candidates}` | `{p.score}` | {p.note} |"
        )
    return "\n".join(lines) + "\n"


def _field(name: str) -> Any:
    section, _, field = name.partition(".")
    return SECTIONS[section].model_fields[field]


def _shown(info: Any) -> Any:
    default = info.get_default(call_default_factory=True)
    return "as the preset says" if default is PydanticUndefined else default


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return (True, False) if annotation is bool else ()
