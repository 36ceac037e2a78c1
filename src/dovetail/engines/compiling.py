"""A U-Net's blocks compiled on a GPU where the training is long enough for it; and as they were where that fails.

Residual and transformer blocks are compiled one by one ("regional"): equal blocks share what was compiled, which takes a
minute or two where a whole U-Net takes many.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

REGIONS = (ResnetBlock2D, BasicTransformerBlock)
SHAPES = 64  # of one kind of block, before it goes uncompiled: a U-Net has a dozen, buckets have more
PAYS_SECONDS = 1200.0  # of training, from which on a tenth or two of them is more than compiling takes
USUAL_SHARE = 0.25  # of a device's peak: what a step that is not compiled reaches, about


def pays(tflop: float, pictures: int, peak_tflops: float) -> bool:
    """Whether so many pictures, of so much arithmetic each, there and back, will be long enough under way."""
    return tflop * pictures / (peak_tflops * USUAL_SHARE) > PAYS_SECONDS


def turn_on(unet: torch.nn.Module, **how: Any) -> None:
    """Have the blocks compiled when they are first used; `how` is for `torch.compile`."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for layer in unet.modules():
        if isinstance(layer, REGIONS):
            layer.compile(**how)


def is_on(unet: torch.nn.Module) -> bool:
    """Whether any block is, or is to be, compiled."""
    return any(layer._compiled_call_impl is not None for layer in unet.modules() if isinstance(layer, REGIONS))


def undo(unet: torch.nn.Module, error: BaseException) -> bool:
    """Take it back where it is the reason for an error; whether it was."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException) or not is_on(unet):
        return False
    for layer in unet.modules():
        if isinstance(layer, REGIONS):
            layer._compiled_call_impl = None
    torch._dynamo.reset()
    return True


def aside() -> AbstractContextManager[Any]:
    """Within it nothing is compiled: for what is done seldom, in other shapes."""
    return torch.compiler.set_stance("force_eager")
