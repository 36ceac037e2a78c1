"""The optimizer; and how it needs less room: it can step within the backward pass, or take gradients that wait as bf16."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dovetail.config import Training
from dovetail.edges import machine
from dovetail.errors import BadConfigError


def adamw(parameters: list[torch.nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """AdamW; the learning rate is set anew at each step."""
    told: dict[str, Any] = {
        "lr": 1.0, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }  # fmt: skip
    if not config.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=True, **told)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise BadConfigError("8-bit Adam needs bitsandbytes", do="pip install bitsandbytes, or leave use_8bit_adam") from error
    return AdamW8bit(parameters, **told)


class Within:
    """Each weight is updated as soon as its gradient is whole, which is then given back (Lv et al. 2023, LOMO, sec. 3.1)."""

    def __init__(self, parameters: list[torch.nn.Parameter], optimizer: Any) -> None:
        self.optimizer, self.on = optimizer, False
        self.squares = torch.zeros((), device=parameters[0].device)
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._update)

    @property
    def begun(self) -> bool:
        """Whether any weight was updated since the norm was last asked for."""
        return bool(self.squares > 0)

    def norm(self) -> float:
        """Of all gradients since it was last asked for."""
        found = float(self.squares.sqrt())
        self.squares.zero_()
        return found

    def _update(self, parameter: torch.Tensor) -> None:
        if not self.on or parameter.grad is None:
            return
        self.squares += torch.linalg.vector_norm(parameter.grad).float().square()
        (group,) = self.optimizer.param_groups
        every, group["params"] = group["params"], [parameter]  # others may have gradients of micro-batches before
        self.optimizer.step()
        group["params"], parameter.grad = every, None


def packed(unet: torch.nn.Module, optimizer: Any, config: Training, accelerator: Accelerator, little: int) -> "Packed | None":
    """Gradients that wait as bf16, where one process teaches a whole U-Net and they take more than `little` bytes."""
    bf16 = accelerator.mixed_precision == "bf16" and config.method == "full" and not config.text_encoder
    alone = accelerator.num_processes == 1 and not config.fused_backward
    much = 4 * sum(p.numel() for p in unet.parameters()) > little
    return Packed(unet, optimizer) if bf16 and alone and much else None


class Packed:
    """Gradients wait as bf16 where bf16 arithmetic gave them: the same numbers in half of the room.

    Autocast hands the weights of convolutions and linear layers bf16 numbers written as float32. What a second backward pass
    adds to them is added, and kept, in float32. The weights are updated a few at a time, and their gradients given back.
    """

    CHUNK = 2**23  # numbers whose gradients are float32 at once
    OFTEN = 4  # parameters, however small, after which freed memory goes back

    def __init__(self, unet: torch.nn.Module, optimizer: Any) -> None:
        self.optimizer, self.factor, self.freed = optimizer, 1.0, 0
        self.kept: dict[Tensor, Tensor] = {}
        self.norms: dict[Tensor, Tensor] = {}
        layers = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        self.cast = {p for layer in layers for p in layer.parameters(recurse=False) if p.requires_grad}
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._take)

    def clip(self, most: float) -> float:
        """Norm of all gradients, in the order of the parameters; the next step scales them to `most` where it is more."""
        norms = [self.norms[p] for p in self.optimizer.param_groups[0]["params"] if p in self.kept]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.factor = float((most / (norm + 1e-6)).clamp(max=1.0)) if math.isfinite(most) else 1.0
        return float(norm)

    def step(self) -> None:
        """Update the weights."""
        (whole,) = self.optimizer.param_groups
        every = whole["params"]
        for some in self._chunks():
            for parameter in some:
                parameter.grad = self.kept.pop(parameter).float().mul_(self.factor)
            whole["params"] = some
            self.optimizer.step()
            for parameter in some:
                parameter.grad = None
                self._freed(parameter)
        whole["params"] = every

    def _chunks(self) -> Iterator[list[Tensor]]:
        some: list[Tensor] = []
        for parameter in [p for p in self.optimizer.param_groups[0]["params"] if p in self.kept]:
            if some and sum(p.numel() for p in some) + parameter.numel() > self.CHUNK:
                yield some
                some = []
            some.append(parameter)
        if some:
            yield some

    def _take(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if parameter in self.kept:
            self.kept[parameter] = gradient.add_(self.kept[parameter])
        else:
            self.kept[parameter] = gradient.bfloat16() if parameter in self.cast else gradient
        self.norms[parameter] = torch.linalg.vector_norm(gradient)
        self._freed(parameter)

    def _freed(self, parameter: Tensor) -> None:
        """What is freed goes back now and then, or peaks of different sizes would lie beside each other."""
        self.freed += max(parameter.numel(), self.CHUNK // self.OFTEN)
        if self.freed > self.CHUNK and parameter.device.type == "cpu":
            self.freed = 0
            machine.give_memory_back()
