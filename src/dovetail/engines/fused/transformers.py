"""Transformers of a U-Net, there and back: a block is one step for autograd, and a picture's memory is that of its tokens."""

from typing import Any, NamedTuple

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.transformers.transformer_2d import Transformer2DModelOutput
from torch import Tensor

from dovetail.engines import attention, feedforward
from dovetail.engines.fused import kernels, products
from dovetail.engines.fused.matrices import bare, handed, matrix, picture, tokens, wanted
from dovetail.engines.fused.products import linear, outer


class _Norms(NamedTuple):
    eps: tuple[float, ...]
    heads: int
    scales: tuple[float, ...]


def _attend(seen: Tensor, over: Tensor | None, into: list[Tensor], heads: int, scale: float) -> tuple[Tensor, list[Any]]:
    """Tokens (b, n, width) attended over themselves, or `over` (b, m, other width); and what the way back wants."""
    read = [linear(x, matrix) for x, matrix in zip((seen,) if over is None else (seen, over), into, strict=True)]
    if kernels.attends(_head(read, heads)):
        query, key, value = _query_key_value(read)
        out, logs = kernels.attend(query, key, value, heads, scale)
        return out, [out, *read, logs]
    query, key, value = _apart(read, heads)
    found, *told = attention.there(query, key, value, scale)
    out = kernels.merge_heads(found[None], heads)
    return out, [out, query, key, value, *told]


