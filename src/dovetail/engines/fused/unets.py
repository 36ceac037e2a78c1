"""A whole U-Net that learns: all between its first convolution and its last norm is captured for each shape and done again.

A third of a small U-Net's step was spent between the functions in C, in Python and in autograd. The numbers are the same.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from dovetail.edges import machine, shapes
from dovetail.engines.fused import graphs, kernels, products
from dovetail.engines.fused.convolutions import plain_residual
from dovetail.engines.fused.matrices import picture
from dovetail.engines.fused.transformers import half, plain_block, plain_transformer

SHAPES = 8  # captured at a time
KINDS = (
    unet_2d_blocks.DownBlock2D, unet_2d_blocks.CrossAttnDownBlock2D, unet_2d_blocks.UNetMidBlock2DCrossAttn,
    unet_2d_blocks.CrossAttnUpBlock2D, unet_2d_blocks.UpBlock2D,
)  # fmt: skip
PLAIN = {ResnetBlock2D: plain_residual, Transformer2DModel: plain_transformer, BasicTransformerBlock: plain_block}


class Graphs:
    """What was captured of one U-Net, by shape; None where that cannot be."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet, self.room = unet, graphs.Room()
        self.known: OrderedDict[Any, graphs.Graph | None] = OrderedDict()
        self.layers = [layer for block in _blocks(unet) for layer in block.modules()]
        self.weights = self._weights()

    def _weights(self) -> list[torch.nn.Parameter]:
        return [p for layer in self.layers for p in layer._parameters.values() if p is not None]

    def current(self) -> bool:
        """Whether the weights are the ones that were there."""
        now = self._weights()
        return len(now) == len(self.weights) and all(a is b for a, b in zip(now, self.weights, strict=True))

    def still_plain(self) -> bool:
        """Whether nobody listens to the blocks, has them compiled, recomputed, or mixed otherwise."""
        return not any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
            or layer._compiled_call_impl is not None or ("gradient_checkpointing" in (told := layer.__dict__)
            and told["gradient_checkpointing"]) or "s1" in told
            for layer in self.layers
        )  # fmt: skip

    def of(self, inputs: Sequence[Tensor]) -> graphs.Graph | None:
        """The graph of inputs (picture, time, states) like these."""
        ways = [(hasattr(w, "taken_by"), hasattr(w, "copied"), w.dtype, w.requires_grad) for w in self.weights]
        key = tuple(x.shape for x in inputs), tuple(ways)
        if key not in self.known:
            self.known[key] = self._captured(inputs)
            while len(self.known) > SHAPES:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key]

    def _captured(self, inputs: Sequence[Tensor]) -> graphs.Graph | None:
        if not all(w.requires_grad for w in self.weights) or not self._little(inputs):
            return None
        try:
            return graphs.Graph(lambda given: _middle(self.unet, *given), inputs, 2, self.weights, self.room)
        except graphs.VoidError:
            return None

    def _little(self, inputs: Sequence[Tensor]) -> bool:
        b, _, h, w = inputs[0].shape
        size = torch.Size((b, self.unet.config.in_channels, h, w))
        needed = shapes.activation_bytes(self.unet, size, inputs[2].shape, torch.bfloat16)
        needed += sum(4 * weight.numel() for weight in self.weights)
        return needed < machine.little_bytes(inputs[0].device)


def _blocks(unet: UNet2DConditionModel) -> list[Any]:
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


def _middle(unet: UNet2DConditionModel, x: Tensor, time: Tensor, states: Tensor) -> Tensor:
    """All blocks: a picture (b, c, h, w) of another."""
    beside = [x]
    for block in unet.down_blocks:
        told = {"encoder_hidden_states": states} if getattr(block, "has_cross_attention", False) else {}
        x, more = block(hidden_states=x, temb=time, **told)
        beside += more
    x = unet.mid_block(x, time, encoder_hidden_states=states)
    for block in unet.up_blocks:
        told = {"encoder_hidden_states": states} if getattr(block, "has_cross_attention", False) else {}
        count = len(block.resnets)
        x = block(hidden_states=x, temb=time, res_hidden_states_tuple=tuple(beside[-count:]), **told)
        beside = beside[:-count]
    return x


def whole(
    unet: UNet2DConditionModel, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, *others: Any,
    added_cond_kwargs: Any = None, return_dict: bool = True, **rare: Any,
) -> Any:  # fmt: skip
    """As the U-Net has it; None where it is asked for more than that, or is not about to learn, or cannot be captured."""
    if not torch.is_grad_enabled() or any(v is not None for v in (*others, *rare.values())):
        return None
    if encoder_hidden_states.requires_grad or any(side % 2**unet.num_upsamplers for side in sample.shape[2:]):
        return None
    found = unet.__dict__.get("captured")
    if found is None or not found.current():
        found = unet.captured = Graphs(unet)
    if not found.room.free() or not found.still_plain():
        return None
    time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), None)
    more = unet.get_aug_embed(emb=time, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)
    time = (time if more is None else time + more).to(torch.bfloat16).contiguous()
    x = picture(unet.conv_in(sample))
    inputs = [x, time, half(encoder_hidden_states).contiguous()]
    graph = found.of(inputs) if x.requires_grad and time.requires_grad else None
    free = [w for w in found.weights if not hasattr(w, "taken_by")]
    x = _middle(unet, *inputs) if graph is None else graphs.Captured.apply(graph, len(inputs), *inputs, *free)
    x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return UNet2DConditionOutput(sample=x) if return_dict else (x,)


def forget(unet: UNet2DConditionModel) -> None:
    """Give back what was captured, and the memory that it worked in."""
    unet.__dict__.pop("captured", None)


def plain_unet(unet: UNet2DConditionModel) -> bool:
    """Whether it is one of Stable Diffusion's, of blocks that have their functions in C, on a processor with tiles."""
    if not products.tiled() or not all(type(block) in KINDS for block in _blocks(unet)):
        return False
    config = unet.config
    rare = (config.class_embed_type, config.num_class_embeds, config.encoder_hid_dim, config.time_embedding_act_fn)
    return (
        all(r is None for r in rare) and config.addition_embed_type in (None, "text_time")
        and not config.center_input_sample and unet.conv_norm_out is not None
        and all(PLAIN[type(part)](part) for block in _blocks(unet) for part in block.modules() if type(part) in PLAIN)
        and all(kernels.attends(layer.attn1.inner_dim // layer.attn1.heads) for layer in _transformer_blocks(unet))
    )  # fmt: skip


def _transformer_blocks(unet: UNet2DConditionModel) -> list[Any]:
    return [layer for layer in unet.modules() if type(layer) is BasicTransformerBlock]
