"""Products of tokens and pictures with weights, there and back: bf16 by tiles where the processor has them, else PyTorch's.

Tokens are (..., width), pictures (b, c, h, w) in channels-last layout, bf16 and dense; weights are bf16, or float32 as they
lie: they become bf16 as they are read.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dovetail.engines.fused import kernels

CACHED = 1 << 18  # numbers of a gated layer's second matrix, up to which the cache has what its way back wants
WIDEST = 1 << 16  # numbers of a row, at most: the sources have room for its zeros


def tiled() -> bool:
    """Whether there are tiles: weights may stay float32 then, and those of 3 x 3 places have products of their own."""
    return kernels.tiles() is not None


def _tiled(x: Tensor, *widths: int) -> bool:
    return tiled() and x.dtype == torch.bfloat16 and x.is_cpu and max(widths) <= WIDEST


def _single(weight: Tensor) -> bool:
    return weight.dtype == torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
    """x (..., in) weight^T (out, in) + bias + what is `beside`, (..., out)."""
    out, width = weight.shape
    if not _tiled(x, out, width):
        y = functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return y if beside is None else y.add_(beside)
    x, y, bias = x.contiguous(), x.new_empty(*x.shape[:-1], out), None if bias is None else bias.float()
    told = kernels.at(x, weight, bias, beside, y)
    kernels.tiles().tile_linear(*told, x.numel() // width, width, out, _single(weight))
    return y


def back(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient (..., in) of what became (..., out) by weight (out, in)."""
    out, width = weight.shape
    if not _tiled(gradient, out, width):
        return gradient @ weight.to(gradient.dtype)
    gradient, x = gradient.contiguous(), gradient.new_empty(*gradient.shape[:-1], width)
    kernels.tiles().tile_back(*kernels.at(gradient, weight, x), x.numel() // width, width, out, _single(weight))
    return x


def outer(gradient: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Gradient (out, in) of weights, of (..., out) and (..., in): numbers of their kind, as `dtype` if asked for."""
    out, width, dtype = gradient.shape[-1], x.shape[-1], dtype or x.dtype
    if not _tiled(x, out, width) or not x.numel():
        return (gradient.flatten(0, -2).T @ x.flatten(0, -2)).to(dtype)
    gradient, x, weight = gradient.contiguous(), x.contiguous(), torch.empty(out, width, dtype=dtype)
    kernels.tiles().tile_outer(*kernels.at(gradient, x, weight), x.numel() // width, width, out, _single(weight))
    return weight


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, beside: Tensor | None = None) -> Tensor:
    """A picture (b, in, h, w) by weights of 3 x 3 places, zeros around, (out, in 9) as they lie; + bias + what is `beside`."""
    b, c, h, w = x.shape
    y = _empty(b, len(weight), -(-h // stride), -(-w // stride))
    kernels.tiles().tile_conv(*kernels.at(x, weight, bias, beside, y), b, h, w, c, len(weight), stride, _single(weight))
    return y


def conv_back(gradient: Tensor, weight: Tensor, like: Tensor, stride: int) -> Tensor:
    """Gradient of a picture such as `like`."""
    b, c, h, w = like.shape
    x = _empty(b, c, h, w)
    kernels.tiles().tile_conv_back(*kernels.at(gradient, weight, x), b, h, w, c, len(weight), stride, _single(weight))
    return x


def conv_outer(gradient: Tensor, x: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    """Gradient (out, in, 3, 3) of the weights, bf16 numbers, as float32 if asked for."""
    (b, c, h, w), out = x.shape, gradient.shape[1]
    weight = torch.empty(out, c, 3, 3, dtype=dtype)
    told = kernels.at(gradient, x, weight)
    kernels.tiles().tile_conv_outer(*told, b, h, w, c, out, stride, _single(weight))
    return weight


def gates(x: Tensor, into: Tensor) -> bool:
    """Whether a gated layer is best done as a whole, of tokens (..., width) by `into` (2 inner, width).

    It takes tiles, and the time to lay out weights, which few tokens do not pay back.
    """
    inner, width = len(into) // 2, into.shape[1]
    fits = width % 32 == 0 and inner % 32 == 0 and width * inner <= CACHED
    return fits and _tiled(x, width) and 2 * x.numel() >= 3 * width**2


def gated(x: Tensor, into: Tensor, first: Tensor, out: Tensor, last: Tensor, beside: Tensor) -> Tensor:
    """(value gelu(gate)) out^T + last + what is `beside`; value and gate are the halves of x into^T + first."""
    y, (width, inner) = torch.empty_like(x), out.shape
    told = kernels.at(x, into, first.float(), out, last.float(), beside, y)
    kernels.tiles().tile_gated(*told, x.numel() // width, width, inner, _single(into))
    return y


def gated_back(
    gradient: Tensor, x: Tensor, into: Tensor, first: Tensor, out: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of `into` and `out` (bf16 numbers as `dtype`) and of `first` (float32) between them."""
    width, inner = out.shape
    found = (
        torch.empty_like(x),
        torch.empty(into.shape, dtype=dtype),
        torch.empty(2 * inner),
        torch.empty(out.shape, dtype=dtype),
    )
    told = kernels.at(gradient, x, into, first.float(), out, *found)
    kernels.tiles().tile_gated_back(*told, x.numel() // width, width, inner, _single(into), dtype == torch.float32)
    return found


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
