"""Gradient caching: train on a batch that does not fit into memory, with the same objective.

Encoders, fusion and the answering network run on a few rows at a time and are computed again in the backward pass
(`networks.rows`), while the losses see the outputs of all rows (Gao et al., 2021, arXiv:2101.06983).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.networks.rows import limit_rows
from amif_lib.objectives.distributed import world_size
from amif_lib.training.launch import asked

log = logging.getLogger(__name__)


class GradientCache:
    """How many rows a process computes at a time: all, or $AMIF_MICRO_BATCH; halved when memory runs out.

    It depends on the machine and is no setting of the run: results differ only by rounding and by dropout's draws.
    """

    def __init__(self, module: nn.Module, rows: int):
        self.module, self.rows = module, min(asked("AMIF_MICRO_BATCH") or rows, rows)
        if self.rows < rows:
            limit_rows(module, self.rows)

    def step(self, batch: Any, forward_backward: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
        """`forward_backward(batch)`: losses and their gradients; repeated with fewer rows if memory runs out.

        Raises InputError if a single row does not fit, or in a run of several processes: none can repeat a step alone.
        """
        while True:
            gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            cpu = torch.get_rng_state()
            try:
                return forward_backward(batch)
            except torch.OutOfMemoryError:
                remedy = f"start again with AMIF_MICRO_BATCH={self.rows // 2}"
                if self.rows == 1:
                    remedy = "set a smaller model.image_size or data.text_length, or use a larger GPU"
                if self.rows == 1 or world_size() > 1:
                    raise InputError(f"out of memory with AMIF_MICRO_BATCH={self.rows}; {remedy}") from None
            # outside the handler, which would keep the failed step's tensors in memory
            self.rows = (self.rows + 1) // 2
            limit_rows(self.module, self.rows)
            log.warning("out of memory: %d rows at a time from now on, with the same objective", self.rows)
            torch.cuda.empty_cache()
            torch.set_rng_state(cpu)
            torch.cuda.set_rng_state_all(gpus)
            self.module.zero_grad()
