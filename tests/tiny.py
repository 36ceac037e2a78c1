"""A complete Stable Diffusion folder of a few thousand weights, and small captioned pictures: real classes, real files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from waiting import CEILING

SIDE, TOKENS, WIDTH = 32, 16, 16
SHAPES = ("round", "square", "striped", "dotted", "plain")
COLOURS = {"red": (214, 48, 49), "green": (70, 165, 85), "blue": (60, 110, 210)}
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
    "image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
PROMPTS = {"rehearsal": ["a cat", "a dog on red"], "other": ["a house", "a tree on blue", "a boat"]}
HINTS = PROMPTS | {"guidance_scale": 4.0, "learning_rate_full": 3e-4, "learning_rate_lora": 5e-3}

# The shortest run that goes through every stage; tests lay their own keys over it.
SHORT: dict[str, Any] = {
    "processing": {"rehearsal_pictures": 2},
    "training": {
        "steps": 4, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2, "held_out_every": 4, "sample_every": 4,
        "mixed_precision": "no", "lora_rank": 2, "lora_alpha": 4, "learning_rate": 1e-3,
    },
    "evaluation": {"max_prompts": 2, "seeds_per_prompt": 2, "other_prompts": 2, "steps": 2, "batch_size": 4},
    "endpoint": {"steps": 2, "engine": "torch"},
    "production": {"promote": "always"},
}  # fmt: skip


def tokenizer() -> CLIPTokenizer:
    """Single bytes and a few merged words, as CLIP's byte-pair encoding has them."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"), ("o", "n</w>")]
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=TOKENS)


def _towers(words: CLIPTokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    size = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": 8,
    }
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = size | ends | {"vocab_size": len(words), "max_position_embeddings": TOKENS, "initializer_factor": 20.0}
    return text, size | {"image_size": SIDE, "patch_size": 8}


def write_base(folder: Path, *, with_judge: bool = True, with_prompts: bool = True, prediction: str = "v_prediction") -> Path:
    """A diffusers folder as `recipes/embedded_base/pack.py` writes one, at a size that trains in milliseconds."""
    torch.manual_seed(11)
    words = tokenizer()
    text, vision = _towers(words)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=SIDE, block_out_channels=(8, 16, 16), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False, scaling_factor=0.75,
    )  # fmt: skip
    with torch.no_grad():  # fresh weights decode to grey: louder ones make pictures that differ
        vae.decoder.conv_out.weight.mul_(6)
        vae.encoder.conv_out.weight.mul_(4)
        unet.conv_out.weight.mul_(3)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    words.save_pretrained(folder / "tokenizer")
    zero = prediction == "v_prediction"  # a noise-free last step cannot be divided by where the noise is predicted
    DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type=prediction, rescale_betas_zero_snr=zero, timestep_spacing="trailing", steps_offset=1,
        set_alpha_to_one=True,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    if with_judge:
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "judge")
        words.save_pretrained(folder / "judge")
        told = {
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "size": {"shortest_edge": SIDE},
            "image_processor_type": "CLIPImageProcessor",
        }
        (folder / "judge" / "preprocessor_config.json").write_text(json.dumps(told))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    if with_prompts:
        (folder / "hints.json").write_text(json.dumps(HINTS))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A tiny base\n")
    (folder / "LICENSE").write_text("Apache License, Version 2.0\n")
    return folder


def write_xl_base(folder: Path) -> Path:
    """The same as a Stable Diffusion XL: two text encoders, and a U-Net that is told sizes and crops."""
    write_base(folder)
    torch.manual_seed(13)
    words, whole, second = tokenizer(), 8, 24  # unlike WIDTH: diffusers tells the encoders in a single file apart by it
    text, _ = _towers(words)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH + second, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), norm_num_groups=8,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=whole + 6 * 8,
        use_linear_projection=True,
    )  # fmt: skip
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    unet.save_pretrained(folder / "unet")
    text["initializer_factor"] = 3.0  # their last states but one are not normalised
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(CLIPTextConfig(**text | {"hidden_size": second})).save_pretrained(folder / "text_encoder_2")
    words.save_pretrained(folder / "tokenizer_2")
    index = {k: v for k, v in INDEX.items() if "safety" not in k} | {
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def drawing(shape: str, colour: str, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """One of fifteen pictures that no perceptual hash takes for another."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    inside = {
        "round": (x - 0.5) ** 2 + (y - 0.42) ** 2 < 0.09, "square": (abs(x - 0.3) < 0.2) & (abs(y - 0.3) < 0.22),
        "striped": (x * 8).astype(int) % 2 == 0, "dotted": ((x * 6).astype(int) + (y * 6).astype(int)) % 2 == 0, "plain": y > x,
    }[shape]  # fmt: skip
    ink, paper = np.array(COLOURS[colour]), np.array(COLOURS[colour][::-1]) // 3 + 150
    return Image.fromarray(np.where(inside[..., None], ink, paper).astype(np.uint8))


def write_pictures(folder: Path, count: int = 14, **more: str) -> Path:
    """`count` captioned pictures in five groups, and a metadata.jsonl; `more` are further columns."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        shape, colour = SHAPES[number % 5], list(COLOURS)[number // 5]
        name = f"{shape}-{colour}.png"
        drawing(shape, colour).save(folder / name)
        rows.append(
            {
                "file_name": name,
                "text": f"a {shape} thing on {colour}",
                "group": shape,
                "license": "CC0-1.0",
                "author": "A. Drawer",
            }
            | more
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def add_picture(folder: Path, name: str, caption: str, image: Image.Image | bytes, **more: str) -> Path:
    """One more picture in a folder that `write_pictures` made."""
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        place.write_bytes(image)
    else:
        image.save(place)
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file_name": name, "text": caption} | more, ensure_ascii=False) + "\n")
    return place


def write_base_with_clips_words(folder: Path) -> Path:
    """The tiny Stable Diffusion with CLIP's own vocabulary, 77 tokens at a time."""
    from benchmarks.full_size import vocabulary

    write_base(folder)
    vocabulary().save_pretrained(folder / "tokenizer")
    torch.manual_seed(3)
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=WIDTH, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2,
            max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407, initializer_factor=20.0,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    return folder


def short(**tables: Any) -> dict[str, Any]:
    """The shortest run's configuration with tables or keys laid over it."""
    from dovetail.edges import settings

    return settings.merged(SHORT, tables)


def flags(tables: dict[str, Any]) -> list[str]:
    """The same as --set flags."""
    return [x for t, keys in tables.items() for k, v in keys.items() for x in ("--set", f"{t}.{k}={json.dumps(v)}")]


def cli(*words: object, cwd: Path | None = None, timeout: float = CEILING, **env: str) -> subprocess.CompletedProcess[str]:
    """`dovetail` in a process of its own."""
    command = [sys.executable, "-m", "dovetail.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=os.environ | env, check=False)


def pixels_of(file: Path) -> np.ndarray:
    """RGB pixels of a picture file, as signed numbers that can be subtracted."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def tree(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every file below."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