def _attend_back(
    gradient: Tensor, seen: Tensor, over: Tensor | None, into: list[Tensor], heads: int, scale: float, kept: list[Any],
    need: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:  # fmt: skip
    """Gradients of the tokens, of `over` if it needs one, and of the weights."""
    out, *read = kept
    if kernels.attends(out.shape[-1] // heads):
        *read, logs = read
        query, key, value = _query_key_value(read)
        by = [torch.empty_like(x) for x in read]
        kernels.attend_back(gradient, query, key, value, out, logs, _query_key_value(by), heads, scale)
    else:
        query, key, value, *told = read
        apart, found = (kernels.split_heads(x, 1, heads)[0] for x in (gradient, out))
        each = attention.back(apart, scale, query, key, value, found, *told)
        by = [kernels.merge_heads(torch.stack(some), heads) for some in ((each,) if over is None else (each[:1], each[1:]))]
    if over is None:
        return products.back(by[0], into[0]), None, list(outer(by[0], seen, dtype).chunk(3))
    to_over = products.back(by[1], into[1]) if need else None
    return products.back(by[0], into[0]), to_over, [outer(by[0], seen, dtype), *outer(by[1], over, dtype).chunk(2)]


def _head(read: list[Tensor], heads: int) -> int:
    """Numbers of a head."""
    return read[0].shape[-1] // heads // (3 if len(read) == 1 else 1)


def _query_key_value(read: list[Tensor]) -> Any:
    """Of tokens (b, n, 3 width), or of (b, n, width) and (b, m, 2 width)."""
    return read[0].chunk(3, dim=-1) if len(read) == 1 else (read[0], *read[1].chunk(2, dim=-1))


def _apart(read: list[Tensor], heads: int) -> Any:
    """The same, a head at a time: (b heads, n, d) each."""
    if len(read) == 1:
        return kernels.split_heads(read[0], 3, heads)
    return *kernels.split_heads(read[0], 1, heads), *kernels.split_heads(read[1], 2, heads)


class _Block(torch.autograd.Function):
    """Attention over themselves, over the prompt, and a gated layer, each of normed tokens and added to them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, context: Tensor, told: _Norms, *weights: Tensor) -> Tensor:
        (
            norm, norm_bias, query, key, value, out, out_bias, second, second_bias, asks, keys, values, onto, onto_bias, third,
            third_bias, into, into_bias, last, last_bias,
        ) = weights  # fmt: skip
        x, context = x.to(torch.bfloat16).contiguous(), context.to(torch.bfloat16).contiguous()
        _, seen, *stats = kernels.layer_norm(x, None, norm, norm_bias, told.eps[0])
        own, out = [matrix(query, key, value)], matrix(out)
        found, kept = _attend(seen, None, own, told.heads, told.scales[0])
        x1, seen1, *stats1 = kernels.layer_norm(x, linear(found, out, out_bias), second, second_bias, told.eps[1])
        cross, onto = [matrix(asks), matrix(keys, values)], matrix(onto)
        found, kept1 = _attend(seen1, context, cross, told.heads, told.scales[1])
        x2, seen2, *stats2 = kernels.layer_norm(x1, linear(found, onto, onto_bias), third, third_bias, told.eps[2])
        into, last = matrix(into), matrix(last)
        if products.gates(seen2, into):
            wide, y = None, products.gated(seen2, into, into_bias, last, last_bias, x2)
        elif x.shape[:-1].numel() * into.shape[0] * 2 < feedforward.MUCH:
            wide = linear(seen2, into, into_bias)
            y = linear(kernels.gated(wide), last, last_bias, x2)
        else:
            wide, y = None, feedforward.there(seen2, into, into_bias, last, last_bias).add_(x2)
        ctx.told, ctx.weights, ctx.counts = told, weights, (len(kept), len(kept1))
        ctx.save_for_backward(
            context, norm, second, third, x, seen, *stats, *own, out, x1, seen1, *stats1, *cross, onto, x2, seen2, *stats2,
            into, into_bias, last, wide, *kept, *kept1,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (
            context, norm, second, third, x, seen, mean, rstd, own, out, x1, seen1, mean1, rstd1, asks, cross, onto, x2, seen2,
            mean2, rstd2, into, into_bias, last, wide, *kept,
        ) = ctx.saved_tensors  # fmt: skip
        dtype = wanted(ctx.weights[2])
        told, kept, kept1 = ctx.told, kept[: ctx.counts[0]], kept[ctx.counts[0] :]
        gradient = gradient.contiguous()
        to_last_bias = kernels.sum_rows(gradient)
        if products.gates(seen2, into):
            to_seen, to_into, to_into_bias, to_last = products.gated_back(gradient, seen2, into, into_bias, last, dtype)
        elif wide is None:
            to_seen, *gated = feedforward.back(gradient, seen2, into, into_bias, last)
            to_into, to_into_bias, to_last = gated[:3]
        else:
            to_wide, inner = kernels.gated_back(products.back(gradient, last), wide)
            to_last, to_into = outer(gradient, inner, dtype), outer(to_wide, seen2, dtype)
            to_into_bias, to_seen = kernels.sum_rows(to_wide), products.back(to_wide, into)
        to_x, to_third, to_third_bias = kernels.layer_norm_back(to_seen, x2, third, mean2, rstd2, gradient)
        to_onto, to_onto_bias = outer(to_x, kept1[0], dtype), kernels.sum_rows(to_x)
        to_found, need = products.back(to_x, onto), ctx.needs_input_grad[1]
        to_seen, to_context, by_cross = _attend_back(
            to_found, seen1, context, [asks, cross], told.heads, told.scales[1], kept1, need, dtype
        )
        to_x, to_second, to_second_bias = kernels.layer_norm_back(to_seen, x1, second, mean1, rstd1, to_x)
        to_out, to_out_bias = outer(to_x, kept[0], dtype), kernels.sum_rows(to_x)
        to_found = products.back(to_x, out)
        to_seen, _, by_own = _attend_back(to_found, seen, None, [own], told.heads, told.scales[0], kept, False, dtype)
        to_x, to_norm, to_norm_bias = kernels.layer_norm_back(to_seen, x, norm, mean, rstd, to_x)
        found = (
            to_norm, to_norm_bias, *by_own, to_out, to_out_bias, to_second, to_second_bias, *by_cross, to_onto, to_onto_bias,
            to_third, to_third_bias, to_into, to_into_bias, to_last, to_last_bias,
        )  # fmt: skip
        return to_x, to_context, None, *handed(ctx.weights, found)


def block(
    layer: Any, x: Tensor, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None, timestep: Any = None, cross_attention_kwargs: Any = None,
    class_labels: Any = None, added_cond_kwargs: Any = None,
) -> Tensor | None:  # fmt: skip
    """As the layer has it, (b, tokens, width); None where it is asked for more than that."""
    rare = (attention_mask, encoder_attention_mask, cross_attention_kwargs or None, class_labels)
    if encoder_hidden_states is None or any(r is not None for r in rare) or x.ndim != 3:
        return None
    told = _Norms(
        (layer.norm1.eps, layer.norm2.eps, layer.norm3.eps), layer.attn1.heads, (layer.attn1.scale, layer.attn2.scale)
    )
    return _Block.apply(x, encoder_hidden_states, told, *_weights(layer))


def _weights(layer: Any) -> list[Tensor]:
    found = []
    for norm, attn in ((layer.norm1, layer.attn1), (layer.norm2, layer.attn2)):
        found += [norm.weight, norm.bias, attn.to_q.weight, attn.to_k.weight, attn.to_v.weight]
        found += [attn.to_out[0].weight, attn.to_out[0].bias]
    into, out = layer.ff.net[0].proj, layer.ff.net[2]
    return [*found, layer.norm3.weight, layer.norm3.bias, into.weight, into.bias, out.weight, out.bias]


def plain_block(layer: Any) -> bool:
    """Whether it is one of Stable Diffusion's."""
    if layer.norm_type != "layer_norm" or layer.attn2 is None or layer.pos_embed is not None or layer._chunk_size is not None:
        return False
    ways, net = (layer.attn1, layer.attn2), layer.ff.net
    parts = layer.norm1, layer.norm2, layer.norm3, net[0].proj, net[-1]
    return (
        not layer.only_cross_attention and not hasattr(layer, "fuser") and len(net) == 3 and type(net[0]) is GEGLU
        and all(type(a.processor) is attention.CacheAttention and _plain_attention(a) for a in ways)
        and bare(*parts) and all(x.bias is not None and x.weight is not None for x in parts) and net[1].p == 0
    )  # fmt: skip


def _plain_attention(attn: Any) -> bool:
    rare = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k, attn.to_q.bias, attn.to_k.bias)
    return (
        all(r is None for r in rare) and bare(attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]) and attn.to_v.bias is None
        and attn.to_out[0].bias is not None and attn.to_out[1].p == 0 and attn.rescale_output_factor == 1
        and not attn.residual_connection and not attn.upcast_attention and not attn.upcast_softmax
        and attn.to_q.out_features == attn.to_k.out_features == attn.to_v.out_features
    )  # fmt: skip


