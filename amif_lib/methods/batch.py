"""What training hands to a method: a batch of pre-training samples, or of questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


class Batch:
    """Tensors, and dictionaries of tensors, that move to a device together."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Any:
        """The same batch with every tensor changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: changed(each) for name, each in value.items()}
            return change(value) if isinstance(value, Tensor) else value

        return replace(self, **changed(vars(self)))

    def to(self, device: torch.device) -> Any:
        """The same batch on a device."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Any:
        """In page-locked memory, from which copies to a GPU run beside its work; a DataLoader calls this."""
        return self.map(Tensor.pin_memory)


@dataclass
class PretrainingBatch(Batch):
    """This process's B samples of the global batch, with V = 2 views; V = 1 if the losses read only the drawn view."""

    views: Tensor  # (B, V, 3, H, W): images of the study, or augmented copies of its only image
    view: Tensor  # (B,): which view was drawn as V_i
    ids: Tensor  # (B, t): report tokens
    mask: Tensor  # (B, t)
    copy_ids: Tensor  # (B, t): the same report with tokens masked out, the text side's positive
    view_label: Tensor  # (B, V): view name and kind of augmentation of each view, as a number
    group: Tensor  # (B,): case or study; equal numbers are never negatives of each other
    text_key: Tensor  # (B,): equal numbers mean identical text
    step: int
    extras: dict[str, Tensor] = field(default_factory=dict)  # (B, ...) each: what only one method reads


@dataclass
class QuestionBatch(Batch):
    """B questions with their answers; `weight` is 0 in rows that pad an uneven split over processes."""

    images: Tensor  # (B, 3, H, W), or (1, 3, H, W) where all are blank
    ids: Tensor  # (B, t)
    mask: Tensor  # (B, t)
    answers: Tensor  # (B, L)
    answer_mask: Tensor  # (B, L)
    weight: Tensor  # (B,)
    total: int  # questions in the global batch
