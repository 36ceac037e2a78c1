"""The optimizer; and how it needs less room: it can step within the backward pass, or take gradients that wait as bf16."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dovetail.config import Training
from dovetail.edges import machine
from dovetail.engines import sharding
from dovetail.engines.fused import copies, kernels
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


class Descent:
    """AdamW's step and that of the averages, of all weights or some: on a CPU one walk through memory for both."""

    def __init__(self, optimizer: Any, parameters: list[torch.nn.Parameter], average: list[Tensor] | None) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self.averages = None if average is None else dict(zip(parameters, average, strict=True))
        inner = getattr(optimizer, "optimizer", optimizer)
        every = (*parameters, *(average or []))
        here = all(type(x.data) is Tensor and x.device.type == "cpu" for x in every)
        plain = all(x.dtype == torch.float32 and x.is_contiguous() for x in every)
        self.walks = type(inner) is torch.optim.AdamW and here and plain and kernels.there()
        self.factor: float | Tensor = 1.0

    def clip(self, most: float) -> Tensor:
        """Norm of all gradients; the next step scales them to `most` where it is more."""
        norm = torch.linalg.vector_norm(self.norms([p.grad for p in self.parameters if p.grad is not None]))
        self.factor = clipping(norm, most)
        return norm

    def norms(self, gradients: list[Tensor]) -> Tensor:
        """Of each, float32; all are of one type."""
        if self.walks:
            return kernels.norms(gradients)
        return torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients])

    def step(self, share: float | None) -> None:
        """All weights that have a gradient; and their averages by `share` towards them."""
        parameters = [p for p in self.parameters if p.grad is not None]
        self.some(parameters, [p.grad for p in parameters], self.factor, share)

    def some(
        self, parameters: list[Any], gradients: list[Any], factor: float | Tensor = 1.0, share: float | None = None
    ) -> None:
        """Those of `parameters`, by float32 or bf16 gradients times `factor`."""
        if self.walks:
            for dtype in (torch.float32, torch.bfloat16):
                chosen = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g.dtype == dtype]
                self._walk([p for p, _ in chosen], [g for _, g in chosen], factor, share)
            return
        (group,) = self.optimizer.param_groups
        every, group["params"] = group["params"], parameters
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.float() if isinstance(factor, float) and factor == 1 else gradient.float().mul_(factor)
        self.optimizer.step()
        group["params"] = every
        if share is not None:
            self.average(share, parameters)

    def average(self, share: float, parameters: list[Any] | None = None) -> None:
        """The averages alone."""
        parameters, averages = parameters or self.parameters, self.averages or {}
        if self.walks:
            self._walk(parameters, None, 1.0, share)
            return
        told = [averages[p] for p in parameters]
        torch._foreach_lerp_(told, [sharding.local(p).to(a.device) for p, a in zip(parameters, told, strict=True)], share)

    def _walk(self, parameters: list[Any], gradients: list[Tensor] | None, factor: Any, share: float | None) -> None:
        (group,) = self.optimizer.param_groups
        averages = [self.averages[p] for p in parameters] if share is not None and self.averages else None
        state: list[list[Tensor]] = []
        if gradients is not None:
            states = [self.optimizer.state.get(p) or self._begin(p) for p in parameters]
            state = [[s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        numbers = group["lr"], group["weight_decay"], *group["betas"], group["eps"], factor, share or 0.0
        beside = copies.parts(parameters) if gradients is not None else ()
        kernels.adamw(parameters, gradients, state, averages, numbers, beside)
        if gradients is not None:
            copies.written(parameters)

    def _begin(self, parameter: Any) -> dict[str, Tensor]:
        """What is known of a weight before its first step, as PyTorch's own keeps it."""
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        self.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        return self.optimizer.state[parameter]


def clipping(norm: Tensor, most: float) -> float | Tensor:
    """What gradients of that norm are to be multiplied by; a GPU is not waited for."""
    if not math.isfinite(most):
        return 1.0
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    return float(factor) if factor.device.type == "cpu" else factor


class Within:
    """Each weight is updated as soon as its gradient is whole, which is then given back (Lv et al. 2023, LOMO, sec. 3.1)."""

    def __init__(self, parameters: list[torch.nn.Parameter], descent: Descent) -> None:
        self.descent, self.on = descent, False
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
        self.descent.some([parameter], [parameter.grad])  # others may have gradients of micro-batches before
        parameter.grad = None


def packed(unet: torch.nn.Module, descent: Descent, config: Training, accelerator: Accelerator, little: int) -> "Packed | None":
    """Gradients that wait as bf16, where one process teaches a whole U-Net and it is faster, or saves over `little` bytes."""
    bf16 = accelerator.mixed_precision == "bf16" and config.method == "full" and not config.text_encoder
    alone = accelerator.num_processes == 1 and not config.fused_backward
    much = descent.walks or 4 * sum(p.numel() for p in unet.parameters()) > little
    return Packed(unet, descent) if bf16 and alone and much else None


class Packed:
    """Gradients wait as bf16 where bf16 arithmetic gave them: the same numbers in half of the room.

    Autocast hands the weights of convolutions and linear layers bf16 numbers written as float32. What a second backward pass
    adds to them is added, and kept, in float32. The weights are updated a few at a time, and their gradients given back.
    """

    CHUNK = 2**23  # numbers that are worked on at once where they must be float32 then
    SLACK = 2**24  # bytes that may be held beyond what was held when freed memory last went back, where it is `thrifty`

    def __init__(self, unet: torch.nn.Module, descent: Descent) -> None:
        self.descent, self.thrifty, self.held, self.room = descent, False, 0, 0
        self.factor: float | Tensor = 1.0
        self.kept: dict[Tensor, Tensor] = {}
        layers = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        self.cast = {layer.weight for layer in layers if layer.weight.requires_grad}
        learning = [p for p in unet.parameters() if p.requires_grad]
        for parameter in learning:
            parameter.register_post_accumulate_grad_hook(self._take)
            parameter.taken_by = partial(self._keep, parameter)  # type: ignore[attr-defined]

    def clip(self, most: float) -> Tensor:
        """Norm of all gradients, in the order of the parameters; the next step scales them to `most` where it is more."""
        waiting = [self.kept[p] for p in self.descent.parameters if p in self.kept]
        norms = torch.empty(len(waiting), device=waiting[0].device)
        for dtype in {x.dtype for x in waiting}:
            alike = [n for n, x in enumerate(waiting) if x.dtype == dtype]
            norms[alike] = self.descent.norms([waiting[n] for n in alike])
        norm = torch.linalg.vector_norm(norms)
        self.factor = clipping(norm, most)
        return norm

    def step(self, share: float | None) -> None:
        """Update the weights, and their averages by `share` towards them."""
        for some in self._chunks():
            self.descent.some(some, [self.kept.pop(p) for p in some], self.factor, share)
            for parameter in some:
                parameter.grad = None

    def forget(self) -> None:
        """What was taken."""
        self.kept.clear()
        if self.thrifty:
            self.thrift()

    def thrift(self) -> None:
        """Give freed memory back from now on where more is held than the gradients will need."""
        machine.give_memory_back()
        self.thrifty, self.held = True, machine.held_bytes()
        self.room = self.held + sum(2 * p.numel() for p in self.descent.parameters)

    @contextmanager
    def parts(self, layer: torch.nn.Module) -> Iterator[None]:
        """Gradients of a layer that come in several parts of one pass are one gradient: bf16 numbers when all are there."""
        fresh = [p for p in layer.parameters() if p in self.cast and p not in self.kept]
        yield
        for parameter in fresh:
            if parameter in self.kept:
                self.kept[parameter] = self.kept[parameter].bfloat16()
        self._give_back()

    def _chunks(self) -> Iterator[list[Tensor]]:
        some: list[Tensor] = []
        for parameter in [p for p in self.descent.parameters if p in self.kept]:
            if some and not self.descent.walks and sum(p.numel() for p in some) + parameter.numel() > self.CHUNK:
                yield some
                some = []
            some.append(parameter)
        if some:
            yield some

    def _take(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            alone = parameter in self.cast and parameter not in self.kept
            self._keep(parameter, gradient.bfloat16() if alone else gradient)

    def _keep(self, parameter: Tensor, gradient: Tensor) -> None:
        if parameter in self.kept:
            gradient = gradient.float().add_(self.kept[parameter])
        self.kept[parameter] = gradient
        self._give_back()

    def _give_back(self) -> None:
        """Freed memory, where there is likely some."""
        if self.thrifty and machine.held_bytes() > max(self.room, self.held + self.SLACK):
            machine.give_memory_back()
            self.held = machine.held_bytes()
