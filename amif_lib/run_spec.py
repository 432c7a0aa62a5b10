"""The run specification: everything that determines a result, strictly validated.

Every reading of a point that the paper leaves open is a field here, with the default and the alternatives in its
description; `python -m amif_lib settings` lists them all. What a run's result does not depend on (processes, device,
micro-batch, machine) is not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amif_lib import paths


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def stored_side(image_size: int) -> int:
    """Short side at which images are stored for training at `image_size`, pixels: 320 for 288."""
    return round(image_size * 320 / 288)


class ModelSpec(Strict):
    """Sizes of the network. The defaults are the paper's (supplement section 6)."""

    width: int = Field(768, gt=0, description="token embedding dimension d")
    image_size: int = Field(288, gt=0, description="side of the square input image, pixels")
    prepared_side: int = Field(
        0,
        ge=0,
        description="short side of the images as they are stored for training, pixels; 0 follows image_size: 320 for 288",
    )
    patch_size: int = Field(16, gt=0)
    image_layers: int = Field(
        12,
        gt=0,
        description="ViT blocks: 12, with the final layer norm applied to all tokens "
        "(alternative 11, METER's and M3AE's cut)",
    )
    image_heads: int = Field(12, gt=0)
    text_layers: int = Field(12, gt=0)
    text_heads: int = Field(12, gt=0)
    text_positions: int = Field(512, gt=0, description="position table of text encoder and decoder")
    vocab_size: int = Field(28_996, gt=0, description="largest vocabulary; a tokenizer trained by the kit may use less")
    fusion_layers: int = Field(6, ge=0, description="L, layers of the modality co-attention")
    fusion_heads: int = Field(12, gt=0)
    projection: Literal["linear", "mlp"] = Field(
        "linear", description="proj() of Eq. 1, one per modality, shared by all alignments"
    )
    projection_dim: int = Field(256, gt=0)
    pair_pooling: Literal["cls", "mean"] = Field(
        "cls", description="what Eq. 12 concatenates: [CLS] of both sides, or the mean over tokens"
    )
    pair_pooler: Literal["none", "tanh"] = Field(
        "none", description="a tanh pooler before the pair head (M3AE has one)"
    )
    gate_input: Literal["fused", "both"] = Field(
        "fused", description="Projection() of Eq. 15 sees F_{p,i} only, or [F_{p,i}; F_i]"
    )
    decoder_layers: int = Field(12, gt=0)
    decoder_cross_layers: int = Field(
        6, gt=0, description="how many of the decoder's layers cross-attend: the last ones"
    )
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def stored_side(self) -> int:
        """Short side of the prepared images, pixels: a tenth more than training uses, so that crops are not upscaled."""
        return self.prepared_side or stored_side(self.image_size)


class InitSpec(Strict):
    """Where weights start: `random`, a hub id, or a local folder in the same (Hugging Face) format."""

    image: str = Field("openai/clip-vit-base-patch16", description="CLIP ViT-B/16 (paper)")
    text: str = Field(
        "emilyalsentzer/Bio_ClinicalBERT",
        description="'ClinicalBERT': Bio_ClinicalBERT, or medicalai/ClinicalBERT (a DistilBERT, converted)",
    )
    decoder: str = Field("emilyalsentzer/Bio_ClinicalBERT", description="as the text encoder; cross-attention random")
    tokenizer: str = Field(
        "emilyalsentzer/Bio_ClinicalBERT",
        description="'trained' fits WordPiece on the run's own training texts (never on test text)",
    )
    vocabulary: Literal["whole", "seen"] = Field(
        "whole",
        description="a checkpoint's vocabulary as it is, or only its single characters and "
        "the pieces that the training texts use: a smaller output layer",
    )


