"""What the learners of a group do together, over ``torch.distributed``; a learner alone does it by itself.

All but :func:`place` are collective: every learner must call them, equally often and in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def learners() -> int:
    """How many learners there are; 1 outside a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """The sum over learners."""
    if learners() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def most(number: int, device: torch.device) -> int:
    """The largest of the learners' numbers."""
    if learners() == 1:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def whole(value: Tensor) -> Tensor:
    """What is sharded over learners as one tensor, on the CPU of the first learner; an empty one on the others."""
    if not isinstance(value, DTensor):
        return value
    gathered = value.full_tensor()
    return gathered.cpu() if dist.get_rank() == 0 else torch.empty(0, dtype=value.dtype)


def place(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor with the device and sharding of another; each learner keeps its part of the tensor that it holds."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value.to(like.device)
