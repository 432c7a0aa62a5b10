"""The run specification: everything that determines a result, strictly validated.

Every reading of a point that the paper leaves open is a field here, with the default and the alternatives in its
description; `python -m amif_lib settings` lists them all, point by point. What a run's result does not depend on
(processes, device, micro-batch, machine) is not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from amif_lib.core import paths
from amif_lib.core.settings import Strict
from amif_lib.methods.amif.settings import KnowledgeSpec, ObjectiveSpec
from amif_lib.methods.amif.teacher_spec import TeacherSpec
from amif_lib.networks.sizes import ModelSpec


class InitSpec(Strict):
    """Where weights start: `random`, a hub id, or a local folder in the same (Hugging Face) format.

    Image and text encoder may also start from an open_clip model's towers: `open_clip:SOURCE`, SOURCE as in
    `teacher.source`, or `teacher`, which is the run's own teacher (Table 4, row 2).
    """

    image: str = Field(
        "openai/clip-vit-base-patch16",
        description="CLIP ViT-B/16 (paper); `open_clip:SOURCE` or `teacher` take a ViT of open_clip or timm, whose form "
        "`model.image_form` must be",
    )
    text: str = Field(
        "emilyalsentzer/Bio_ClinicalBERT",
        description="'ClinicalBERT': Bio_ClinicalBERT, or medicalai/ClinicalBERT (a DistilBERT, converted); "
        "`open_clip:SOURCE` or `teacher` take a BERT (BiomedCLIP's), word rows by piece; open_clip's own causal text "
        "transformer has no counterpart here and is refused",
    )
    decoder: str = Field(
        "emilyalsentzer/Bio_ClinicalBERT", description="as the text encoder; cross-attention random (point 38)"
    )
    co_attention: str = Field(
        "random",
        description="where co-attention starts before the stage that first trains it (stage 2; fine-tuning without a "
        "stage 2): random, or a run id or folder whose `model/` has one of this size (point 11)",
    )
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
    """What is trained on, and how images and texts are cut and augmented."""

    pretrain: tuple[str, ...] = Field((), description="manifest names of the pre-training sets")
    merge: Literal["concatenated", "balanced"] = Field(
        "concatenated",
        description="several pre-training sets: concatenated and shuffled, or an epoch of the same length that draws "
        "equally from each, small sets several times and large ones in part (point 51)",
    )
    questions: str = Field("", description="manifest name of the question set")
    tokenizer_questions: tuple[str, ...] = Field(
        (), description="question sets whose training texts a trained tokenizer sees"
    )
    training_file: str = Field(
        "default",
        description="which questions, the first being the default. VQA-RAD: official1797, published3064 (as published, "
        "leaks), clean2772, image_disjoint; PathVQA: official, deduplicated; VQA-Med-2019: all, without_abnormality",
    )
    language: Literal["en", "zh", "en+zh"] = Field("en", description="SLAKE's questions; the other sets are English")
    allow_cross_language: bool = Field(
        False, description="permits en+zh, which trains on test images: SLAKE's languages split the images differently"
    )
    decontaminate_against: tuple[str, ...] = Field(
        (), description="sets whose images must not be pre-trained on; the whole case, study or article is dropped"
    )
    decontaminate_absent: Literal["error", "skip"] = Field(
        "error", description="a protected set that is not on disk: an error, or left out (stored in the run's metrics)"
    )
    repeated_articles: Literal["keep", "drop"] = Field(
        "keep",
        description="studies of an article (PMCID, DOI) that an earlier pre-training set has: ROCO and MedICaT overlap",
    )
    text_length: int = Field(128, gt=4, description="tokens of a report, with [CLS] and [SEP]; M3AE has 64 (point 46)")
    question_length: int = Field(
        32, gt=4, description="tokens of a question, with [CLS] and [SEP]; longer ones are cut"
    )
    answer_length: int = Field(
        32, gt=2, description="tokens of an answer, with [CLS] and [SEP]; longer ones are cut and counted"
    )
    report_sections: Literal["findings+impression", "findings", "impression"] = Field(
        "findings+impression",
        description="which sections of a report are its text, where a set has sections (point 46)",
    )
    medicat_figures: Literal["radiology", "all"] = Field(
        "radiology", description="the figures that MedICaT's release flags as radiology (M3AE), or all 217,060"
    )
    max_missing_images: float = Field(
        0.1, ge=0, lt=1, description="share of the images listed by ROCO and MedICaT that may be absent; left out"
    )
    single_view_studies: Literal["augment", "drop"] = Field(
        "augment",
        description="studies with one image in a set where others have several (MIMIC-CXR): augment the image twice "
        "(section 3.1), or leave the study out; sets of single images are always augmented (point 45)",
    )
    augment_single_view: Literal["strong", "light", "none"] = Field(
        "strong", description="SimCLR-style views where a study has one image (paper section 4.1) (point 44)"
    )
    augment_multi_view: Literal["strong", "light", "none"] = Field(
        "light", description="a study with several images (point 44)"
    )
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

    @property
    def question_settings(self) -> dict[str, Any]:
        """What `datasets.load_questions` takes beside the set's name."""
        return {key: getattr(self, key) for key in ("training_file", "language", "allow_cross_language")}