class DataSpec(Strict):
    pretrain: tuple[str, ...] = Field(
        (), description="manifest names of the pre-training sets, concatenated and shuffled"
    )
    questions: str = Field("", description="manifest name of the question set")
    tokenizer_questions: tuple[str, ...] = Field(
        (), description="question sets whose training texts a trained tokenizer sees"
    )
    training_file: str = Field("default", description="which training questions, e.g. VQA-RAD's official1797")
    decontaminate_against: tuple[str, ...] = Field(
        (), description="sets whose images must not be pre-trained on; the whole case, study or article is dropped"
    )
    text_length: int = Field(128, gt=4, description="tokens of a report, with [CLS] and [SEP]")
    question_length: int = Field(32, gt=4)
    answer_length: int = Field(
        32, gt=2, description="tokens of an answer, with [CLS] and [SEP]; longer ones are cut and counted"
    )
    report_sections: Literal["findings+impression", "findings", "impression"] = "findings+impression"
    augment_single_view: Literal["strong", "light", "none"] = Field(
        "strong", description="SimCLR-style views where a study has one image (paper section 4.1)"
    )
    augment_multi_view: Literal["strong", "light", "none"] = Field("light", description="a study with several images")
    augment_questions: Literal["strong", "light", "none"] = Field("none", description="fine-tuning images")
    flip: bool = Field(False, description="left-right flips: off, they swap the side that a report names")
    colour: bool = Field(False, description="colour jitter and grey-scale beyond brightness and contrast: off")
    max_studies: int = Field(0, ge=0, description="use only the first so many studies (0: all); smoke runs and tests")
    max_questions: int = Field(
        0, ge=0, description="use only the first so many questions of each split (0: all); smoke runs and tests"
    )
    most_bad_images: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of a set's images that may be undecodable; they are left out and listed, more stop the run",
    )
    blank_images: bool = Field(False, description="every image replaced by a grey one: the question-only baseline")


class TeacherSpec(Strict):
    """The frozen CLIP-style model whose similarities are the soft labels (section 3.2.1)."""

    source: str = Field(
        "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        description="an open_clip name, hub id or `local-dir:` folder; 'trained' is a small open_clip model that "
        "the kit trains itself",
    )
    data: tuple[str, ...] = Field((), description="trained teacher: manifest names it is trained on")
    cross_fit: int = Field(
        0,
        ge=0,
        description="trained teacher: 0 trains one model on `data` (which must differ from "
        "the student's), k >= 2 cross-fits k folds by case on the student's own data",
    )
    image_size: int = Field(64, gt=0)
    patch_size: int = Field(8, gt=0)
    width: int = Field(128, gt=0)
    layers: int = Field(4, gt=0)
    embed_dim: int = Field(64, gt=0)
    text_length: int = Field(64, gt=4)
    epochs: int = Field(8, gt=0)
    batch_size: int = Field(64, gt=1)
    learning_rate: float = Field(5e-4, gt=0)
    seed: int = 0


class ObjectiveSpec(Strict):
    """Stage 1 and stage 2 losses; one field per ambiguity of the paper's text."""

    # Stage 1: which alignments (Table 2's columns)
    global_inter: bool = Field(True, description="image-text alignment, Eq. 6")
    global_intra: Literal["none", "text", "both"] = Field(
        "both", description="Eq. 7: none, text-text only (Table 2's *), or multi-view and text-text"
    )
    labels: Literal["soft", "one_hot"] = Field("soft", description="soft labels H (Eq. 5) or plain InfoNCE")
    temperature: float = Field(0.07, gt=0, description="tau_1 = tau_2 = tau_3 of the student")
    learn_temperature: bool = False
    teacher_temperature: float = Field(
        0.07, gt=0, description="'following the same routines': the same tau; BiomedCLIP's own is about .0117"
    )
    positive_weight: float = Field(0.01, ge=0, description="lambda of Eq. 5")
    renormalise_labels: bool = Field(False, description="Eq. 5 sums to 1 + lambda; True divides by it")
    text_text_diagonal: Literal["keep", "mask"] = Field(
        "keep", description="Eq. 4 has s_ii = 1 always; 'mask' removes the diagonal from P and Q"
    )
    inter_view: Literal["random", "both"] = Field(
        "random", description="which view v_i enters Eq. 1: one drawn per step, or the mean loss of both"
    )
    # Stage 2
    weight_local: float = Field(1.0, ge=0, description="weight of L_local (Table 3)")
    weight_hard_negatives: float = Field(1.0, ge=0, description="weight of L_HN (Table 3)")
    weight_global: float = Field(0.0, ge=0, description="stage 2 keeps L_global with this weight")
    stage2_trains: Literal["all", "fusion"] = Field(
        "all", description="all parameters, or co-attention and pair head only"
    )
    cost: Literal["cosine", "dot"] = Field(
        "cosine", description="Eq. 10 on normalised tokens (UNITER) or raw dot products, which have no lower bound"
    )
    transport_tokens: Literal["content", "all"] = Field(
        "content", description="drop image [CLS], text [CLS] and [SEP] from transport (ViLT), or keep all"
    )
    transport_on: Literal["fused", "unimodal"] = Field(
        "fused", description="co-attended tokens (Eq. 9) or the encoders' own"
    )
    marginals: Literal["uniform", "norm"] = Field(
        "uniform", description="token masses: uniform over real tokens, or proportional to the token's norm"
    )
    transport_solver: Literal["ipot", "exact"] = Field(
        "ipot", description="IPOT (paper), or POT's network simplex on CPU"
    )
    transport_beta: float = Field(0.5, gt=0)
    transport_iterations: int = Field(50, gt=0)
    plan_gradient: Literal["detached", "unrolled"] = "detached"
    local_contrast: Literal["positives", "positives_minus_negatives"] = Field(
        "positives", description="Eq. 9 on positives only, or minus the mined negative's cost (UNITER's ITM form)"
    )
    negative_distribution: Literal["soft_labels", "student", "top_k"] = Field(
        "soft_labels",
        description="hard negatives drawn from H off the diagonal; from the student's P (ALBEF); or "
        "uniformly from the 5 highest of H. One-hot labels have no mass off the diagonal: then the teacher's Q, without "
        "a teacher the student's P",
    )
    negative_temperature: float = Field(
        1.0, gt=0, description="sampling exponent 1/T on the negative distribution; below 1 sharpens"
    )
    exclude_duplicates: bool = Field(True, description="never mine a negative of the same group or with identical text")
    same_view_negatives: bool = Field(
        True,
        description="a mined image partner has the view label (view and augmentation) of the "
        "positive's partner, so that the pair is not told by view type",
    )
    negative_directions: Literal["one", "both"] = Field(
        "one", description="(V_i, R_m) only (Eq. 11), or (V_m, R_i) too"
    )
    pair_types: tuple[Literal["image_text", "image_image", "text_text"], ...] = Field(
        ("image_text", "image_image", "text_text"), description="S_HN of Eq. 11"
    )
    pair_positives: Literal["per_type", "image_text", "none"] = Field(
        "per_type",
        description="Eq. 13 sums over negatives only, which a constant solves; 'image_text' only lets the head "
        "answer by pair type",
    )
    text_positive: Literal["copy", "identical"] = Field(
        "copy", description="the (R,R) positive: a second copy with tokens dropped, or the same tokens"
    )
    token_drop: float = Field(0.15, ge=0, lt=1, description="share of report tokens masked out in a text copy")

    @model_validator(mode="after")
    def _something_to_learn(self) -> ObjectiveSpec:
        if not self.global_inter and self.global_intra == "none":
            raise ValueError("global_inter is false and global_intra is 'none': stage 1 would have no loss")
        return self


