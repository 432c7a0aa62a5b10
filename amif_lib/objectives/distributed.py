"""One global batch over however many processes: a gather that carries gradients, and small helpers.

Every process holds B/P rows. Losses are means over its own rows against the columns of all processes; with
`gather` summing the gradients that reach a row from every process, and DistributedDataParallel averaging over
processes, the result equals one process with B rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


def world_size() -> int:
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process takes itself for the only one: nothing is gathered and nothing is waited for."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)  # (B/P, ...) -> (B, ...)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # what every process's loss says about every row
        return gradient.chunk(world_size())[rank()]  # (B, ...) -> (B/P, ...)


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in rank order: (B/P, ...) -> (B, ...). All processes must bring the same shape."""
    if world_size() == 1:
        return x
    if x.requires_grad:
        return _Gather.apply(x)
    if x.dtype == torch.bool:  # not every backend sends booleans
        return gather(x.to(torch.uint8)).bool()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def pad_to_common_length(x: Tensor, dim: int = 1, value: float = 0) -> Tensor:
    """Pad `dim` at its end to the longest of all processes, so that `gather` can stack it."""
    if world_size() == 1:
        return x
    longest = torch.tensor(x.shape[dim], device=x.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    extra = int(longest) - x.shape[dim]
    if extra == 0:
        return x
    shape = list(x.shape)
    shape[dim] = extra
    return torch.cat([x, x.new_full(shape, value)], dim=dim)


def own_rows(total: int) -> slice:
    """Which rows of a gathered tensor are this process's."""
    share = total // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def gather_objects(item: object) -> list:
    """`item` of every process, in rank order, on every process."""
    if world_size() == 1:
        return [item]
    out: list = [None] * world_size()
    dist.all_gather_object(out, item)
    return out


def agreed(choice: bool) -> bool:
    """The first process's choice, on every process: clocks differ, and a collective must be entered by all or none."""
    return bool(gather_objects(choice)[0])