class _Project(torch.autograd.Function):
    """(b, n, c) tokens by a matrix, from or to a picture that is the same memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, beside: Tensor | None) -> Tensor:
        x, by = x.to(torch.bfloat16).contiguous(), matrix(weight)
        ctx.save_for_backward(x, by)
        ctx.weights = weight, bias
        return linear(x, by, bias, beside)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, by = ctx.saved_tensors
        needs, gradient = ctx.needs_input_grad, gradient.contiguous()
        to_weight = outer(gradient, x, wanted(ctx.weights[0])) if needs[1] else None
        found = to_weight, kernels.sum_rows(gradient) if needs[2] else None
        return products.back(gradient, by) if needs[0] else None, *handed(ctx.weights, found), gradient if needs[3] else None


def transformer(
    layer: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, timestep: Any = None, added_cond_kwargs: Any = None,
    class_labels: Any = None, cross_attention_kwargs: Any = None, attention_mask: Any = None,
    encoder_attention_mask: Any = None, return_dict: bool = True,
) -> Any:  # fmt: skip
    """As the layer has it, a picture (b, c, h, w); None where it is asked for more than that."""
    rare = (attention_mask, encoder_attention_mask, cross_attention_kwargs or None, class_labels)
    if any(r is not None for r in rare) or (layer.gradient_checkpointing and torch.is_grad_enabled()):
        return None
    x = picture(x)
    beside = tokens(x).flatten(1, 2)
    states = None if encoder_hidden_states is None else half(encoder_hidden_states)
    seen = _Project.apply(tokens(layer.norm(x)).flatten(1, 2), layer.proj_in.weight, layer.proj_in.bias, None)
    for part in layer.transformer_blocks:
        seen = part(seen, encoder_hidden_states=states)
    seen = _Project.apply(seen, layer.proj_out.weight, layer.proj_out.bias, beside)
    found = seen.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return Transformer2DModelOutput(sample=found) if return_dict else (found,)


def half(states: Tensor) -> Tensor:
    """Of a prompt as bf16, made once for all transformers of a U-Net that learn nothing of it."""
    if states.requires_grad or states.dtype == torch.bfloat16:
        return states
    version, half = getattr(states, "as_bf16", (None, states))
    if version != states._version:
        half = states.to(torch.bfloat16)
        states.as_bf16 = states._version, half  # type: ignore[attr-defined]
    return half


def plain_transformer(layer: Any) -> bool:
    """Whether it is one of Stable Diffusion's."""
    return layer.is_input_continuous and bare(layer.norm, layer.proj_in, layer.proj_out)