class TrainSpec(Strict):
    """Optimisation; AdamW."""

    epochs: int = Field(20, gt=0, description="passes over the data")
    batch_size: int = Field(256, gt=0, description="global, over all processes (point 6)")
    learning_rate: float = Field(4e-6, gt=0, description="highest, after warm-up (point 48)")
    fusion_multiplier: float = Field(
        1.0, gt=0, description="learning-rate factor of modules that start at random; M3AE has 5 (point 48)"
    )
    weight_decay: float = Field(0.01, ge=0, description="on matrices; ALBEF has .02")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's (M3AE's)")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of steps with a rising learning rate; 0: none (point 49)")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="learning rate after warm-up: down to 0 in a line or a cosine, or level (point 49)"
    )
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="bf16 on a GPU and else fp32, or one of them everywhere; fp16 with loss scaling on a GPU only. Losses "
        "and transport always fp32 (point 50)",
    )
    epoch_choice: Literal["last", "best_validation"] = Field(
        "last",
        description="fine-tuning: the weights after the last epoch, or after the epoch with the lowest loss on validation "
        "questions, where the set has some; never by the test set (point 43)",
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

    @model_validator(mode="after")
    def _fits_together(self) -> RunSpec:
        o, m = self.objective, self.model
        if (
            self.stage == "stage2"
            and o.marginals == "attention"
            and (m.co_attention == "one_way" or not m.fusion_layers)
        ):
            raise ValueError("objective.marginals 'attention' needs both sides to attend; change model.co_attention")
        if self.stage != "finetune" and o.queue and o.labels == "soft" and self.teacher and self.teacher.cross_fit:
            raise ValueError(
                "objective.queue mixes folds, whose teacher embeddings differ; set it or teacher.cross_fit to 0"
            )
        if self.starts_from_teacher:
            t = self.teacher
            if t is None:
                raise ValueError(
                    "init: 'teacher' needs a `teacher` section in the run; give one, or name open_clip:SOURCE"
                )
            if t.cross_fit or t.noise or t.source.startswith("file:"):
                raise ValueError(
                    "init: 'teacher' needs a teacher with one pair of towers: no cross_fit, no noise, no file of embeddings"
                )
        return self

    @property
    def starts_from_teacher(self) -> bool:
        """Whether encoders start from the run's own teacher: where `init` says so and no parent gives the weights."""
        return self.parent is None and "teacher" in (self.init.image, self.init.text)

    @property
    def trains_towers(self) -> bool:
        """Whether those towers are of a teacher that the kit trains, so that its data decides the result."""
        return self.starts_from_teacher and self.teacher is not None and self.teacher.source == "trained"

    @property
    def run_id(self) -> str:
        from amif_lib.experiments.rows import run_id

        return run_id(self)

    @property
    def directory(self) -> Path:
        return paths.run_dir(self.run_id)

    @property
    def loads_co_attention(self) -> bool:
        """Whether `init.co_attention` is read: the co-attention is trained here and no parent has trained it."""
        return self.stage != "stage1" and not any(run.stage == "stage2" for run in self.lineage()[:-1])

    def lineage(self) -> list[RunSpec]:
        """This run and its ancestors, first stage first."""
        return [*(self.parent.lineage() if self.parent else []), self]
