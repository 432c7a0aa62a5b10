"""One global batch of N samples over P processes: each takes means over its B = N / P rows and all columns.

`gather` sums the gradients that reach a row from all processes, and DistributedDataParallel averages gradients over
processes, which together gives the gradients that one process with N rows would compute.
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
        return torch.cat(parts)  # (B, ...) -> (N, ...)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # the losses of all processes depend on this process's rows
        return gradient[own_rows(len(gradient))]  # (N, ...) -> (B, ...)


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in rank order, with gradients: (B, ...) -> (N, ...). All need x of one shape."""
    if world_size() == 1:
        return x
    if x.dtype == torch.bool:  # some backends cannot send booleans
        return gather(x.to(torch.uint8)).bool()
    return _Gather.apply(x)


def pad_to_common_length(x: Tensor) -> Tensor:
    """x (B, t, ...), padded with zeros to the longest t of all processes, as `gather` needs equal shapes."""
    if world_size() == 1:
        return x
    longest = torch.tensor(x.shape[1], device=x.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return torch.cat([x, x.new_zeros(len(x), int(longest) - x.shape[1], *x.shape[2:])], dim=1)


def own_rows(total: int) -> slice:
    """Which of the `total` rows of a gathered tensor are this process's."""
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
    """The first process's choice, on every process: where clocks differ, some would wait for the others forever."""
    return bool(gather_objects(choice)[0])
