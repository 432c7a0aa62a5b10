"""Sizes of the network; torch-free, so that tables and the command line read them without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from amif_lib.core.settings import Strict


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
    patch_size: int = Field(16, gt=0, description="side of a patch, pixels")
    image_layers: int = Field(
        12,
        gt=0,
        description="ViT blocks: 12, with the final layer norm applied to all tokens "
        "(alternative 11, METER's and M3AE's cut) (point 52)",
    )
    image_form: Literal["clip", "clip_gelu", "vit"] = Field(
        "clip",
        description="which ViT the image encoder is, as weights from elsewhere ask for: OpenAI's CLIP (QuickGELU, layer norm "
        "before the blocks), the same with GELU (open_clip's own), or timm's (GELU, no norm before the blocks, epsilon 1e-6), "
        "which is BiomedCLIP's",
    )
    image_heads: int = Field(12, gt=0, description="attention heads of the image encoder")
    text_layers: int = Field(12, gt=0, description="layers of the text encoder")
    text_heads: int = Field(12, gt=0, description="attention heads of text encoder and decoder")
    text_positions: int = Field(512, gt=0, description="position table of text encoder and decoder")
    vocab_size: int = Field(28_996, gt=0, description="largest vocabulary; a tokenizer trained by the kit may use less")
    fusion_layers: int = Field(
        6, ge=0, description="L, layers of the modality co-attention, in pre-training and fine-tuning (point 53)"
    )
    fusion_heads: int = Field(12, gt=0, description="attention heads of co-attention and gated cross-attention")
    co_attention: Literal["two_stream", "one_way", "shared"] = Field(
        "two_stream",
        description="M3AE's form, a stream per modality; ALBEF's, where only the text side (of a same-modality pair the "
        "second side) attends and image tokens stay as they are; or one stream that both sides share. Only two streams "
        "fit the paper's parameter count (point 12)",
    )
    same_modality_pairs: Literal["modality", "slot", "separate"] = Field(
        "modality",
        description="(V,V) and (R,R) in co-attention: both sides run through their modality's stream, the first through "
        "the image's and the second through the text's, or both through a stream of their own (point 13)",
    )
    projection: Literal["linear", "mlp"] = Field("linear", description="proj() of Eq. 1 (point 4)")
    projection_sharing: Literal["modality", "alignment"] = Field(
        "modality",
        description="one projection per modality for all alignments, or one for image-text and another for multi-view or "
        "text-text (point 4)",
    )
    projection_dim: int = Field(256, gt=0, description="dimension of the space that projections share")
    pair_pooling: Literal["cls", "mean"] = Field(
        "cls", description="what Eq. 12 concatenates: [CLS] of both sides, or the mean over tokens (point 14)"
    )
    pair_pooler: Literal["none", "tanh"] = Field(
        "none", description="a tanh pooler before the pair head (M3AE has one) (point 15)"
    )
    pair_head: Literal["shared", "per_type"] = Field(
        "shared", description="one linear head LH for all pairs (Eq. 12), or one per pair type (point 17)"
    )
    gate_input: Literal["fused", "both"] = Field(
        "fused", description="Projection() of Eq. 15 sees F_{p,i} only, or [F_{p,i}; F_i] (point 35)"
    )
    gated_norm: Literal["post", "pre"] = Field(
        "post",
        description="layer norms of the gated cross-attention module: after the residual (BERT), or before each block "
        "(point 36)",
    )
    decoder_layers: int = Field(12, gt=0, description="layers of the answer decoder")
    decoder_cross_layers: int = Field(6, gt=0, description="how many of the decoder's layers cross-attend")
    decoder_cross_placement: Literal["last", "first", "alternate"] = Field(
        "last", description="which layers these are: the last (ALBEF), the first, or evenly spread (point 37)"
    )
    decoder_output: Literal["tied", "untied"] = Field(
        "tied",
        description="the decoder's output layer is its word embeddings (as BERT's), or a matrix of its own that starts "
        "as their copy (point 38)",
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="in text encoder, fusion and decoder; the image encoder has none"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelSpec:
        for name in ("image_heads", "text_heads", "fusion_heads"):
            if self.width % getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)} does not divide width {self.width}; change one of them")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}; change one of them"
            )
        if self.decoder_cross_layers > self.decoder_layers:
            raise ValueError(
                f"decoder_cross_layers {self.decoder_cross_layers} exceeds decoder_layers {self.decoder_layers}"
            )
        return self

    @property
    def stored_side(self) -> int:
        """Short side of the prepared images, pixels: a tenth more than training uses, so that crops are not upscaled."""
        return self.prepared_side or stored_side(self.image_size)
