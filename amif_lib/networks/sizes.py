"""Sizes of the network (`RunSpec.model`); nothing here needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from amif_lib.core.settings import Strict


def stored_side(image_size: int) -> int:
    """Short side at which images are stored for training at `image_size`, pixels: 320 for 288."""
    return round(image_size * 320 / 288)  # a tenth more than training uses, so that crops are not upscaled


class ModelSpec(Strict):
    """Sizes of the network. The defaults are the paper's (supplement section 6)."""

    width: int = Field(768, gt=0, description="token embedding dimension d")
    image_size: int = Field(288, gt=0, description="side of the square input image, pixels")
    patch_size: int = Field(16, gt=0, description="side of a patch, pixels")
    image_layers: int = Field(12, gt=0, description="ViT blocks; METER and M3AE cut the last (point 52)")
    image_form: Literal["clip", "vit", "lite0"] = Field(
        "clip",
        description="which ViT, as starting weights ask for: OpenAI's CLIP (QuickGELU, layer norm before the blocks), "
        "or timm's (GELU, no norm before the blocks), which is BiomedCLIP's; lite0: the first, on the last map of a "
        "frozen EfficientNet-lite0 in place of pixels, with patch_size 32 and two fixed views of each image, whose "
        "maps are computed once",
    )
    image_heads: int = Field(12, gt=0, description="attention heads of the image encoder")
    text_layers: int = Field(12, gt=0, description="layers of the text encoder")
    text_heads: int = Field(12, gt=0, description="attention heads of text encoder and decoder")
    text_positions: int = Field(512, gt=0, description="position table of text encoder and decoder")
    vocab_size: int = Field(28_996, gt=0, description="largest vocabulary; a tokenizer that the kit fits may use less")
    fusion_layers: int = Field(6, ge=0, description="L, layers of co-attention, in all stages (point 53)")
    fusion_heads: int = Field(12, gt=0, description="attention heads of co-attention and gated cross-attention")
    projection_dim: int = Field(256, gt=0, description="dimension of the space that both projections share (point 4)")
    decoder_layers: int = Field(12, gt=0, description="layers of the answer decoder")
    decoder_cross_layers: int = Field(6, gt=0, description="how many, the last ones, cross-attend (point 37)")
    dropout: float = Field(0.1, ge=0, lt=1, description="in text encoder, fusion and decoder; the ViT has none")

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelSpec:
        for name in ("image_heads", "text_heads", "fusion_heads"):
            if self.width % getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)} does not divide width {self.width}; change one of them")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}; change one")
        if self.image_form == "lite0" and self.patch_size != 32:
            raise ValueError(f"patch_size {self.patch_size}: a place of EfficientNet-lite0's map is 32 pixels; set 32")
        if self.decoder_cross_layers > self.decoder_layers:
            raise ValueError(f"decoder_cross_layers {self.decoder_cross_layers} exceeds decoder_layers; lower it")
        return self

    @property
    def stored_side(self) -> int:
        """Short side of the prepared images, pixels."""
        return stored_side(self.image_size)
