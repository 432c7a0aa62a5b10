"""A global batch that does not fit into memory, computed some rows at a time without changing what is minimised [1]_.

Encoders and co-attention run on a few rows at a time and are computed again in the backward pass (`networks.rows`);
the losses see the outputs of all rows. A fine-tuning's loss is a sum over questions: gradients of its parts add up.

References
----------
.. [1] Gao, L., Zhang, Y., Han, J. and Callan, J. (2021). Scaling deep contrastive learning batch size under memory limited
       setup. RepL4NLP, arXiv:2101.06983.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.methods.batch import QuestionBatch
from amif_lib.networks.rows import limit_rows
from amif_lib.objectives.distributed import world_size

log = logging.getLogger(__name__)


class TooManyRows(InputError):
    """One of several processes ran out of memory with `rows` rows at a time; `fewer` are to be tried, by all of them."""

    def __init__(self, rows: int):
        self.fewer = max(1, rows // 2)
        super().__init__(
            f"out of memory with {rows} samples at a time per process; set AMIF_MICRO_BATCH={self.fewer} and start again: "
            "the run continues, with the same objective"
        )


class GradientCache:
    """How many rows a process computes at a time: as many as it holds, or $AMIF_MICRO_BATCH; halved when memory runs out.

    A setting of the machine and not of the run: results differ by rounding, and by the draws of dropout where there is any.
    """

    def __init__(self, module: nn.Module, rows: int):
        text = os.environ.get("AMIF_MICRO_BATCH", "")
        if text and (not text.isdigit() or int(text) < 1):
            raise InputError(f"AMIF_MICRO_BATCH={text!r}: give a whole number of at least 1, or leave it unset")
        self.module, self.whole = module, rows
        self.rows = min(int(text), rows) if text else rows

    def parts(self, batch: Any) -> list[Any]:
        """What is run one after the other: parts of a batch of questions, or a whole pre-training batch, in rows."""
        if isinstance(batch, QuestionBatch):
            return batch.split(self.rows)
        limit_rows(self.module, self.rows if self.rows < self.whole else 0)
        return [batch]

    def step(self, batch: Any, run: Callable[[Any, bool], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of a whole batch with their gradients: `run(part, last)` of each part, again with fewer rows if memory runs out.

        Where several processes train, one cannot start a step again by itself: TooManyRows says what to set, and
        `launch.train` sets it and starts all of them again.
        """
        while True:
            put_back, total = self._snapshot(), {}
            try:
                parts = self.parts(batch)
                for number, part in enumerate(parts, start=1):
                    for name, value in run(part, number == len(parts)).items():
                        total[name] = total.get(name, 0) + value.detach()
                return total
            except torch.OutOfMemoryError:
                if world_size() > 1 and self.rows > 1:
                    raise TooManyRows(self.rows) from None
            self._halve()  # outside the handler, which holds on to what the failed step had in memory
            put_back()

    def _halve(self) -> None:
        if self.rows == 1:
            raise InputError(
                "out of memory with one sample at a time; set a smaller model.image_size or data.text_length, or use a "
                "larger GPU"
            )
        self.rows = (self.rows + 1) // 2
        torch.cuda.empty_cache()
        log.warning("out of memory: %d rows at a time from now on; the objective is that of the whole batch", self.rows)

    def _snapshot(self) -> Callable[[], None]:
        """A function that puts random states and gradients back to what they are now, so that a step can be run again."""
        cpu = torch.get_rng_state()
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

        def put_back() -> None:
            torch.set_rng_state(cpu)
            if gpus:
                torch.cuda.set_rng_state_all(gpus)
            self.module.zero_grad()

        return put_back
