"""AMiF's own settings (`objective`, `teacher` and `knowledge` of a run), and which of them each stage reads.

What the paper leaves open and no table varies is not a setting but plain code; `READINGS.md` says where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from amif_lib.core.files import digest
from amif_lib.core.settings import Strict
from amif_lib.data.manifests import data_digest, derived_folder
from amif_lib.methods import groups
from amif_lib.networks import sizes

HF_CLIP = "hf-clip:"


class ObjectiveSpec(Strict):
    """The losses of stages 1 and 2: which there are, their labels, temperatures and weights."""

    # Stage 1, global alignment (section 3.2)
    global_intra: Literal["none", "text", "both"] = Field(
        "both", description="Eq. 7 beside Eq. 6: nothing, text-text only (Table 2's *), or multi-view and text-text"
    )
    labels: Literal["soft", "one_hot"] = Field("soft", description="soft labels H (Eq. 5), or plain InfoNCE")
    temperature: float = Field(0.07, gt=0, description="tau of the student (Eq. 2), fixed (point 7)")
    teacher_temperature: float = Field(
        0.07, gt=0, description="tau of the teacher: 'the same routines'; BiomedCLIP's own is about .0117 (point 2)"
    )
    positive_weight: float = Field(0.01, ge=0, description="lambda of Eq. 5 (point 1)")
    # Stage 2, local alignment and hard negatives (section 3.3)
    weight_local: float = Field(1.0, ge=0, description="weight of L_local (Table 3); UNITER weighs transport .1")
    weight_hard_negatives: float = Field(1.0, ge=0, description="weight of L_HN (Table 3)")

    def reads_both_views(self, stage: str) -> bool:
        """Whether a stage reads both views of a study; if not, only the drawn view is made."""
        return self.global_intra == "both" if stage == "stage1" else self.weight_hard_negatives > 0


class TeacherSpec(Strict):
    """The frozen CLIP-style model whose similarities are the soft labels (section 3.2.1)."""

    source: str = Field(
        "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        description="an open_clip name with tag (ViT-B-16/openai), `hf-hub:` and a hub id, or `local-dir:` and a "
        "folder; `hf-clip:` and a hub id or folder of a Hugging Face CLIPModel (PubMedCLIP); `file:` and a Parquet "
        "file of embeddings under DATA_ROOT (MedCLIP, PMC-CLIP); 'trained': a small one that the kit trains",
    )
    data: tuple[str, ...] = Field((), description="trained teacher: manifest names that it is trained on")
    cross_fit: int = Field(
        0,
        ge=0,
        description="trained teacher: 0 trains one on `data`, which must differ from the student's; k >= 2 cross-fits "
        "k folds by case on the student's own",
    )
    image_size: int = Field(64, gt=0, description="trained teacher: side of its input, pixels")
    patch_size: int = Field(8, gt=0, description="trained teacher: side of a patch, pixels")
    width: int = Field(128, gt=0, multiple_of=32, description="trained teacher: width of both towers, 32 per head")
    layers: int = Field(4, gt=0, description="trained teacher: layers of each tower")
    epochs: int = Field(8, gt=0, description="trained teacher: epochs")
    learning_rate: float = Field(5e-4, gt=0, description="trained teacher: highest learning rate")

    @property
    def weights(self) -> str:
        """A named `source` in the form that `networks.pretrained` reads."""
        return self.source.removeprefix(HF_CLIP) if self.source.startswith(HF_CLIP) else f"open_clip:{self.source}"


class KnowledgeSpec(Strict):
    """Prior knowledge of the gated cross-attention module (section 3.4.1; Table 4's rows)."""

    source: Literal["none", "answers", "questions"] = Field(
        "answers",
        description="answers: the training answers; questions: the words of the training questions; none: no gated "
        "module (points 32 and 33)",
    )
    gate: bool = Field(True, description="False: F' is made of F_{p,i} alone (Eq. 16 with G = 1)")
    max_tokens: int = Field(512, gt=0, description="the most frequent texts that fit; metrics.json counts the rest")


SECTIONS: dict[str, type[Strict]] = {"objective": ObjectiveSpec, "teacher": TeacherSpec, "knowledge": KnowledgeSpec}
STAGES = ("stage1", "stage2", "finetune")


# Settings that only some stages read. A setting in none of these groups counts as read by every stage, and so enters
# the identity of every run. This includes a setting that you add, until you list it here.
ALIGNING = groups.names("objective", "global_intra labels temperature teacher_temperature positive_weight")
ALIGNING |= {"data.text_length"}
PAIRING = groups.names("objective", "weight_local weight_hard_negatives")
FINE_TUNING = groups.ANSWERING | {"knowledge.source"}
KNOWLEDGE = groups.names("knowledge", "gate max_tokens")
TEACHER = {"teacher"} | {f"teacher.{name}" for name in TeacherSpec.model_fields}


def not_read(run: Any) -> set[str]:
    """Dotted settings of a run that its stage does not read."""
    fine_tuning = run.stage == "finetune"
    read = [
        (groups.STARTING, run.parent is None),  # else weights and tokenizer are the parent's
        (groups.STUDIES, not fine_tuning or run.reads_studies),
        (TEACHER, not fine_tuning or run.starts_from_teacher),
        (ALIGNING, not fine_tuning),  # stage 1, and stage 2 on top of it
        (PAIRING, run.stage == "stage2"),
        (FINE_TUNING, fine_tuning),
        (KNOWLEDGE, fine_tuning and run.knowledge.source != "none"),
    ]
    return set().union(*(names for names, is_read in read if not is_read))


def teacher_id(run: Any) -> str:
    """Hash of a run's teacher and of the data that it embeds; "" if the run uses no teacher."""
    if not run.teacher or (run.stage == "finetune" and not run.trains_towers):
        return ""
    sets = {*run.data.pretrain, *run.data.decontaminate_against, *run.teacher.data}
    data = {name: value for name, value in run.data if f"data.{name}" in groups.STUDIES}
    content = {
        "teacher": run.teacher.model_dump(mode="json"),
        "data": data | {"decontaminate_absent": "error"},  # a former setting, kept so that teachers keep their ids
        "manifests": {name: data_digest(name) for name in sorted(sets)},
        "stored_side": stored_side(run),
    }
    return digest(content)


def cache(run: Any) -> Path:
    """Folder of a teacher's weights and vectors, under DATA_ROOT: the vectors name records."""
    return derived_folder(run.data.pretrain[0]) / "teachers" / teacher_id(run)


def stored_side(run: Any) -> int:
    """Short side of the stored images that a run's teacher reads, pixels: the larger of the student's and its own."""
    own = run.teacher.image_size if run.teacher.source == "trained" else 224  # the input of BiomedCLIP and PubMedCLIP
    return max(run.model.stored_side, sizes.stored_side(own))
