"""The gated feed-forward layers of a U-Net on a CPU, there and back: a few tokens at a time where there are many.

Their inner width is eight times the tokens' own: of a large picture it is the largest that a step would keep. Here nothing of
it is kept: both ways go through pieces that the cache holds, and the way back makes each piece again.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from torch import Tensor
from torch.nn import functional

from dovetail.engines.fused import kernels, products
from dovetail.engines.fused.products import linear, outer

MUCH = 18 << 20  # bytes of the inner width of one call, from which on room is worth more than the time to make it again
AT_ONCE = 4 << 20  # bytes of it that are worked on together


def in_pieces(unet: torch.nn.Module) -> None:
    """Let its gated feed-forward layers work in pieces; those with adapters, or gated otherwise, stay as they are."""
    for layer in unet.modules():
        if isinstance(layer, FeedForward) and isinstance(layer.net[0], GEGLU):
            layer.forward = partial(_forward, layer)


def _forward(layer: Any, tokens: Tensor, *args: Any, **keys: Any) -> Tensor:
    into, out = layer.net[0].proj, layer.net[-1]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tokens.dtype
    plain = len(layer.net) == 3 and all(type(x) is torch.nn.Linear and x.bias is not None for x in (into, out))
    dropping = layer.training and layer.net[1].p > 0
    if not plain or dropping or tokens.shape[:-1].numel() * into.out_features * dtype.itemsize < MUCH:
        return FeedForward.forward(layer, tokens, *args, **keys)
    seen: Tensor = _Gated.apply(*(x.to(dtype) for x in (tokens, into.weight, into.bias, out.weight, out.bias)))
    return seen


class _Gated(torch.autograd.Function):
    """`there` and `back`, for autograd."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, into: Tensor, first: Tensor, out: Tensor, last: Tensor) -> Tensor:
        """(..., width) of tokens (..., width)."""
        ctx.save_for_backward(tokens, into, first, out)
        return there(tokens, into, first, out, last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Gradients of all five."""
        return back(gradient, *ctx.saved_tensors)


def there(tokens: Tensor, into: Tensor, first: Tensor, out: Tensor, last: Tensor) -> Tensor:
    """(value * gelu(gate)) out^T + last; value and gate are the halves of tokens into^T + first (Shazeer 2020, eq. 6).

    (..., width) of tokens (..., width), `into` (2 inner, width), `out` (width, inner) and their biases.
    """
    rows = tokens.flatten(0, -2)
    seen = torch.empty(len(rows), len(out), dtype=tokens.dtype)
    for at in _pieces(rows, into):
        seen[at] = linear(_gated(linear(rows[at], into, first)), out, last)
    return seen.unflatten(0, tokens.shape[:-1])


def back(gradient: Tensor, tokens: Tensor, into: Tensor, first: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """Gradients of all five; those of the weights are summed over the pieces in float32 at least."""
    rows, gradients = tokens.flatten(0, -2), gradient.flatten(0, -2)
    exact = torch.promote_types(tokens.dtype, torch.float32)
    to_rows = torch.empty_like(rows)
    to_into, to_first, to_out, to_last = (torch.zeros_like(x, dtype=exact) for x in (into, first, out, out[:, 0]))
    for at in _pieces(rows, into):
        to_inner, gated = _gated_back(products.back(gradients[at], out), linear(rows[at], into, first))
        kernels.add_to(to_out, outer(gradients[at], gated))
        to_last += gradients[at].sum(0, dtype=exact)
        to_rows[at] = products.back(to_inner, into)
        kernels.add_to(to_into, outer(to_inner, rows[at]))
        to_first += to_inner.sum(0, dtype=exact)
    weights = (x.to(tokens.dtype) for x in (to_into, to_first, to_out, to_last))
    return to_rows.unflatten(0, tokens.shape[:-1]), *weights


def _gated(inner: Tensor) -> Tensor:
    if inner.dtype == torch.bfloat16 and kernels.there():
        return kernels.gated(inner)
    value, gate = inner.chunk(2, dim=-1)
    return value * functional.gelu(gate)


def _gated_back(gradient: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `inner`, and what it was gated to."""
    if inner.dtype == torch.bfloat16 and kernels.there():
        return kernels.gated_back(gradient, inner)
    value, gate = inner.chunk(2, dim=-1)
    raised, to_gate = functional.gelu(gate), torch.ops.aten.gelu_backward(gradient * value, gate)
    return torch.cat([gradient * raised, to_gate], dim=-1), value * raised


def _pieces(rows: Tensor, into: Tensor) -> Iterator[slice]:
    count = max(1, AT_ONCE // (len(into) * rows.element_size()))
    return (slice(first, first + count) for first in range(0, len(rows), count))
