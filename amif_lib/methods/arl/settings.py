"""ARL's own settings (`objective` and `knowledge` of a run), and which of them each stage reads."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from amif_lib.core.settings import Strict
from amif_lib.data import knowledge_graph
from amif_lib.methods import groups


class ObjectiveSpec(Strict):
    """The losses of pre-training, and how a fine-tuned network answers."""

    weight_mlm: float = Field(1.0, ge=0, description="weight of masked language modelling, whole entities masked")
    weight_mim: float = Field(1.0, ge=0, description="weight of masked image modelling")
    weight_itm: float = Field(0.1, ge=0, description="weight of image-text matching")
    weight_align: float = Field(1.0, ge=0, description="weight of the alignment of image and text through knowledge")
    negated_entities: Literal["kept", "dropped"] = Field(
        "kept", description="whether a report that denies a finding counts as naming it, in the alignment of images"
    )
    answer_head: Literal["decoder", "classifier"] = Field(
        "decoder", description="fine-tuning: the answer decoder of all methods, or ARL's own classes, the set's answers"
    )

    def reads_both_views(self, stage: str) -> bool:
        """Whether a stage reads both views of a study; if not, only the drawn view is made."""
        return False


class KnowledgeSpec(Strict):
    """Where the entities come from, and whether the fusion reads them."""

    source: str = Field(
        "reports",
        description="triples of the reports themselves, `slake` (its folder KG), or a file under DATA_ROOT: head, "
        "relation and tail with tabs between",
    )
    dim: int = Field(256, gt=0, multiple_of=32, description="dimension of an entity's vector; ARL has 256")
    inject: bool = Field(True, description="False: fusion without the stream of entities")


SECTIONS: dict[str, type[Strict]] = {"objective": ObjectiveSpec, "knowledge": KnowledgeSpec}
STAGES = ("pretrain", "finetune")


# Settings that only one of the stages reads; see methods/amif/settings.py.
PRETRAINING = groups.names("objective", "weight_mlm weight_mim weight_itm weight_align negated_entities")
PRETRAINING |= groups.STUDIES | {"data.text_length", "model.projection_dim"}


def not_read(run: Any) -> set[str]:
    """Dotted settings of a run that its stage does not read."""
    if run.stage == "pretrain":
        return groups.ANSWERING | {"objective.answer_head", "model.projection_dim"}
    decoder = {"init.decoder"} | groups.names("model", "decoder_layers decoder_cross_layers")
    return groups.STARTING | PRETRAINING | (decoder if run.objective.answer_head == "classifier" else set())


def files_read(run: Any) -> dict[str, str]:
    """SHA-256 of the knowledge files that a run reads, by name; a fine-tuning reads its parent's graph."""
    return knowledge_graph.content(run.knowledge.source) if run.stage == "pretrain" else {}
