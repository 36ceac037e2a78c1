"""The names that other tools give to the same weights: the single file of the first Stable Diffusion, and kohya's adapters."""

import re
from collections.abc import Callable, Iterable

_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_TEXT_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
_ADAPTER = {
    "A.weight": "lora_down.weight", "B.weight": "lora_up.weight", "magnitude_vector.weight": "dora_scale",
    "magnitude_vector": "dora_scale", "alpha": "alpha",
}  # fmt: skip


def single_file(
    unet: Iterable[str], vae: Iterable[str], text: Iterable[str], second: Iterable[str] = (), *, layers_per_block: int,
    attended: frozenset[int], vae_blocks: int, open_clip: bool,
) -> dict[str, tuple[str, tuple[str, ...]]]:  # fmt: skip
    """Name in the single file -> part of the diffusers folder and the names of the weights that lie there.

    `open_clip` is the text encoder of SD 2.x, whose q, k and v lie upon one another; SD 1.x has CLIP's own, and SD XL both, the
    latter as its `second`.
    """
    second = list(second)
    names: dict[str, tuple[str, tuple[str, ...]]] = {}
    names |= {f"model.diffusion_model.{unet_name(n, layers_per_block, attended)}": ("unet", (n,)) for n in unet}
    names |= {f"first_stage_model.{vae_name(n, vae_blocks)}": ("vae", (n,)) for n in vae}
    if second:
        names |= {f"conditioner.embedders.0.transformer.{clip_name(n)}": ("text_encoder", (n,)) for n in text}
        whole = open_clip_names(second).items()
        return names | {f"conditioner.embedders.1.model.{k}": ("text_encoder_2", v) for k, v in whole}
    if open_clip:
        return names | {f"cond_stage_model.model.{k}": ("text_encoder", v) for k, v in open_clip_names(text).items()}
    return names | {f"cond_stage_model.transformer.{clip_name(n)}": ("text_encoder", (n,)) for n in text}


def unet_name(name: str, layers_per_block: int, attended: frozenset[int]) -> str:
    """The single file's name of a diffusers U-Net weight; `attended` are the numbers of the up blocks with attention."""
    place, _, kind = name.rpartition(".")
    if place in _UNET_TOP:
        return f"{_UNET_TOP[place]}.{kind}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        part, number, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{2 * number + (part == 'attentions')}.{_within(part, rest)}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if found is None:
        raise ValueError(f"no single-file name for {name}")
    way, block, part, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    first = block * (layers_per_block + 1)
    if part == "downsamplers":
        return f"input_blocks.{first + layers_per_block + 1}.0.{rest.replace('conv', 'op')}"
    if part == "upsamplers":
        return f"output_blocks.{first + layers_per_block}.{2 if block in attended else 1}.{rest}"
    where = f"input_blocks.{first + number + 1}" if way == "down" else f"output_blocks.{first + number}"
    return f"{where}.{int(part == 'attentions')}.{_within(part, rest)}"


def _within(part: str, rest: str) -> str:
    """What lies inside a residual block has names of its own; attention keeps them."""
    if part == "attentions":
        return rest
    place, _, kind = rest.rpartition(".")
    return f"{_UNET_RESNET[place]}.{kind}"


def vae_name(name: str, blocks: int) -> str:
    """The single file's name of a diffusers VAE weight; the VAE has `blocks` down blocks and as many up blocks."""
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{blocks - 1 - int(m[1])}", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)", r"encoder.down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        head, _, rest = name.partition(".mid_block.attentions.0.")
        place, _, kind = rest.rpartition(".")
        return f"{head}.mid.attn_1.{_VAE_ATTENTION[place]}.{kind}"
    plain = {
        ".resnets.": ".block.", ".downsamplers.0.": ".downsample.", ".upsamplers.0.": ".upsample.",
        "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
    }  # fmt: skip
    for ours, theirs in plain.items():
        name = name.replace(ours, theirs)
    return name


def clip_name(name: str) -> str:
    """The name of a CLIP text weight in the single file of SD 1.x; older transformers put `text_model.` before it."""
    return f"text_model.{name.removeprefix('text_model.')}"


def open_clip_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name in the single file of SD 2.x -> the CLIP text weights that lie there, those of q, k and v one upon another."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        short = name.removeprefix("text_model.")
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", short)
        if layer is None:
            top = {
                "embeddings.position_embedding.weight": "positional_embedding",
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
                "text_projection.weight": "text_projection",  # there it lies on its side
            }  # fmt: skip
            if short in top:  # position numbers are no weights
                found[top[short]] = (name,)
            continue
        where, place, kind = f"transformer.resblocks.{layer[1]}", layer[2], layer[3]
        if place in _TEXT_LAYER:
            found[f"{where}.{_TEXT_LAYER[place]}.{kind}"] = (name,)
        elif place.endswith("q_proj"):
            found[f"{where}.attn.in_proj_{kind}"] = tuple(name.replace("q_proj", f"{x}_proj") for x in "qkv")
    return found


def kohya_text_name(name: str, encoder: str = "te") -> str:
    """kohya's name of an adapter's weight of a text encoder: `te`, or `te1` and `te2` of an XL."""
    return kohya_name(clip_name(name)).replace("lora_unet_", f"lora_{encoder}_", 1)


def kohya_name(name: str, rename: Callable[[str], str] = lambda module: module) -> str:
    """kohya's name of an adapter's weight of the U-Net: `a.to_q.lora_A.weight` is `lora_unet_a_to_q.lora_down.weight`.

    LyCORIS has the same for modules, and peft's for what is theirs: `a.to_q.lokr_w1` is `lora_unet_a_to_q.lokr_w1`. `rename` is
    what happens to the module's name before: nothing, or in an XL what `sgm_module` does.
    """
    found = re.fullmatch(r"(.+)\.(lora|lokr)_(.+)", name)
    if found is None:
        raise ValueError(f"{name} is no weight of an adapter")
    module, kind, part = found.groups()
    own = _ADAPTER.get(part, f"{kind}_{part}")
    return f"lora_unet_{rename(module).replace('.', '_')}.{own}"


def sgm_module(module: str, layers_per_block: int, attended: frozenset[int]) -> str:
    """The single file's name of a module of the U-Net, as kohya names those of an XL."""
    return unet_name(f"{module}.weight", layers_per_block, attended).removesuffix(".weight")
