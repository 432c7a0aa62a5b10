"""Fine-tuning: conditional language modelling of the answer (section 3.4.2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from amif_lib.methods.batch import QuestionBatch
from amif_lib.networks import pretrained
from amif_lib.networks.answering import Answerer
from amif_lib.objectives.distributed import world_size


class FineTuning(nn.Module):
    """A Med-VQA network with its loss, the same for all methods."""

    def __init__(self, model: Answerer):
        super().__init__()
        self.model = model
        self.weights = {"answer": 1.0}

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """Mean loss over the global batch's questions."""
        loss = self.model(batch.images, batch.ids, batch.mask, batch.answers, batch.answer_mask)  # (B,)
        # Each process has a part of the sum, but gradients are averaged over processes: hence times their number.
        return {"answer": (loss * batch.weight).sum() * world_size() / batch.total}


def fine_tuning(model: Answerer, spec: Any, tokenizer: Any, notes: dict[str, Any]) -> FineTuning:
    """A network with its loss; its answer decoder gets the starting weights that `init.decoder` names."""
    if spec.init.decoder != "random":
        notes["weights"].append(pretrained.load_decoder(model.decoder, spec.init.decoder, tokenizer))
    notes["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return FineTuning(model)
