"""MLIP's own settings (`objective` and `knowledge` of a run), and which of them each stage reads."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from amif_lib.core.settings import Strict
from amif_lib.data import knowledge_graph
from amif_lib.methods import groups


class ObjectiveSpec(Strict):
    """The losses of Eq. 20, and how the divergence encoders follow the encoders."""

    weight_global: float = Field(1.0, ge=0, description="lambda 1: global contrast of images and reports (Eq. 8)")
    weight_divergence: float = Field(
        1.0, ge=0, description="lambda 0: contrast with the divergence encoders (Eq. 8); 0: there are none"
    )
    weight_local: float = Field(1.0, ge=0, description="lambda 2: token-knowledge-patch contrast (Eq. 12)")
    weight_category: float = Field(1.0, ge=0, description="lambda 3: contrast of categories (Eq. 17)")
    weight_itm: float = Field(1.0, ge=0, description="lambda 4: image-text matching (Eq. 18)")
    weight_swap: float = Field(1.0, ge=0, description="lambda 5: text swapping (Eq. 19)")
    divergence: Literal["similarity", "momentum", "inverse"] = Field(
        "similarity",
        description="share of the encoder's weights that its divergence encoder takes over at each step: the cosine s "
        "of both outputs, as Eq. 7 is printed, a constant .005, or 1 - s, as the text describes it",
    )
    prototypes: int = Field(0, ge=0, description="C of Eq. 16; 0: half of the batch size; MGCA has 500")

    def reads_both_views(self, stage: str) -> bool:
        """Whether a stage reads both views of a study: the divergence encoder sees the view that was not drawn."""
        return stage == "pretrain" and self.weight_global > 0 and self.weight_divergence > 0


class KnowledgeSpec(Strict):
    """Where the entities come from."""

    source: str = Field(
        "reports",
        description="triples of the reports themselves, `slake` (its folder KG), or a file under DATA_ROOT: head, "
        "relation and tail with tabs between",
    )
    dim: int = Field(256, gt=0, multiple_of=32, description="dimension of an entity's vector")


SECTIONS: dict[str, type[Strict]] = {"objective": ObjectiveSpec, "knowledge": KnowledgeSpec}
STAGES = ("pretrain", "finetune")


# Settings that only one of the stages reads; see methods/amif/settings.py.
PRETRAINING = groups.names(
    "objective", "weight_global weight_divergence weight_local weight_category weight_itm weight_swap"
)
PRETRAINING |= groups.names("objective", "divergence prototypes") | groups.names("knowledge", "source dim")
PRETRAINING |= {"data.text_length", "model.projection_dim"}


def not_read(run: Any) -> set[str]:
    """Dotted settings of a run that its stage does not read."""
    starting = groups.STARTING if run.parent is not None else set()  # weights and tokenizer are the parent's
    if run.stage == "pretrain":
        return starting | groups.ANSWERING | groups.names("model", "fusion_layers fusion_heads")
    return starting | PRETRAINING | (set() if run.reads_studies else groups.STUDIES)


def files_read(run: Any) -> dict[str, str]:
    """SHA-256 of the knowledge files that a run reads, by name; a fine-tuning reads none."""
    return knowledge_graph.content(run.knowledge.source) if run.stage == "pretrain" else {}
