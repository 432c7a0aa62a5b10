"""The settings of stage 1 and stage 2: which losses, on what, weighted how; one field per point that the paper leaves open.

The numbers of points are those of the first table of `specs/SETTINGS.md`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from amif_lib.core.settings import Strict


class ObjectiveSpec(Strict):
    """Stage 1 and stage 2 losses; one field per ambiguity of the paper's text."""

    # Stage 1: which alignments (Table 2's columns)
    global_inter: bool = Field(True, description="image-text alignment, Eq. 6")
    global_intra: Literal["none", "text", "both"] = Field(
        "both", description="Eq. 7: none, text-text only (Table 2's *), or multi-view and text-text"
    )
    labels: Literal["soft", "one_hot"] = Field("soft", description="soft labels H (Eq. 5) or plain InfoNCE")
    temperature: float = Field(0.07, gt=0, description="tau_1 = tau_2 = tau_3 of the student")
    learn_temperature: bool = Field(False, description="train one factor on tau, from 1 on, or keep tau (point 7)")
    teacher_temperature: float = Field(
        0.07,
        gt=0,
        description="'following the same routines': the same tau; BiomedCLIP's own is about .0117 (point 2)",
    )
    positive_weight: float = Field(0.01, ge=0, description="lambda of Eq. 5")
    renormalise_labels: bool = Field(False, description="Eq. 5 sums to 1 + lambda; True divides by it (point 1)")
    text_text_diagonal: Literal["keep", "mask"] = Field(
        "keep", description="Eq. 4 has s_ii = 1 always; 'mask' removes the diagonal from P and Q (point 3)"
    )
    text_text_second: Literal["same", "copy"] = Field(
        "same",
        description="second side of text-text alignment: the same reports (Eq. 4), or a copy of each with tokens "
        "dropped (`token_drop`), as images have a second view (point 3)",
    )
    inter_view: Literal["random", "both"] = Field(
        "random", description="which view v_i enters Eq. 1: one drawn per step, or the mean loss of both (point 5)"
    )
    queue: int = Field(
        0,
        ge=0,
        description="further columns of Eq. 2: features of so many samples of the steps before, without gradient; "
        "0: the global batch alone (point 6)",
    )
    # Stage 2
    weight_local: float = Field(1.0, ge=0, description="weight of L_local (Table 3); UNITER weighs transport .1")
    weight_hard_negatives: float = Field(1.0, ge=0, description="weight of L_HN (Table 3)")
    weight_global: float = Field(0.0, ge=0, description="stage 2 keeps L_global with this weight (point 9)")
    weight_mlm: float = Field(
        0.0,
        ge=0,
        description="masked language modelling on co-attended report tokens in stage 2, as M3AE and ALBEF have it; the "
        "paper names no such loss. Its head shares the word embeddings and exists only with a weight above 0 (point 30)",
    )
    mlm_probability: float = Field(
        0.15, gt=0, lt=1, description="share of report tokens to predict: 80% masked, 10% another, 10% as they are"
    )
    stage2_trains: Literal["all", "fusion"] = Field(
        "all", description="all parameters, or co-attention and pair head only (point 10)"
    )
    cost: Literal["cosine", "dot"] = Field(
        "cosine",
        description="Eq. 10 on normalised tokens (UNITER) or raw dot products, which have no lower bound (point 23)",
    )
    transport_tokens: Literal["content", "all"] = Field(
        "content", description="drop image [CLS], text [CLS] and [SEP] from transport (ViLT), or keep all (point 24)"
    )
    transport_on: Literal["fused", "unimodal"] = Field(
        "fused", description="co-attended tokens (Eq. 9) or the encoders' own (point 29)"
    )
    marginals: Literal["uniform", "norm", "attention"] = Field(
        "uniform",
        description="token masses: uniform over real tokens, proportional to the token's norm, or to the attention "
        "that it gets from the other side in the last co-attention layer (point 26)",
    )
    transport_solver: Literal["ipot", "adaptive", "exact"] = Field(
        "ipot",
        description="IPOT (paper); entropic plans until each is certified to be within `transport_tolerance` of the optimum; "
        "or POT's network simplex on CPU",
    )
    transport_tolerance: float = Field(
        0.01, gt=0, lt=1, description="of `adaptive`: largest duality gap, relative to the plan's cost"
    )
    transport_beta: float = Field(0.5, gt=0, description="IPOT's proximal weight (UNITER's)")
    transport_iterations: int = Field(50, gt=0, description="IPOT's iterations (UNITER's)")
    plan_gradient: Literal["detached", "unrolled"] = Field(
        "detached", description="gradient of Eq. 9 at a fixed plan (UNITER), or through IPOT's iterations (point 27)"
    )
    local_contrast: Literal["positives", "positives_minus_negatives"] = Field(
        "positives",
        description="Eq. 9 on positives only, or minus the mined negative's cost (UNITER's ITM form) (point 28)",
    )
    negative_distribution: Literal["soft_labels", "student", "top_k"] = Field(
        "soft_labels",
        description="hard negatives drawn from H off the diagonal; from the student's P (ALBEF); or "
        "uniformly from the highest of H. One-hot labels have no mass off the diagonal: then the teacher's Q, without "
        "a teacher the student's P; `metrics.json` says which was used (point 19)",
    )
    negative_top_k: int = Field(5, gt=0, description="how many are 'the highest' of `top_k`")
    negative_temperature: float = Field(
        1.0, gt=0, description="sampling exponent 1/T on the negative distribution; below 1 sharpens (point 19)"
    )
    exclude_duplicates: bool = Field(
        True, description="never mine a negative of the same group or with identical text (point 20)"
    )
    same_view_negatives: bool = Field(
        True,
        description="a mined image partner has the view label (view and augmentation) of the "
        "positive's partner, so that the pair is not told by view type",
    )
    image_image_views: Literal["two", "one"] = Field(
        "two",
        description="what a (V,V) pair is of: the two views of a study and of the mined one; or the drawn view of each, so "
        "that stage 2 makes and encodes one view (the cheapest reading, with pair_positives 'image_text' and "
        "text_positive 'none'); an image beside itself is no positive, so pair_positives may not be 'per_type' then (point 16)",
    )
    negative_directions: Literal["one", "both"] = Field(
        "one", description="(V_i, R_m) only (Eq. 11), or (V_m, R_i) too (point 21)"
    )
    pair_types: tuple[Literal["image_text", "image_image", "text_text"], ...] = Field(
        ("image_text", "image_image", "text_text"), description="S_HN of Eq. 11"
    )
    pair_positives: Literal["per_type", "image_text", "none"] = Field(
        "per_type",
        description="Eq. 13 sums over negatives only, which a constant solves; 'image_text' only lets the head "
        "answer by pair type, and costs about a third less (point 16)",
    )
    pair_reduction: Literal["sum", "mean"] = Field(
        "sum", description="over the pairs of a sample: their sum (Eq. 13) or their mean (point 22)"
    )
    text_positive: Literal["copy", "shuffled", "identical", "halves", "none"] = Field(
        "copy",
        description="the (R,R) positive: a second copy with tokens dropped, the same with its sentences in another "
        "order, the same tokens, first and second half of the report (the negative: its first half and another's "
        "second), or none (point 17)",
    )
    token_drop: float = Field(0.15, ge=0, lt=1, description="share of report tokens masked out in a text copy")

    @model_validator(mode="after")
    def _something_to_learn(self) -> ObjectiveSpec:
        if not self.global_inter and self.global_intra == "none":
            raise ValueError("global_inter is false and global_intra is 'none': stage 1 would have no loss")
        if self.marginals == "attention" and self.transport_on == "unimodal":
            raise ValueError("marginals 'attention' are co-attention's, transport_on is 'unimodal'; change one of them")
        if self.image_image_views == "one" and self.pair_positives == "per_type" and "image_image" in self.pair_types:
            raise ValueError(
                "image_image_views 'one' with pair_positives 'per_type' would pair an image with itself as a positive; set "
                "pair_positives to 'image_text' or 'none'"
            )
        if self.plan_gradient == "unrolled" and self.transport_solver != "ipot":
            raise ValueError(
                f"plan_gradient 'unrolled' is IPOT's and transport_solver is '{self.transport_solver}'; change one of them"
            )
        return self

    def reads_both_views(self, stage: str) -> bool:
        """Whether a stage reads both views of a study; else the drawn one stands for both, in the feed and the encoder."""
        in_global = self.global_intra == "both" or (self.global_inter and self.inter_view != "random")
        if stage == "stage1":
            return in_global
        pairs_views = self.pairs_images and self.image_image_views == "two"
        return pairs_views or (self.weight_global > 0 and in_global)

    @property
    def pairs_images(self) -> bool:
        """Whether stage 2 classifies pairs of images."""
        return self.weight_hard_negatives > 0 and "image_image" in self.pair_types

    @property
    def copies_texts(self) -> bool:
        """Whether a loss of stage 1 reads text copies."""
        return self.text_text_second == "copy" and self.global_intra != "none"


