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
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
FILE = "pytorch_lora_weights.safetensors"


def add(model: Any, method: str, rank: int, alpha: int, seed: int) -> list[torch.nn.Parameter]:
    """Put adapters (float32) on a U-Net or a text encoder; returns their parameters.

    They sit on attention and feed-forward layers, in a U-Net on the residual convolutions too.

    `lora` (Hu et al. 2021), `dora` (Liu et al. 2024: direction by LoRA, length learnt apart), `lokr` (Yeh et al. 2023: a
    Kronecker product).
    """
    from peft import LoKrConfig, LoraConfig

    targets = TARGETS if isinstance(model, UNet2DConditionModel) else TEXT_TARGETS
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if method == "lokr":
            model.add_adapter(LoKrConfig(r=rank, alpha=alpha, target_modules=targets))
        else:
            config = LoraConfig(
                r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets, use_dora=method == "dora"
            )
            model.add_adapter(config)
    return [p for p in model.parameters() if p.requires_grad]


def count(config: Mapping[str, Any], method: str, rank: int, alpha: int) -> int:
    """How many weights the adapters of such a U-Net have; it is built without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).requires_grad_(False)
        return sum(p.numel() for p in add(unet, method, rank, alpha, 0))


def put(model: Any, weights: Mapping[str, Tensor], method: str, rank: int, alpha: int) -> None:
    """Put what a training gave into a model: all weights (`full`), or adapters (left on; `fuse` adds them in)."""
    if method != "full":
        add(model, method, rank, alpha, seed=0)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or (method == "full" and missing):
        raise ModelError(
            f"the trained weights do not fit the base ({len(unexpected)} unknown names)",
            do="train again with this base",
        )
    model.eval().requires_grad_(False)


def write(folder: Path, unet: UNet2DConditionModel, text_encoder: Any = None) -> None:
    """What `load_lora_weights` of diffusers reads, alpha kept as metadata; of a LoKr, folders `lokr/` that peft reads."""
    parts = {"unet": unet} | ({"text_encoder": text_encoder} if text_encoder is not None else {})
    if unet.peft_config["default"].peft_type == "LORA":
        told: dict[str, Any] = {}
        for name, model in parts.items():
            told[f"{name}_lora_layers"], about = _state(model)
            told[f"{name}_lora_adapter_metadata"] = about | {"target_modules": sorted(about["target_modules"])}
        StableDiffusionPipeline.save_lora_weights(folder, safe_serialization=True, **told)
        return
    for name, model in parts.items():
        place = folder / model.peft_config["default"].peft_type.lower() / name
        place.mkdir(parents=True, exist_ok=True)
        save_file({n: t.contiguous() for n, t in _state(model)[0].items()}, place / "adapter_model.safetensors")
        model.peft_config["default"].save_pretrained(place)


def write_kohya(file: Path, name_of: Mapping[str, Callable[[str], str]], models: Mapping[str, Any]) -> None:
    """LoRAs or DoRAs of `models` under the names that `name_of` gives to the weights of each, alpha as one more weight."""
    renamed: dict[str, Tensor] = {}
    for part, model in models.items():
        state, about = _state(model)
        renamed |= {name_of[part](name): _as_kohya(name, tensor) for name, tensor in state.items()}
        rank, alpha = about["r"], about["lora_alpha"]
    renamed |= {n.replace("lora_down.weight", "alpha"): torch.tensor(float(alpha)) for n in list(renamed) if "lora_down" in n}
    about = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    save_file(renamed, file, metadata=about)


def _state(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapters' weights by name, and what they were asked for."""
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(model, adapter_name="default"), model.peft_config["default"].to_dict()


def _as_kohya(name: str, tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 1).contiguous() if "magnitude" in name and tensor.ndim == 1 else tensor.contiguous()


def fuse(model: Any) -> None:
    """Add the adapters into the weights they sit on and take them off."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    recurse_remove_peft_layers(model)
    model._hf_peft_config_loaded = False
    del model.peft_config


def take(unet: UNet2DConditionModel, folder: Path) -> None:
    """Add the LoRA that lies in `folder` into the weights. Raises ModelError where there is none."""
    if not (folder / FILE).is_file():
        raise ModelError(f"{folder.parent} has no few-step version", do="paint with 20 steps or more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet.load_lora_adapter(folder, prefix="unet", weight_name=FILE, local_files_only=True)
    fuse(unet)
    unet.eval().requires_grad_(False)
