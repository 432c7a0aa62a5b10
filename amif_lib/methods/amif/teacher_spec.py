"""The teacher's settings (`RunSpec.teacher`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from amif_lib.core.settings import Strict


class TeacherSpec(Strict):
    """The frozen CLIP-style model whose similarities are the soft labels (section 3.2.1)."""

    source: str = Field(
        "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        description="an open_clip name with tag (ViT-B-16/openai), hub id (hf-hub:...) or `local-dir:` folder; "
        "`hf-clip:` and a hub id or folder of a Hugging Face CLIPModel (PubMedCLIP); `file:` and a Parquet file of embeddings "
        "by sample id (`amif_lib.methods.amif.embedding_files`; relative to DATA_ROOT) for models with code of their own (MedCLIP, "
        "PMC-CLIP); 'trained' is a small open_clip model that the kit trains itself",
    )
    noise: float = Field(
        0.0,
        ge=0,
        description="degrades the embeddings: Gaussian noise of standard deviation noise / sqrt(dimension) per number, keyed "
        "by seed and sample id, then unit length again; the cosine to the clean vector is about 1 / sqrt(1 + noise^2). The "
        "demo's stand-ins for weaker teachers",
    )
    data: tuple[str, ...] = Field((), description="trained teacher: manifest names it is trained on")
    cross_fit: int = Field(
        0,
        ge=0,
        description="trained teacher: 0 trains one model on `data` (which must differ from "
        "the student's), k >= 2 cross-fits k folds by case on the student's own data",
    )
    views: Literal["clean", "augmented"] = Field(
        "clean",
        description="what the teacher sees: the clean image, embedded once, or the student's augmented views, embedded "
        "anew at every step, which is slower (point 47)",
    )
    image_size: int = Field(64, gt=0, description="trained teacher: side of its input, pixels")
    patch_size: int = Field(8, gt=0, description="trained teacher: side of a patch, pixels")
    towers: Literal["open_clip", "student"] = Field(
        "open_clip",
        description="trained teacher: open_clip's own ViT and causal text transformer, or the student's kinds of encoder "
        "(CLIP ViT with QuickGELU, BERT), which `init.image: teacher` can load",
    )
    width: int = Field(128, gt=0, description="trained teacher: width of both towers")
    heads: int = Field(0, ge=0, description="trained teacher: attention heads of each tower; 0: one per 32 of width")
    layers: int = Field(4, gt=0, description="trained teacher: layers of each tower")
    embed_dim: int = Field(64, gt=0, description="trained teacher: dimension of its embeddings")
    text_length: int = Field(64, gt=4, description="trained teacher: tokens of a text")
    epochs: int = Field(8, gt=0, description="trained teacher: epochs")
    batch_size: int = Field(64, gt=1, description="trained teacher: batch size")
    learning_rate: float = Field(5e-4, gt=0, description="trained teacher: highest learning rate")
    seed: int = Field(0, description="trained teacher: seed; also the noise's")

    @model_validator(mode="after")
    def _fits_together(self) -> TeacherSpec:
        if self.views == "augmented" and (self.noise or self.source.startswith("file:")):
            raise ValueError(
                "views 'augmented' needs a model; a file of embeddings, or one with noise, has clean images alone"
            )
        if self.heads and self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}; change one of them")
        return self
