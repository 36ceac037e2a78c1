"""Adapters: small weights that change large ones (peft): LoRA, DoRA, LoKr; put on, added in, written for other tools."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from dovetail.errors import ModelError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2", "conv1", "conv2"]
FILE = "pytorch_lora_weights.safetensors"


def add(unet: UNet2DConditionModel, method: str, rank: int, alpha: int, seed: int) -> list[torch.nn.Parameter]:
    """Put adapters (float32) on attention, feed-forward and residual convolutions; returns their parameters.

    `lora` (Hu et al. 2021), `dora` (Liu et al. 2024: direction by LoRA, length learnt apart), `lokr` (Yeh et al. 2023: a
    Kronecker product).
    """
    from peft import LoKrConfig, LoraConfig

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if method == "lokr":
            unet.add_adapter(LoKrConfig(r=rank, alpha=alpha, target_modules=TARGETS))
        else:
            config = LoraConfig(
                r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=TARGETS, use_dora=method == "dora"
            )
            unet.add_adapter(config)
    return [p for p in unet.parameters() if p.requires_grad]


def count(config: Mapping[str, Any], method: str, rank: int, alpha: int) -> int:
    """How many weights the adapters of such a U-Net have; it is built without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).requires_grad_(False)
        return sum(p.numel() for p in add(unet, method, rank, alpha, 0))


def put(unet: UNet2DConditionModel, weights: dict[str, Tensor], method: str, rank: int, alpha: int) -> None:
    """Put what a training gave into the U-Net: all weights (`full`), or adapters (left on; `fuse` adds them in)."""
    if method != "full":
        add(unet, method, rank, alpha, seed=0)
    missing, unexpected = unet.load_state_dict(weights, strict=False)
    if unexpected or (method == "full" and missing):
        raise ModelError(
            f"the trained weights do not fit the base ({len(unexpected)} unknown names)",
            do="train again with this base",
        )
    unet.eval().requires_grad_(False)


def write(unet: UNet2DConditionModel, folder: Path) -> None:
    """What `load_lora_weights` of diffusers reads, alpha kept as metadata; of a LoKr, the folder `lokr/` that peft reads."""
    from peft.utils import get_peft_model_state_dict

    config, state = unet.peft_config["default"], get_peft_model_state_dict(unet)
    if config.peft_type == "LORA":
        told = config.to_dict() | {"target_modules": sorted(TARGETS)}
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=state, safe_serialization=True, unet_lora_adapter_metadata=told
        )
        return
    kind = folder / config.peft_type.lower()
    kind.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in state.items()}, kind / "adapter_model.safetensors")
    config.save_pretrained(kind)


def write_kohya(unet: UNet2DConditionModel, file: Path, name_of: Callable[[str], str]) -> None:
    """A LoRA or DoRA under the names that `name_of` gives to its weights, alpha as a weight of each layer."""
    from peft.utils import get_peft_model_state_dict

    config = unet.peft_config["default"]
    renamed = {name_of(name): _as_kohya(name, tensor) for name, tensor in get_peft_model_state_dict(unet).items()}
    alpha = torch.tensor(float(config.lora_alpha))
    renamed |= {name.replace("lora_down.weight", "alpha"): alpha.clone() for name in list(renamed) if "lora_down" in name}
    about = {"ss_network_module": "networks.lora", "ss_network_dim": str(config.r), "ss_network_alpha": str(config.lora_alpha)}
    save_file(renamed, file, metadata=about)


def _as_kohya(name: str, tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 1).contiguous() if "magnitude" in name and tensor.ndim == 1 else tensor.contiguous()


def fuse(unet: UNet2DConditionModel) -> None:
    """Add the adapters into the weights they sit on and take them off."""
    unet.fuse_lora()
    unet.unload_lora()


def take(unet: UNet2DConditionModel, folder: Path) -> None:
    """Add the LoRA that lies in `folder` into the weights. Raises ModelError where there is none."""
    if not (folder / FILE).is_file():
        raise ModelError(f"{folder.parent} has no few-step version", do="paint with 20 steps or more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet.load_lora_adapter(folder, prefix="unet", weight_name=FILE, local_files_only=True)
    fuse(unet)
    unet.eval().requires_grad_(False)
