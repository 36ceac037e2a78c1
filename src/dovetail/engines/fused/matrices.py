"""How pictures, tokens and weights lie in memory where they are multiplied: bf16, channels last."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear

from dovetail.engines.fused import copies, kernels, products

MANY = 1 << 21  # weights of a layer that are not kept as bf16 for the way back: to make them once more is little of its work


def bare(*layers: Any) -> bool:
    """Whether all are what they say: a layer with an adapter is another class."""
    return all(type(x) in (Conv2d, Linear, GroupNorm, LayerNorm) for x in layers)


def picture(x: Tensor) -> Tensor:
    """bf16, channels last."""
    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def tokens(x: Tensor) -> Tensor:
    """The same memory as (b, h, w, c)."""
    return x.permute(0, 2, 3, 1)


def matrix(*weights: Tensor) -> Tensor:
    """Weights (out, in) below each other, bf16, or one as it is; those of a convolution are (out, in places)."""
    if (copy := copies.of(weights)) is not None:
        return copy
    if len(weights) == 1:
        one = weights[0].flatten(1)
        return one if products.tiled() else one.to(torch.bfloat16)
    below = torch.empty(sum(map(len, weights)), weights[0][0].numel(), dtype=torch.bfloat16)
    for part, weight in zip(below.split([len(w) for w in weights]), weights, strict=True):
        if weight.dtype == torch.float32 and weight.is_contiguous() and kernels.there():
            kernels.halve(weight, part)
        else:
            part.copy_(weight.flatten(1))
    return below


def kept(weights: Tensor) -> Tensor | None:
    """bf16 weights that a layer keeps for the way back: those that are not many."""
    return weights if weights.numel() <= MANY else None


def wanted(weight: Tensor) -> torch.dtype:
    """How the gradient of a weight is wanted: as float32 by autograd, as it is by who takes it before."""
    return torch.bfloat16 if hasattr(weight, "taken_by") else torch.float32


def handed(weights: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What autograd is given of the gradients of weights: nothing where a weight's is `taken_by` someone as it is."""
    given: list[Tensor | None] = []
    for weight, gradient in zip(weights, gradients, strict=True):
        if weight is None or gradient is None or not weight.requires_grad:
            given.append(None)
        elif hasattr(weight, "taken_by"):
            weight.taken_by(gradient.view(weight.shape))
            given.append(None)
        elif gradient.dtype == weight.dtype and gradient.shape == weight.shape:
            given.append(gradient)
        else:
            given.append(gradient.float().view(weight.shape))
    return given
