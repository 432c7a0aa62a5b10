"""Run a batch that exceeds memory a few rows at a time, with activation checkpointing; results stay the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_rows(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `forward` of a module that processes each row of a batch independently of the others.

    At most the module's `rows_at_once` rows (`limit_rows`) run at a time, under activation checkpointing if gradients
    are needed. The first dimension of tensors is the batch, or 1 if all rows share it (a blank image); outputs are
    tensors, or tuples and lists of them.
    """

    @functools.wraps(forward)
    def run(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        size = getattr(self, "rows_at_once", 0)
        rows = max(len(x) for x in (*inputs, *named.values()) if isinstance(x, Tensor))
        if not size or rows <= size:
            return forward(self, *inputs, **named)

        def part(x: Any, start: int) -> Any:
            return x[start : start + size] if isinstance(x, Tensor) and len(x) == rows else x  # (B, ...) -> (b, ...)

        parts = []
        for start in range(0, rows, size):
            own = [part(x, start) for x in inputs]
            call = functools.partial(forward, self, **{name: part(x, start) for name, x in named.items()})
            parts.append(checkpoint(call, *own, use_reentrant=False) if torch.is_grad_enabled() else call(*own))
        return _joined(parts)

    run.in_rows = True  # see limit_rows
    return run


def _joined(parts: list[Any]) -> Any:
    """Join the outputs of the parts, tensors or equally nested tuples and lists of them, along the batch."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)  # (b, ...) -> (B, ...)
    return type(parts[0])(_joined(list(each)) for each in zip(*parts, strict=True))


def limit_rows(module: nn.Module, rows: int) -> None:
    """Limit each submodule whose forward is decorated with `in_rows` to `rows` rows at a time; 0: no limit."""
    for part in module.modules():
        if getattr(part.forward, "in_rows", False):
            part.rows_at_once = rows
