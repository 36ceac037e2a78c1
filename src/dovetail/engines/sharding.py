"""A U-Net in parts, one a process: weights, gradients, optimizer state and averages (FSDP2: Zhao et al. 2023, sec. 3.2).

PyTorch's `fully_shard` cuts each weight along its first dimension; a block's weights are together only while it is at work.
accelerate hands them over to it on GPUs alone (on a CPU its `--use_fsdp` becomes plain DDP without a word), and under bf16 adds
up gradients in bf16; so it is called here, the same on every device.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional

from dovetail.config import Training
from dovetail.edges import shapes
from dovetail.edges.models import in_bf16
from dovetail.errors import BadConfigError

ASKED = "ACCELERATE_USE_FSDP"  # set by `accelerate launch --use_fsdp`
AT_ONCE = 1 << 24  # numbers of each process that are gathered in one message
UNFIT = {  # what else that command may ask for
    "FSDP_OFFLOAD_PARAMS": ("the parts cannot lie in main memory", "leave fsdp_offload_params false"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("activations are recomputed by another flag", "give --gradient_checkpointing instead"),
}


def asked(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch --use_fsdp --fsdp_version 2` started this process.

    Raises BadConfigError where that command asks for what is not done here.
    """
    if not _on(environment, ASKED):
        return False
    if environment.get("FSDP_VERSION", "1") != "2":
        raise BadConfigError("FSDP 1 is not done here", do="add --fsdp_version 2")
    for name, (what, do) in UNFIT.items():
        if _on(environment, name):
            raise BadConfigError(what, do=do)
    return True


def _on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1", "yes")


@contextmanager
def unasked() -> Iterator[None]:
    """Within, accelerate does not hear of `--use_fsdp`."""
    said = os.environ.pop(ASKED, None)
    try:
        yield
    finally:
        if said is not None:
            os.environ[ASKED] = said


def fault(config: Training, processes: int, scaled: bool) -> tuple[str, str] | None:
    """Why such a training cannot be done in parts, and what to do; None where it can."""
    rules = [
        (processes == 1, "one process has no other to share its weights with", "start several, or leave shard"),
        (config.method != "full", f"method {config.method} cannot be sharded", "take method full, or leave shard"),
        (config.fused_backward, "fused_backward wants whole gradients", "leave it, or leave shard"),
        (config.use_8bit_adam, "8-bit Adam wants whole weights", "leave use_8bit_adam, or leave shard"),
        (scaled, "fp16 wants a loss scaler that hears of all gradients", "take mixed_precision bf16, or leave shard"),
    ]
    return next(((what, do) for wrong, what, do in rules if wrong), None)


def shard(unet: Any, device: torch.device, processes: int, precision: str) -> None:
    """Cut the weights of a U-Net on `device` in place: each residual and each transformer block together, then the rest.

    Under bf16 they travel as bf16 and gradients are added up as float32. `FSDP_RESHARD_AFTER_FORWARD=false` (accelerate's
    `--fsdp_reshard_after_forward`) keeps a block's weights from its forward to its backward pass.
    """
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        unet.forward = in_bf16(unet.forward)
    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    mesh = init_device_mesh(device.type, (processes,))
    for block in _blocks(unet):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=again)
    fully_shard(unet, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def _blocks(unet: Any) -> list[torch.nn.Module]:
    levels = [level for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) if level is not None]
    residual = [block for level in levels for block in level.resnets]
    attending = [part for level in levels for part in getattr(level, "attentions", ()) if part is not None]
    return residual + [block for part in attending for block in part.transformer_blocks]


def local(tensor: Tensor) -> Tensor:
    """This process' part, in the same memory; a whole tensor itself."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: cut, with this process' part on its device; as it is, where that is whole."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(parts: Sequence[Tensor], likes: Sequence[DTensor]) -> Iterator[Tensor]:
    """The wholes of what lies with the processes as `likes` do, one after the other; all processes must ask at once.

    Many small ones come in one message. Each process has the next rows of a tensor, as many as the others, until none are left.
    """
    if not parts:
        return
    mesh, first = likes[0].device_mesh, 0
    sizes = [-(-like.shape[0] // mesh.size()) * like.shape[1:].numel() for like in likes]
    while first < len(parts):
        last = first + 1
        while last < len(parts) and sum(sizes[first : last + 1]) <= AT_ONCE:
            last += 1
        flat = [local(part).to(like.device).flatten() for part, like in zip(parts[first:last], likes[first:last], strict=True)]
        sent = torch.cat([functional.pad(x, (0, size - len(x))) for x, size in zip(flat, sizes[first:last], strict=True)])
        heard = sent.new_empty(mesh.size() * len(sent))
        distributed.all_gather_into_tensor(heard, sent, group=mesh.get_group())
        together = heard.view(mesh.size(), -1).split(sizes[first:last], dim=1)
        for like, rows in zip(likes[first:last], together, strict=True):
            yield rows.reshape(-1, *like.shape[1:])[: like.shape[0]]
        first = last


def whole(unet: Any, weights: Mapping[str, Tensor], device: torch.device, precision: str) -> Any:
    """A U-Net like a sharded one, in one piece, with whole `weights`, called as that is."""
    twin = shapes.on_meta(unet.config)
    twin.set_attn_processor(dict(unet.attn_processors))
    twin.load_state_dict({name: weight.to(device) for name, weight in weights.items()}, assign=True)
    if precision == "bf16":
        twin.forward = in_bf16(twin.forward)
    return twin.eval().requires_grad_(False)


def norm(parameters: Sequence[torch.nn.Parameter], most: float) -> Tensor:
    """Clip the gradients to a norm over all processes' parts; returns the norm before."""
    found = torch.nn.utils.clip_grad_norm_(parameters, most)
    return found.full_tensor() if isinstance(found, DTensor) else found
