"""The names in a single file, held against diffusers' own reader, for the real shapes of SD 1.x, 2.x and XL."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as reader
from transformers import CLIPTextConfig, CLIPTextModel

from dovetail.core import layouts

DOWN, UP = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
SD_1: dict[str, Any] = {"down_block_types": DOWN, "up_block_types": UP, "cross_attention_dim": 768}
SD_2: dict[str, Any] = SD_1 | {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SD_XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
}  # fmt: skip


@pytest.mark.parametrize("shape", [SD_1, SD_2, SD_XL], ids=["1", "2", "XL"])
def test_a_unet_is_read_back_under_its_own_names(shape: dict[str, Any]) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape)
    attended = frozenset(i for i, kind in enumerate(unet.config.up_block_types) if "CrossAttn" in kind)
    names = {layouts.unet_name(n, 2, attended): n for n in unet.state_dict()}
    assert len(names) == len(unet.state_dict())
    read = reader.convert_ldm_unet_checkpoint({f"model.diffusion_model.{k}": n for k, n in names.items()}, dict(unet.config))
    assert read == {n: n for n in unet.state_dict()}


def test_known_names_of_the_first_stable_diffusion() -> None:
    attended = frozenset({1, 2, 3})
    known = {
        "down_blocks.0.attentions.1.proj_in.weight": "input_blocks.2.1.proj_in.weight",
        "down_blocks.0.downsamplers.0.conv.bias": "input_blocks.3.0.op.bias",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "mid_block.resnets.1.time_emb_proj.weight": "middle_block.2.emb_layers.1.weight",
        "conv_norm_out.weight": "out.0.weight",
    }  # fmt: skip
    assert {n: layouts.unet_name(n, 2, attended) for n in known} == known
    with pytest.raises(ValueError, match="no single-file name for controlnet"):
        layouts.unet_name("controlnet.x.weight", 2, attended)


def test_a_vae_is_read_back_under_its_own_names() -> None:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
        block_out_channels=(8, 16, 16, 16), norm_num_groups=8,
    )  # fmt: skip
    names = {layouts.vae_name(n, 4): n for n in vae.state_dict()}
    assert "decoder.up.3.block.0.norm1.weight" in names and "encoder.mid.attn_1.proj_out.bias" in names
    named = {f"first_stage_model.{k}": vae.state_dict()[n] for k, n in names.items()}
    read = reader.convert_ldm_vae_checkpoint(named, dict(vae.config))
    assert read.keys() == vae.state_dict().keys() and all(torch.equal(read[n], t) for n, t in vae.state_dict().items())


@pytest.mark.parametrize("open_clip", [False, True])
def test_a_text_encoder_is_read_back_under_its_own_names(open_clip: bool) -> None:
    config = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
    text = CLIPTextModel(config).state_dict()
    names = layouts.single_file([], [], text, layers_per_block=2, attended=frozenset(), vae_blocks=4, open_clip=open_clip)
    whole = {name: torch.cat([text[n] for n in own]) for name, (_, own) in names.items()}
    if open_clip:
        read = reader.convert_open_clip_checkpoint(CLIPTextModel(config), whole)
    else:
        read = reader.convert_ldm_clip_checkpoint(whole)
    assert {n.removeprefix("text_model.") for n in read} == {n.removeprefix("text_model.") for n in text}
    assert all(torch.equal(t, text.get(n, text.get(n.removeprefix("text_model.")))) for n, t in read.items())


def test_kohyas_names() -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    theirs = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert layouts.kohya_name(f"{name}.lora_A.weight") == f"{theirs}.lora_down.weight"
    assert layouts.kohya_name(f"{name}.lora_B.weight") == f"{theirs}.lora_up.weight"
    assert layouts.kohya_name(f"{name}.lora_magnitude_vector.weight") == f"{theirs}.dora_scale"
    assert layouts.kohya_name(f"{name}.lokr_w2_a") == f"{theirs}.lokr_w2_a"
    assert layouts.kohya_name(f"{name}.lokr_alpha") == layouts.kohya_name(f"{name}.lora_alpha") == f"{theirs}.alpha"
    with pytest.raises(ValueError, match="no weight of an adapter"):
        layouts.kohya_name(f"{name}.weight")