class KnowledgeSpec(Strict):
    """Prior knowledge of the gated cross-attention module (section 3.4.1; Table 4's rows)."""

    source: Literal["none", "answers", "questions"] = Field(
        "answers", description="none bypasses the module altogether"
    )
    gate: bool = Field(True, description="False: F' is made of F_{p,i} alone (Eq. 16 with G = 1)")
    vocabulary: Literal["train", "train+test"] = Field(
        "train", description="whose answers (or questions); test answers as knowledge leak (point 33)"
    )
    form: Literal["tokens", "words", "pooled"] = Field(
        "tokens",
        description="answers joined with [SEP] as one token sequence, each different token once, or one mean vector per "
        "answer (point 32)",
    )
    max_tokens: int = Field(
        512, gt=0, description="unique answers by frequency until this many tokens; the rest is dropped and counted"
    )
    positions: Literal["sequence", "per_answer"] = Field(
        "sequence",
        description="position of a knowledge token: in the whole sequence, which the position table then bounds beside "
        "`max_tokens`, or within its answer, which admits any number (point 32)",
    )
    embedder: Literal["trained", "frozen"] = Field(
        "trained",
        description="the text encoder's word and position embeddings, trained along, or the output of the whole text "
        "encoder as it is when fine-tuning starts, without gradient (point 34)",
    )
