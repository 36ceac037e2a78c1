"""What a U-Net takes, told from its shapes alone: operations and activations, counted on tensors without memory (PyTorch)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What one training pass of a U-Net takes, told from shapes alone."""

    tflop: float  # forward and backward, a multiplication with its addition as two
    kept: int  # bytes of activations that the backward pass wants, weights not counted
    recomputed: int  # about as many where they are recomputed block by block


def on_meta(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A U-Net that takes no memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def activation_bytes(unet: UNet2DConditionModel, latents: Sequence[int], states: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes that a forward pass keeps for its backward pass, from shapes alone: nothing is computed.

    `latents` is (b, c, h, w), `states` (b, tokens, width). Weights are not counted.
    """
    own = next(iter(unet.attn_processors.values()), AttnProcessor2_0())
    return _kept(_twin(unet, dtype, own), latents, states, dtype)


def arithmetic(unet: UNet2DConditionModel, latents: Sequence[int], states: Sequence[int]) -> Arithmetic:
    """Of a bf16 pass over (b, c, h, w) latents and (b, tokens, width) states, attention fused as on a GPU."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from torch.utils.flop_counter import FlopCounterMode

    twin, entered = _twin(unet, torch.bfloat16, AttnProcessor2_0()), [0]
    with FlopCounterMode(display=False) as counter:
        _shown(twin, latents, states, torch.bfloat16).sum().backward()
    for module in twin.modules():  # what recomputation keeps is what enters each block
        if isinstance(module, ResnetBlock2D | Transformer2DModel):
            module.register_forward_pre_hook(lambda _, args: entered.append(args[0].nbytes))
    kept = _kept(twin, latents, states, torch.bfloat16)
    return Arithmetic(counter.get_total_flops() / 1e12, kept, sum(entered) + kept // max(1, len(entered) - 1))


def _twin(unet: UNet2DConditionModel, dtype: torch.dtype, attention: Any) -> UNet2DConditionModel:
    twin = on_meta(unet.config).to(dtype).train()
    twin.set_attn_processor(attention)
    return twin


def _shown(twin: UNet2DConditionModel, latents: Sequence[int], states: Sequence[int], dtype: torch.dtype) -> Tensor:
    with torch.device("meta"):
        seen, words = torch.empty(*latents, dtype=dtype), torch.empty(*states, dtype=dtype)
        return twin(
            seen, torch.empty(latents[0], dtype=torch.long), words, return_dict=False, **_told(twin, latents[0], dtype)
        )[0]


def _told(twin: UNet2DConditionModel, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a U-Net of Stable Diffusion XL is told beside the words."""
    if twin.config.addition_embed_type != "text_time":
        return {}
    width = twin.config.projection_class_embeddings_input_dim - 6 * twin.config.addition_time_embed_dim
    return {"added_cond_kwargs": {"text_embeds": torch.empty(count, width, dtype=dtype), "time_ids": torch.empty(count, 6)}}


def _kept(twin: UNet2DConditionModel, latents: Sequence[int], states: Sequence[int], dtype: torch.dtype) -> int:
    weights = {p.untyped_storage()._cdata for p in twin.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no storage is counted under another's number

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _shown(twin, latents, states, dtype)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
