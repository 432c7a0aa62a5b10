"""A global batch that does not fit into memory, computed some rows at a time without changing what is minimised.

Encoders and co-attention run on a few rows at a time and are computed again in the backward pass (`networks.rows`),
while the losses see the outputs of all rows (Gao et al., 2021, arXiv:2101.06983); a fine-tuning's loss is a sum over
questions, and gradients of its parts add up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.methods.batch import QuestionBatch
from amif_lib.networks.rows import limit_rows
from amif_lib.objectives.distributed import world_size
from amif_lib.training.launch import asked

log = logging.getLogger(__name__)


class TooManyRows(InputError):
    """One of several processes ran out of memory with `rows` rows at a time; all are to try `fewer`."""

    def __init__(self, rows: int):
        self.fewer = max(1, rows // 2)
        super().__init__(f"out of memory with {rows} samples at a time; start again with AMIF_MICRO_BATCH={self.fewer}")


class GradientCache:
    """How many rows a process computes at a time: all, or $AMIF_MICRO_BATCH; halved when memory runs out.

    A setting of the machine and not of the run: results differ by rounding, and by the draws of dropout.
    """

    def __init__(self, module: nn.Module, rows: int):
        self.module, self.whole = module, rows
        self.rows = min(asked("AMIF_MICRO_BATCH") or rows, rows)

    def step(self, batch: Any, run: Callable[[Any, bool], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of a whole batch with their gradients: `run(part, last)` of each part.

        Where memory runs out, again with fewer rows; of several processes none can do so alone, and `launch.train`
        starts all of them again on TooManyRows.
        """
        while True:
            gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            cpu, total = torch.get_rng_state(), {}
            try:
                for number, part in enumerate(parts := self._parts(batch), start=1):
                    for name, value in run(part, number == len(parts)).items():
                        total[name] = total.get(name, 0) + value.detach()
                return total
            except torch.OutOfMemoryError:
                if world_size() > 1 and self.rows > 1:
                    raise TooManyRows(self.rows) from None
            # outside the handler, which holds on to what the failed step had in memory
            if self.rows == 1:
                remedy = "set a smaller model.image_size or data.text_length, or use a larger GPU"
                raise InputError(f"out of memory with one sample at a time; {remedy}")
            self.rows = (self.rows + 1) // 2
            torch.cuda.empty_cache()
            log.warning("out of memory: %d rows at a time from now on; the objective is the whole batch's", self.rows)
            torch.set_rng_state(cpu)
            torch.cuda.set_rng_state_all(gpus)
            self.module.zero_grad()

    def _parts(self, batch: Any) -> list[Any]:
        """What is run one after the other: parts of a batch of questions, or a whole pre-training batch, in rows."""
        if isinstance(batch, QuestionBatch):
            return batch.split(self.rows)
        limit_rows(self.module, self.rows if self.rows < self.whole else 0)
        return [batch]
