"""Gradient checkpointing of a U-Net (Chen et al. 2016): what its blocks made on the way there is made again on the way back."""

from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.utils.checkpoint import checkpoint


def turn_on(unet: Any) -> None:
    """As diffusers' own, but that a transformer keeps its input alone, and not also what its ends made of it.

    `unet.disable_gradient_checkpointing()` turns it off.
    """
    unet.enable_gradient_checkpointing()
    for layer in unet.modules():
        if isinstance(layer, Transformer2DModel):
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: Any, *args: Any, **keys: Any) -> Any:
    if not (layer.gradient_checkpointing and torch.is_grad_enabled()):
        return Transformer2DModel.forward(layer, *args, **keys)
    return checkpoint(_once, layer, *args, use_reentrant=False, **keys)


def _once(layer: Any, *args: Any, **keys: Any) -> Any:
    """Its blocks have nothing of their own to make again."""
    layer.gradient_checkpointing = False
    try:
        return Transformer2DModel.forward(layer, *args, **keys)
    finally:
        layer.gradient_checkpointing = True
