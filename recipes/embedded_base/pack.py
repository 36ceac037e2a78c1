"""Last stage: put the trained parts together as a diffusers folder, with card, licences, prompts and a contact sheet."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from . import icons, scenes

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "judge")
CARD_PROMPTS = 48


def prompts() -> dict[str, list[str]]:
    """Prompts to rehearse while tuning, and other ones to test forgetting with: one of each thing in both, none in common."""
    things, colours = list(icons.THINGS), list(scenes.COLOURS)
    order = np.random.default_rng(31).permutation(len(things))
    rehearsal = [f"{scenes.article(t)} on {scenes.article(colours[i % len(colours)])} background" for i, t in enumerate(things)]
    other = [f"{scenes.article(things[k])} on {scenes.article(colours[(k + 5) % len(colours)])} background" for k in order]
    return {"rehearsal": rehearsal, "other": other, "card": other[:CARD_PROMPTS]}


def halve(folder: Path) -> None:
    """Half precision on disk, and ordinary file modes."""
    for file in folder.rglob("*.safetensors"):
        tensors = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(0o644)


def index() -> dict:
    """model_index.json: no safety checker and no feature extractor, on purpose."""
    return {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
        "image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    args = parser.parse_args()
    for part in PARTS:
        if (args.build / part).exists():
            shutil.rmtree(args.base / part, ignore_errors=True)
            shutil.copytree(args.build / part, args.base / part)
            halve(args.base / part)
    judge = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": scenes.SIDE}, "image_processor_type": "CLIPImageProcessor"}
    if (args.base / "judge").exists():
        (args.base / "judge" / "preprocessor_config.json").write_text(json.dumps(judge, indent=2) + "\n")
    (args.base / "model_index.json").write_text(json.dumps(index(), indent=2) + "\n")
    (args.base / "prompts.json").write_text(json.dumps(prompts(), indent=1) + "\n")
    AutoencoderKL.from_pretrained(args.base / "vae")
    print(f"{sum(f.stat().st_size for f in args.base.rglob('*') if f.is_file()) / 2**20:.1f} MiB in {args.base}")


if __name__ == "__main__":
    main()
