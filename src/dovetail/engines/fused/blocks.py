"""The blocks of a U-Net that learns on a CPU in bf16: each one step for autograd, channels last all the way.

What diffusers does in a hundred small calls a block, with a layout for each, is here a handful of matrix products and of the
functions of `kernels.c` between them. Weights stay float32 and plain, and become bf16 where they are used, as under autocast;
so do gradients. A block with an adapter, with another norm or gate, or asked for in another precision goes diffusers' way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch.nn import Conv2d, GroupNorm

from dovetail.engines.fused import convolutions, kernels, transformers, unets

WAYS: list[tuple[type, Callable[[Any], bool], Callable[..., Any]]] = [
    (Conv2d, convolutions.plain_conv, convolutions.conv),
    (GroupNorm, lambda layer: layer.affine, convolutions.norm),
    (Upsample2D, convolutions.plain_upsampling, convolutions.upsampled),
    (ResnetBlock2D, convolutions.plain_residual, convolutions.residual),
    (BasicTransformerBlock, transformers.plain_block, transformers.block),
    (Transformer2DModel, transformers.plain_transformer, transformers.transformer),
    (UNet2DConditionModel, unets.plain_unet, unets.whole),
]


def fuse(unet: torch.nn.Module) -> None:
    """Let the blocks of a U-Net on the CPU work so wherever bf16 is asked for; nothing where there is no compiler."""
    if not kernels.there() or any(p.dtype != torch.float32 for p in unet.parameters()):
        return
    for layer in unet.modules():
        for kind, plain, way in WAYS:
            if type(layer) is kind and plain(layer):
                layer.forward = partial(_either, layer, layer.forward, way)  # type: ignore[method-assign]


def _either(layer: Any, otherwise: Callable[..., Any], way: Callable[..., Any], *args: Any, **keys: Any) -> Any:
    bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    x = args[0] if args else keys.get("sample")  # a whole U-Net's may come by name
    found = way(layer, *args, **keys) if bf16 and x is not None and x.device.type == "cpu" else None
    return otherwise(*args, **keys) if found is None else found
