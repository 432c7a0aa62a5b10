"""One global batch over P processes: each takes means over its B/P rows against the columns of all.

`gather` sums the gradients that reach a row from every process, and DistributedDataParallel averages over processes:
together what one process with B rows computes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
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
        return gradient[own_rows(len(gradient))]  # (B, ...) -> (B/P, ...)


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in rank order, with gradients: (B/P, ...) -> (B, ...). All must bring the same shape."""
    if world_size() == 1:
        return x
    if x.dtype == torch.bool:  # not every backend sends booleans
        return gather(x.to(torch.uint8)).bool()
    return _Gather.apply(x)


def pad_to_common_length(x: Tensor) -> Tensor:
    """(B, t, ...) padded with zeros to the longest t of all processes, so that `gather` can stack it."""
    if world_size() == 1:
        return x
    longest = torch.tensor(x.shape[1], device=x.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return torch.cat([x, x.new_zeros(len(x), int(longest) - x.shape[1], *x.shape[2:])], dim=1)


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
    """The first process's choice, on every process: clocks differ, and all or none must enter a collective."""
    return bool(gather_objects(choice)[0])
