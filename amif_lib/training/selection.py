"""Which epoch of a fine-tuning is kept: the last, or the one with the lowest loss on validation questions, never on test ones."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from amif_lib.core.errors import InputError
from amif_lib.data.records import Question
from amif_lib.experiments.rows import RunSpec
from amif_lib.networks import hub
from amif_lib.objectives.distributed import gather_objects, rank, world_size
from amif_lib.training.batches import QuestionData, loader

log = logging.getLogger(__name__)


def validation_questions(questions: Sequence[Question], spec: RunSpec) -> list[Question]:
    """The validation questions. Raises InputError where the set has none."""
    found = [question for question in questions if question.split == "val"]
    if not found:
        raise InputError(
            f"train.epoch_choice: 'best_validation' needs validation questions and {spec.data.questions} has none (an epoch "
            "is never chosen by the test set); set it to last"
        )
    return found


class BestEpoch:
    """Keeps the weights of the best epoch so far in `best/` of the run's folder, where a cut-off run finds them again."""

    def __init__(self, questions: Sequence[Question], spec: RunSpec, tokenizer: Any, batch_size: int = 32):
        self.data = QuestionData(validation_questions(questions, spec), spec, tokenizer)
        self.folder, self.batch_size = spec.directory / "best", batch_size

    @torch.no_grad()
    def loss(self, module: nn.Module, device: torch.device) -> float:
        """Mean language-modelling loss of the validation answers, without dropout; each process reads its share."""
        own = list(range(rank(), len(self.data), world_size()))
        keys = [[(0, i, 1.0, 1) for i in own[k : k + self.batch_size]] for k in range(0, len(own), self.batch_size)]
        training, total = module.training, 0.0
        module.eval()
        for batch in loader(self.data, keys, workers=0):
            batch = batch.to(device)
            total += float(module.model(batch.images, batch.ids, batch.mask, batch.answers, batch.answer_mask).sum())
        module.train(training)
        return sum(gather_objects(total)) / len(self.data)

    def offer(self, module: nn.Module, epoch: int, device: torch.device) -> float:
        """Evaluate after an epoch; keep its weights if none before was as good. Returns the loss."""
        from safetensors.torch import save_file

        loss = self.loss(module, device)
        if rank() == 0 and loss < self.best()["loss"]:
            aside = self.folder.with_suffix(".part")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            state = {name: value.contiguous() for name, value in module.state_dict().items()}
            save_file(state, aside / "model.safetensors")
            (aside / "best.json").write_text(json.dumps({"epoch": epoch, "loss": loss}), encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            aside.replace(self.folder)
        return loss

    def best(self) -> dict[str, float]:
        """Epoch (from 0) and loss of the best epoch so far."""
        path = self.folder / "best.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"epoch": -1, "loss": float("inf")}

    def forget(self) -> None:
        """Drop what an earlier attempt left behind."""
        if rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def restore(self, module: nn.Module) -> dict[str, float]:
        """Put the best epoch's weights into the module; returns which it was."""
        gather_objects(None)  # wait until they are written
        found = self.best()
        hub.load_into(module, hub.read_state(self.folder), "best epoch")
        log.info("epoch %d of the fine-tuning is kept: validation loss %.4f", found["epoch"] + 1, found["loss"])
        return found
