"""Gradient checkpointing of a U-Net (Chen et al. 2016): what its blocks made on the way there is made again on the way back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.utils.checkpoint import checkpoint

from dovetail.engines import attention, feedforward


def turn_on(unet: Any) -> None:
    """As diffusers' own, but that a transformer keeps its input alone, and not also what its ends made of it.

    `unet.disable_gradient_checkpointing()` turns it off.
    """
    unet.enable_gradient_checkpointing()
    for layer in unet.modules():
        if isinstance(layer, Transformer2DModel):
            layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]


def _forward(layer: Any, forward: Callable[..., Any], *args: Any, **keys: Any) -> Any:
    if not (layer.gradient_checkpointing and torch.is_grad_enabled()):
        return forward(*args, **keys)
    return checkpoint(_once, layer, forward, *args, use_reentrant=False, **keys)


def _once(layer: Any, forward: Callable[..., Any], *args: Any, **keys: Any) -> Any:
    """Its blocks have nothing of their own to make again."""
    layer.gradient_checkpointing = False
    try:
        return forward(*args, **keys)
    finally:
        layer.gradient_checkpointing = True


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
    scores = [2 * heads * tokens * other for other in (tokens, words)]
    block = 2 * places * width * (12 + inner) + sum(s for s in scores if s <= attention.KEPT)
    return 2 * (weights + 4 * places * width) + len(part.transformer_blocks) * block
