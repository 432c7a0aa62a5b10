"""Fine-tuning: conditional language modelling of the answer (section 3.4.2)."""

from __future__ import annotations

from torch import Tensor, nn

from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.batch import QuestionBatch
from amif_lib.objectives.distributed import world_size


class FineTuning(nn.Module):
    """The Med-VQA network with its loss."""

    def __init__(self, model: AMiFForVQA):
        super().__init__()
        self.model = model
        self.weights = {"answer": 1.0}

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """Mean over the questions of the global batch; the factor undoes the mean that processes take of gradients."""
        loss = self.model(batch.images, batch.ids, batch.mask, batch.answers, batch.answer_mask)  # (B,)
        return {"answer": (loss * batch.weight).sum() * world_size() / batch.total}
