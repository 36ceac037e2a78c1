"""Adapters: small weights that change large ones (peft): LoRA, DoRA, LoKr; put on, added in, written for other tools."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import conv2d, linear

from dovetail.errors import ModelError, StoreError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2", "conv1", "conv2"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
FILE = "pytorch_lora_weights.safetensors"
FEW_STEP = "few_step"  # folder of a model's few-step version, a LoRA
TOLD = "lora_adapter_metadata"  # in that file: what the adapters were asked for, as diffusers writes it

Pairs = Mapping[str, tuple[Tensor, Tensor]]  # layer -> its LoRA's down, and its up times alpha / rank


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


def write(folder: Path, parts: Mapping[str, Any]) -> None:
    """What `load_lora_weights` of diffusers reads, alpha kept as metadata; of a LoKr, folders `lokr/` that peft reads.

    `parts` are models with adapters by their names in a pipeline: `unet`, and `text_encoder`, `text_encoder_2` where they have.
    """
    for model in parts.values():
        model.peft_config["default"].base_model_name_or_path = None  # a folder of this machine
    if parts["unet"].peft_config["default"].peft_type == "LORA":
        told: dict[str, Any] = {}
        for name, model in parts.items():
            state, about = _state(model)
            told[f"{name}_lora_layers"] = state if name == "unet" else _as_transformers(state)
            told[f"{name}_lora_adapter_metadata"] = about | {"target_modules": sorted(about["target_modules"])}
        kind = StableDiffusionXLPipeline if "text_encoder_2" in parts else StableDiffusionPipeline
        kind.save_lora_weights(folder, safe_serialization=True, **told)
        _same(folder / FILE, {f"{name}.{n}": t for name in parts for n, t in told[f"{name}_lora_layers"].items()})
        return
    for name, model in parts.items():
        place = folder / model.peft_config["default"].peft_type.lower() / name
        place.mkdir(parents=True, exist_ok=True)
        _save(_state(model)[0], place / "adapter_model.safetensors")
        model.peft_config["default"].save_pretrained(place)


def write_kohya(file: Path, name_of: Mapping[str, Callable[[str], str]], models: Mapping[str, Any]) -> None:
    """Adapters of `models` under the names that `name_of` gives to the weights of each, alpha as one more weight.

    LoRA and DoRA as kohya's scripts name them, LoKr as LyCORIS does.
    """
    renamed: dict[str, Tensor] = {}
    for part, model in models.items():
        state, about = _state(model)
        lokr = about["peft_type"] == "LOKR"
        rank, alpha = about["r"], about["alpha" if lokr else "lora_alpha"]
        told = _as_lycoris(state, rank, alpha) if lokr else _as_kohya(state, alpha)
        alpha = rank if lokr else alpha
        renamed |= {name_of[part](name): tensor for name, tensor in told.items()}
    about = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    own = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "lokr"})}
    _save(renamed, file, about | (own if lokr else {}))


def _state(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapters' weights by name, and what they were asked for."""
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(model, adapter_name="default"), model.peft_config["default"].to_dict()


def _as_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DoRA's lengths are looked for under their full names there; under peft's short ones they are passed over."""
    return {f"{name}.weight" if name.endswith(".lora_magnitude_vector") else name: t for name, t in state.items()}


def _as_kohya(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """With an alpha beside each pair of matrices, and DoRA's lengths as columns."""
    told = {n: t.reshape(-1, 1) if "magnitude" in n and t.ndim == 1 else t for n, t in state.items()}
    pairs = [name for name in state if name.endswith(".lora_A.weight")]
    return told | {name.replace("lora_A.weight", "lora_alpha"): torch.tensor(float(alpha)) for name in pairs}


def _as_lycoris(state: Mapping[str, Tensor], rank: int, alpha: float) -> dict[str, Tensor]:
    """kron(w1, w2) alpha / rank (Yeh et al. 2023, sec. 3.2) with alpha / rank multiplied into w1, and an alpha that says one.

    Tools differ there: where both factors are whole they leave it out, unlike peft, and LyCORIS 4.1 merges it in twice.
    """
    firsts = [name for name in state if name.endswith(".lokr_w1")]
    told = dict(state) | {name: state[name] * (alpha / rank) for name in firsts}
    return told | {name.replace("lokr_w1", "lokr_alpha"): torch.tensor(float(rank)) for name in firsts}


