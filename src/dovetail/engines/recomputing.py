"""Gradient checkpointing of a U-Net (Chen et al. 2016): what its blocks made on the way there is made again on the way back."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dovetail.engines import attention, feedforward
from dovetail.engines.fused import kernels

PLACES = 32 * 32  # latent places from which on a picture keeps a CPU as busy as several do together


def turn_on(unet: Any) -> None:
    """As diffusers' own, but that a transformer keeps its input alone, and not also what its ends made of it.

    `unet.disable_gradient_checkpointing()` turns it off.
    """
    unet.enable_gradient_checkpointing(_made_again)
    for layer in unet.modules():
        if isinstance(layer, Transformer2DModel):
            layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]


def _made_again(layer: Any, *told: Any) -> Any:
    """What diffusers' blocks call in the place of a residual block or another part of theirs."""
    if hasattr(layer, "parts") and len(told[0]) > 1 and all(isinstance(x, Tensor) for x in told):
        return _OneByOne.apply(layer, layer.__call__, *told)
    return checkpoint(layer.__call__, *told, use_reentrant=False)


def _forward(layer: Any, forward: Callable[..., Any], *args: Any, **keys: Any) -> Any:
    if not (layer.gradient_checkpointing and torch.is_grad_enabled()):
        return forward(*args, **keys)
    if hasattr(layer, "parts") and _plain(*args, **keys):

        def read(x: Tensor, states: Tensor) -> Tensor:
            return _once(layer, forward, x, encoder_hidden_states=states, return_dict=False)[0]

        return (_OneByOne.apply(layer, read, args[0], keys["encoder_hidden_states"]),)
    return checkpoint(_once, layer, forward, *args, use_reentrant=False, **keys)


def _once(layer: Any, forward: Callable[..., Any], *args: Any, **keys: Any) -> Any:
    """Its blocks have nothing of their own to make again."""
    layer.gradient_checkpointing = False
    try:
        return forward(*args, **keys)
    finally:
        layer.gradient_checkpointing = True


def one_by_one(unet: Any, latents: torch.Size, parts: Callable[[Any], AbstractContextManager[None]]) -> None:
    """Let blocks go back a picture at a time where each has many places: what is made again takes a picture's room.

    The gradients of their weights come in as many parts then, within `parts(layer)`. `latents` is (b, c, h, w).
    """
    for blocks in (unet.down_blocks, unet.up_blocks[::-1]):
        for level, block in enumerate(blocks):
            if latents[2] * latents[3] >> 2 * level >= PLACES:
                for layer in (*block.resnets, *getattr(block, "attentions", ())):
                    layer.parts = partial(parts, layer)


def _plain(x: Tensor, encoder_hidden_states: Any = None, timestep: Any = None, return_dict: bool = True, **rare: Any) -> bool:
    """Whether a transformer is asked for no more than pictures and words."""
    return encoder_hidden_states is not None and len(x) > 1 and not return_dict and all(r is None for r in rare.values())


class _OneByOne(torch.autograd.Function):
    """All pictures there at once, and back one after the other, each made again for itself."""

    @staticmethod
    def forward(ctx: Any, layer: Any, way: Callable[..., Tensor], *told: Tensor) -> Tensor:
        """What `way` makes of tensors (b, ...)."""
        ctx.layer, ctx.way = layer, way
        ctx.precision = {"dtype": torch.get_autocast_dtype("cpu"), "enabled": torch.is_autocast_enabled("cpu")}
        ctx.save_for_backward(*told)
        return way(*told)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        told, needs = ctx.saved_tensors, ctx.needs_input_grad[2:]
        found = [torch.empty_like(x) if need else None for x, need in zip(told, needs, strict=True)]
        with ctx.layer.parts():
            for at in range(len(gradient)):
                mine = [x[at : at + 1].detach().requires_grad_(need) for x, need in zip(told, needs, strict=True)]
                with torch.enable_grad(), torch.autocast("cpu", cache_enabled=False, **ctx.precision):
                    y = ctx.way(*mine)
                torch.autograd.backward(y, gradient[at : at + 1])
                for whole, part in zip(found, mine, strict=True):
                    if whole is not None:
                        whole[at] = part.grad[0] if part.grad is not None else 0
        return None, None, *found


def spare(unet: Any, latents: torch.Size, room: int) -> int:
    """Let the last blocks keep what they make, as far as `room` bytes do: on the way back they come first.

    Until their turn is over there are few gradients, so that they may take what all gradients will need later. `latents` is
    (b, c, h, w); returns the bytes that are kept, as near as sizes tell.
    """
    kept, places = 0, latents[0] * latents[2] * latents[3]
    for block in reversed(unet.up_blocks):
        needed = sum(_bytes(part, latents[0], places) for part in (*block.resnets, *getattr(block, "attentions", ())))
        if kept + needed > room:
            break
        kept, places = kept + needed, places // 4
        for part in block.modules():
            if hasattr(part, "gradient_checkpointing"):
                part.gradient_checkpointing = False
    return kept


def _bytes(part: Any, pictures: int, places: int) -> int:
    """What a residual block or a transformer of `engines.fused` keeps: bf16 copies of its weights, tokens, scores."""
    weights = sum(p.numel() for p in part.parameters())
    if not isinstance(part, Transformer2DModel):
        return 2 * (weights + places * 2 * (part.in_channels + part.out_channels))
    width, tokens = part.transformer_blocks[0].dim, places // pictures
    heads, words = pictures * part.transformer_blocks[0].num_attention_heads, 128
    inner = 12 if 2 * places * 8 * width < feedforward.MUCH else 0
    by_head = kernels.there() and kernels.attends(width // part.transformer_blocks[0].num_attention_heads)
    scores = [] if by_head else [2 * heads * tokens * other for other in (tokens, words)]
    block = 2 * places * width * (12 + inner) + sum(s for s in scores if s <= attention.KEPT)
    return 2 * (weights + 4 * places * width) + len(part.transformer_blocks) * block