class KnowledgeSpec(Strict):
    """Prior knowledge of the gated cross-attention module (section 3.4.1; Table 4's rows)."""

    source: Literal["none", "answers", "questions"] = Field(
        "answers", description="none bypasses the module altogether"
    )
    gate: bool = Field(True, description="False: F' is made of F_{p,i} alone (Eq. 16 with G = 1)")
    vocabulary: Literal["train", "train+test"] = Field("train", description="test answers as knowledge leak")
    form: Literal["tokens", "pooled"] = Field(
        "tokens", description="answers joined with [SEP] as one token sequence, or one mean vector per answer"
    )
    max_tokens: int = Field(
        512, gt=0, description="unique answers by frequency until this many tokens; the rest is dropped and counted"
    )


class TrainSpec(Strict):
    epochs: int = Field(20, gt=0)
    batch_size: int = Field(256, gt=0, description="global, over all processes")
    learning_rate: float = Field(4e-6, gt=0)
    fusion_multiplier: float = Field(1.0, gt=0, description="learning-rate factor of modules that start at random")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of steps")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 where a GPU has it; losses and transport always fp32"
    )
    max_steps: int = Field(0, ge=0, description="stop early (0: never); smoke runs and tests")


Stage = Literal["stage1", "stage2", "finetune"]


class RunSpec(Strict):
    """One training: stage 1, stage 2 or a fine-tuning on one question set."""

    stage: Stage
    scale: Literal["demo", "small", "base", "paper"]
    label: str = Field("", description="what a reader calls it; not part of the run's identity")
    seed: int = 0
    model: ModelSpec = ModelSpec()
    init: InitSpec = InitSpec()
    data: DataSpec = DataSpec()
    teacher: TeacherSpec | None = None
    objective: ObjectiveSpec = ObjectiveSpec()
    knowledge: KnowledgeSpec = KnowledgeSpec()
    train: TrainSpec = TrainSpec()
    parent: RunSpec | None = Field(None, description="the run whose weights this one starts from")

    @property
    def run_id(self) -> str:
        from amif_lib.experiments import run_id

        return run_id(self)

    @property
    def directory(self) -> Path:
        return paths.run_dir(self.run_id)

    def lineage(self) -> list[RunSpec]:
        """This run and its ancestors, first stage first."""
        return [*(self.parent.lineage() if self.parent else []), self]
