"""Several processes that learn as one: what neither DDP nor FSDP does for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Mean over all processes of the gradients of weights that no wrapper knows of, in one message; none may lack one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def most(count: int, device: torch.device) -> int:
    """The largest count that any process has."""
    found = torch.tensor(count, device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def from_main(value: Any) -> Any:
    """What the main process knows, whatever the others gave."""
    told = [value]
    distributed.broadcast_object_list(told, src=0)
    return told[0]
