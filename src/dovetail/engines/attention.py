"""Attention of a U-Net on a CPU, there and back: as much at a time as the cache holds.

A softmax over all heads of a batch is a walk through main memory, and its exponential the dearest arithmetic of a small U-Net.
Here the scores are made, raised and used while they are in the cache; the sums that a softmax divides by come out of the same
matrix product as the values, by a column of ones. Where scores are too many to be kept for the way back they are made again,
from the logarithms of their sums (Dao et al. 2022, FlashAttention, sec. 3.1).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dovetail.edges.models import MatmulAttention
from dovetail.engines.fused import kernels

FEW = 1 << 20  # bytes of scores of one call that PyTorch's own functions are as good for
AT_ONCE = 4 << 20  # bytes of scores that are worked on together: they stay in the cache
KEPT = 64 << 20  # bytes of scores of one call that are kept for the way back; more are made again
SAFE = 0.6  # of the largest exponent of the type: what scores may reach without their row's maximum taken off


class CacheAttention(MatmulAttention):
    """For `unet.set_attn_processor` of a U-Net that learns."""

    def attended(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """softmax(query key^T scale) value: (b, heads, n, d) over (b, heads, m, d) gives (b, heads, n, d)."""
        learning = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        half = all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in (query, key, value))
        if learning and half and kernels.there() and kernels.attends(query.shape[-1]):
            return _InTokens.apply(query, key, value, scale)
        if learning and _bytes(query, key) > FEW:
            return _Attended.apply(query, key, value, scale)
        return super().attended(query, key, value, scale)


class _InTokens(torch.autograd.Function):
    """By the functions in C, for autograd: heads are read where tokens have them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(b, heads, n, d) of `attended`."""
        ctx.heads, ctx.scale = query.shape[1], scale
        query, key, value = (_tokens(x) for x in (query, key, value))
        out, logs = kernels.attend(query, key, value, ctx.heads, scale)
        ctx.save_for_backward(query, key, value, out, logs)
        return out.unflatten(-1, (ctx.heads, -1)).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of query, key and value."""
        query, key, value, out, logs = ctx.saved_tensors
        found = [torch.empty_like(x) for x in (query, key, value)]
        kernels.attend_back(_tokens(gradient), query, key, value, out, logs, found, ctx.heads, ctx.scale)
        return *(x.unflatten(-1, (ctx.heads, -1)).transpose(1, 2) for x in found), None


def _tokens(x: Tensor) -> Tensor:
    """(b, heads, n, d) as (b, n, heads d)."""
    return x.transpose(1, 2).flatten(2).contiguous()


class _Attended(torch.autograd.Function):
    """`there` and `back`, for autograd."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(b, heads, n, d) of `attended`."""
        ctx.heads, ctx.scale = query.shape[1], scale
        query, key, value = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
        seen, inverse, logs, *kept = there(query, key, value, scale)
        ctx.save_for_backward(query, key, value, seen, inverse, logs, *kept)
        return seen.unflatten(0, (-1, ctx.heads))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of query, key and value."""
        found = back(gradient.flatten(0, 1), ctx.scale, *ctx.saved_tensors)
        return *(x.unflatten(0, (-1, ctx.heads)) for x in found), None


def there(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Any, ...]:
    """(heads, n, d) over (heads, m, d): what is seen, and what the way back wants.

    The scores are bare exponentials where none can overflow, else exponentials of what is over the rows' `logs`.
    """
    kept: list[Tensor] = []
    if _bounded(query, key, scale):
        ones = functional.pad(value, (0, 1), value=1.0)
        keep, sums, none = _bytes(query, key) <= KEPT, query.new_empty(*query.shape[:2], ones.shape[2]), query.new_empty(())
        for at in _pieces(query, key):
            raised = torch.baddbmm(none, query[at], key[at[0]].transpose(1, 2), beta=0, alpha=scale).exp_()
            torch.bmm(raised, ones[at[0]], out=sums[at])
            kept += [raised] if keep else []
        inverse, logs = sums[..., -1:].reciprocal(), None
        seen = sums[..., :-1] * inverse
    else:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        seen, exact = (x[0] for x in fused(query[None], key[None], value[None], 0.0, False, scale=scale))
        logs = exact[..., None].to(query.dtype)
        inverse = (logs - exact[..., None]).exp().to(query.dtype)  # what the rounding of `logs` left out
    return seen, inverse, logs, *kept


def back(
    gradient: Tensor, scale: float, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, inverse: Tensor,
    logs: Tensor | None, *kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value of `there`."""
    gradient = gradient * inverse
    gradient = torch.cat([gradient, -(gradient * seen).sum(-1, keepdim=True)], dim=-1)
    ones, none = functional.pad(value, (0, 1), value=1.0), query.new_empty(())
    to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(ones)
    exact: list[Tensor] = []  # sums over the pieces of one head, where it has several
    for number, at in enumerate(_pieces(query, key)):
        if kept:
            raised = kept[number]
        else:
            start, beta = (none, 0) if logs is None else (logs[at], -1)
            raised = torch.baddbmm(start, query[at], key[at[0]].transpose(1, 2), beta=beta, alpha=scale).exp_()
        scores = torch.bmm(gradient[at], ones[at[0]].transpose(1, 2)).mul_(raised)
        torch.baddbmm(none, scores, key[at[0]], beta=0, alpha=scale, out=to_query[at])
        for_key, for_value = (scores.transpose(1, 2), query[at], scale), (raised.transpose(1, 2), gradient[at], 1.0)
        if at[1] == slice(None):
            for found, (left, right, factor) in ((to_key, for_key), (to_value, for_value)):
                torch.baddbmm(none, left, right, beta=0, alpha=factor, out=found[at[0]])
            continue
        if at[1].start == 0:
            exact = [torch.zeros_like(x[at[0]], dtype=_exact(x)) for x in (key, ones)]
        for total, (left, right, factor) in zip(exact, (for_key, for_value), strict=True):
            kernels.add_to(total, torch.baddbmm(none, left, right, beta=0, alpha=factor))
        if at[1].stop >= query.shape[1]:
            to_key[at[0]], to_value[at[0]] = exact
    return to_query, to_key, to_value[..., :-1]


def _bounded(query: Tensor, key: Tensor, scale: float) -> bool:
    """Whether no score can be so large, or all of a row so small, that its bare exponential is none (Cauchy and Schwarz)."""
    if query.is_meta:
        return True
    most = [float(torch.linalg.vector_norm(x, dim=-1, dtype=_exact(x)).max()) for x in (query, key)]
    return most[0] * most[1] * scale < SAFE * math.log(torch.finfo(query.dtype).max)


def _exact(like: Tensor) -> torch.dtype:
    """float32 for what is shorter."""
    return torch.promote_types(like.dtype, torch.float32)


def _bytes(query: Tensor, key: Tensor) -> int:
    """Of all scores of a call."""
    return query.shape[:-1].numel() * key.shape[-2] * query.element_size()


def _pieces(query: Tensor, key: Tensor) -> list[tuple[slice, slice]]:
    """Heads and their rows, of (pictures and heads, tokens, d), as many together as the cache holds scores of."""
    row = key.shape[1] * query.element_size()
    if query.shape[1] * row <= AT_ONCE:
        count = AT_ONCE // (query.shape[1] * row)
        return [(slice(first, first + count), slice(None)) for first in range(0, len(query), count)]
    count, starts = max(1, AT_ONCE // row), range(0, query.shape[1], max(1, AT_ONCE // row))
    return [(slice(head, head + 1), slice(first, first + count)) for head in range(len(query)) for first in starts]
