"""Fine-tuning's loss and the batch that it reads (paper section 3.4.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.objectives.distributed import world_size


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


class FineTuning(nn.Module):
    """The Med-VQA network with its loss: conditional language modelling of the answer (section 3.4.2)."""

    def __init__(self, model: AMiFForVQA):
        super().__init__()
        self.model = model

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """Mean over the questions of the global batch; the factor undoes the mean that processes take of gradients."""
        loss = self.model(batch.images, batch.ids, batch.mask, batch.answers, batch.answer_mask)  # (B,)
        return {"total": (loss * batch.weight).sum() * world_size() / batch.total}
