"""The real sizes of Stable Diffusion 1.4, 2.1 and XL, with random weights, through Dovetail's stages.

    python benchmarks/full_size.py [--models 1.4 2.1 xl] [--side 256] [--until training]

Each model is written from the real classes and configurations (CLIP's own vocabulary from PyPI's `open_clip_torch`),
a LoRA is taught on six shipped pictures for two steps of one, and, where `--until` goes so far, evaluated and
published; diffusers' own pipeline then loads the published folder. A process for each; seconds, and GiB at most, are printed.
"""

import argparse
import gzip
import importlib.util
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import dovetail
from dovetail import bases
from dovetail.stages import training

ROOT = Path(__file__).parents[1]
UNETS = {
    "1.4": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "2.1": {
        "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
    },
    "xl": {
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
OPEN_CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu",
}  # fmt: skip
OPEN_CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu",
    "projection_dim": 1280,
}  # fmt: skip


def vocabulary() -> CLIPTokenizer:
    """CLIP's 49,408 words as OpenAI published them: bytes, bytes at the end of a word, 48,894 merges, two specials."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("CLIP's words are not here: pip install --no-deps open_clip_torch")
    file = Path(found.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    merges = [tuple(x.split()) for x in gzip.decompress(file.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]]
    # The bytes stand in the order of GPT-2's table: those that print, then the others.
    printed = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters = printed + sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(printed))
    tokens = [*letters, *(x + "</w>" for x in letters), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=77)


def write(kind: str, folder: Path) -> None:
    """A pipeline of that kind, in half precision."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    words = vocabulary()
    ends = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": words.pad_token_id}
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025 if kind == "xl" else 0.18215,
    )  # fmt: skip
    unet = UNet2DConditionModel(**UNETS[kind])
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    if kind == "xl":
        pipe = StableDiffusionXLPipeline(
            vae=vae, unet=unet, tokenizer=words, tokenizer_2=words,
            text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_L, **ends)),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**OPEN_CLIP_G, **ends)),
            scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **betas),
        )  # fmt: skip
    else:
        prediction = "v_prediction" if kind == "2.1" else "epsilon"
        text = CLIP_L if kind == "1.4" else OPEN_CLIP_H
        pipe = StableDiffusionPipeline(
            vae=vae, unet=unet, tokenizer=words, text_encoder=CLIPTextModel(CLIPTextConfig(**text, **ends)),
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type=prediction, **betas),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    weights = sum(p.numel() for p in unet.parameters()) / 1e6
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    torch.set_default_dtype(torch.float32)
    print(f"{kind}: a U-Net of {weights:.0f} M weights is written", flush=True)


def few(folder: Path) -> Path:
    """Six of the shipped pictures, of different drawings."""
    folder.mkdir()
    rows = (ROOT / "examples" / "televisions" / "metadata.jsonl").read_text().splitlines()
    for line in rows[:: len(rows) // 6][:6]:
        name = json.loads(line)["file_name"]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "examples" / "televisions" / name, folder / name)
        with (folder / "metadata.jsonl").open("a") as file:
            file.write(line + "\n")
    return folder


def go(kind: str, side: int, until: str, place: Path) -> None:
    """One model through the stages."""
    write(kind, place / "base")
    training.SAMPLES, training.SAMPLE_STEPS = 1, 2  # a full grid takes minutes here
    began = time.perf_counter()
    sealed = dovetail.run(
        str(few(place / "pictures")), run=str(place / "run"), until=until, base=str(place / "base"), quiet=False,
        processing={"resolution": side, "rehearsal_pictures": 0},
        training={"method": "lora", "steps": 2, "batch_size": 1, "held_out_every": 100, "sample_every": 100, "lora_rank": 4},
        evaluation={
            "max_prompts": 1, "seeds_per_prompt": 1, "other_prompts": 0, "steps": 1, "judge": str(bases.EMBEDDED / "judge"),
        },
    )  # fmt: skip
    told = {"model": kind, "seconds": round(time.perf_counter() - began), "until": until}
    told["GiB at most"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    if "repo" in sealed:
        pipe = StableDiffusionPipeline if kind != "xl" else StableDiffusionXLPipeline
        loaded = pipe.from_pretrained(sealed["repo"].folder / "model")
        told["diffusers loads it"] = type(loaded).__name__
    print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--until", default="training", help="last stage")
    parser.add_argument("--in-process", action="store_true", help="the one model here, and not in a process of its own")
    args = parser.parse_args()
    for kind in args.models:
        if args.in_process:
            with tempfile.TemporaryDirectory() as place:
                go(kind, args.side, args.until, Path(place))
        else:
            told = ["--models", kind, "--side", str(args.side), "--until", args.until, "--in-process"]
            subprocess.run([sys.executable, __file__, *told], check=True)


if __name__ == "__main__":
    main()