def _save(weights: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file of weights, read it back and compare."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(weights, file, metadata=metadata)
    _same(file, weights)


def _same(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises StoreError where a written file of weights is not what was to be written."""
    written = load_file(file)
    if written.keys() != weights.keys() or any(not torch.equal(written[n], t.detach().cpu()) for n, t in weights.items()):
        raise StoreError(f"{file.name} differs from the trained adapters", do="check the disk and run the same command again")


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


def has_few_steps(folder: Path) -> bool:
    """Whether the model in `folder` has a few-step version."""
    return (folder / FEW_STEP / FILE).is_file()


def take(unet: UNet2DConditionModel, folder: Path) -> None:
    """Add the LoRA that lies in `folder` into the weights. Raises ModelError where there is none."""
    if not (folder / FILE).is_file():
        raise ModelError(f"{folder.parent} has no few-step version", do="paint with 20 steps or more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet.load_lora_adapter(folder, prefix="unet", weight_name=FILE, local_files_only=True)
    fuse(unet)
    unet.eval().requires_grad_(False)


def is_lora(folder: Path) -> bool:
    """Whether `folder` has a LoRA that `write` put there: two matrices for each layer, and no DoRA."""
    try:
        with safe_open(folder / FILE, "pt") as file:
            pairs = all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in file.keys())  # noqa: SIM118
            return pairs and TOLD in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read(folder: Path, device: torch.device) -> dict[str, Pairs]:
    """The LoRA in `folder`, float32, by the model that it changes: `unet`, and `text_encoder`, `text_encoder_2` where taught.

    Down is (rank, in) or (rank, in, k, k), up (out, rank) or (out, rank, 1, 1).
    """
    with safe_open(folder / FILE, "pt") as file:
        about, weights = json.loads(file.metadata()[TOLD]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name in (name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")):
        part, _, layer = name.partition(".")
        down, up = (weights[f"{name}.lora_{side}.weight"].to(device, torch.float32) for side in "AB")
        rank = len(down) ** (0.5 if about.get(f"{part}.use_rslora") else 1)
        found.setdefault(part, {})[layer] = (down, up * (about[f"{part}.lora_alpha"] / rank))
    return dict(found)


@contextlib.contextmanager
def shifted(model: Any, pairs: Pairs, shift: Tensor) -> Iterator[None]:
    """Within it, a model whose LoRA is fused has `shift` more of it, float32 (rows,) or (1,): with -1 none is left."""
    handles = [model.get_submodule(name).register_forward_hook(_adding(*pair, shift)) for name, pair in pairs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(down: Tensor, up: Tensor, shift: Tensor) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
    """Of a layer: answer + shift up(down(x)), each row (b, ...) with its own shift."""

    def add(layer: Any, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        by_row = shift.reshape(-1, *[1] * (answer.ndim - 1))
        if isinstance(layer, torch.nn.Conv2d):
            low = conv2d(given[0], down, None, layer.stride, layer.padding, layer.dilation)
            return answer + conv2d((low * by_row).to(low.dtype), up)
        low = linear(given[0], down)
        return answer + linear((low * by_row).to(low.dtype), up)

    return add


class Shifted(torch.nn.Module):
    """A U-Net with its LoRA fused, called like it, and told beside it how much more of the LoRA each row has."""

    def __init__(self, unet: UNet2DConditionModel, pairs: Pairs) -> None:
        super().__init__()
        self.unet, self.pairs, self.config = unet, pairs, unet.config

    def forward(self, *given: Any, lora_shift: Tensor, **told: Any) -> Any:
        """The U-Net's own answer; `lora_shift` is float32 (rows,), see `shifted`."""
        with shifted(self.unet, self.pairs, lora_shift):
            return self.unet(*given, **told)
