"""What training hands to a method: a batch of pre-training samples, or of questions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class PretrainingBatch:
    """B samples of the global batch. Augmentation and `view` are keyed by (seed, step, sample), never by process."""

    views: Tensor  # (B, 2, 3, H, W): two images of the study, or two augmented copies of its only one
    view: Tensor  # (B,): which of the two is V_i
    ids: Tensor  # (B, t): report tokens
    mask: Tensor  # (B, t)
    copy_ids: Tensor  # (B, t): the same report with tokens masked out, the text side's positive
    view_label: Tensor  # (B, 2): view name and kind of augmentation of each view, as a number
    group: Tensor  # (B,): case or study; equal numbers are never negatives of each other
    text_key: Tensor  # (B,): equal numbers mean identical text
    teacher_views: Tensor | None  # (B, 2, e): unit-length teacher embeddings of the two views
    teacher_text: Tensor | None  # (B, e)
    step: int
    fold: int = 0  # of the teacher, the same for all samples
    halves_ids: Tensor | None = None  # (B, 2, t'): first and second half of the report as texts of their own
    halves_mask: Tensor | None = None  # (B, 2, t')
    mlm_ids: Tensor | None = None  # (B, t): the report with tokens to be predicted masked or replaced
    mlm_chosen: Tensor | None = None  # (B, t): which tokens these are

    def to(self, device: torch.device) -> PretrainingBatch:
        return PretrainingBatch(
            **{
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in vars(self).items()
            }
        )

    def pin_memory(self) -> PretrainingBatch:
        """In page-locked memory, from which copies to a GPU run beside its work; a DataLoader calls this."""
        return PretrainingBatch(
            **{name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        )


@dataclass
class QuestionBatch:
    """B questions with their answers; `weight` is 0 on rows that only fill up an uneven split over processes."""

    images: Tensor  # (B, 3, H, W), or (1, 3, H, W) where all are blank
    ids: Tensor  # (B, t)
    mask: Tensor  # (B, t)
    answers: Tensor  # (B, L)
    answer_mask: Tensor  # (B, L)
    weight: Tensor  # (B,)
    total: int  # questions in the global batch

    def split(self, rows: int) -> list[QuestionBatch]:
        """Parts of at most `rows` questions, whose losses add up to that of the whole."""
        batched = {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and len(v) == len(self.ids)}
        return [
            replace(self, **{name: value[start : start + rows] for name, value in batched.items()})
            for start in range(0, len(self.ids), rows)
        ]

    def to(self, device: torch.device) -> QuestionBatch:
        return QuestionBatch(
            **{k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        )

    def pin_memory(self) -> QuestionBatch:
        """In page-locked memory, from which copies to a GPU run beside its work; a DataLoader calls this."""
        return QuestionBatch(**{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in vars(self).items()})
