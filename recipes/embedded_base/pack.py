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


def hints() -> dict[str, object]:
    """Guidance and learning rates that suit this model; prompts to rehearse while tuning, and others to test forgetting with.

    One prompt of each thing stands in both lists, and none in common.
    """
    things, colours = list(icons.THINGS), list(scenes.COLOURS)
    order = np.random.default_rng(31).permutation(len(things))
    rehearsal = [f"{scenes.article(t)} on {scenes.article(colours[i % len(colours)])} background" for i, t in enumerate(things)]
    other = [f"{scenes.article(things[k])} on {scenes.article(colours[(k + 5) % len(colours)])} background" for k in order]
    return {
        "rehearsal": rehearsal,
        "other": other,
        "guidance_scale": 2.5,
        "learning_rate_full": 4e-4,
        "learning_rate_lora": 2e-3,
    }


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


def last_row(file: Path) -> dict:
    """The newest line of a training's log."""
    return json.loads(file.read_text().splitlines()[-1]) if file.exists() else {}


def notice() -> str:
    """Whose art the weights were learnt from."""
    lines = ["The embedded base of Dovetail was trained on renderings of these icon sets:", ""]
    lines += [
        f"- {about['package']} by {about['author']}, {about['licence']} ({about['used_by']})" for about in icons.SETS.values()
    ]
    return "\n".join([*lines, "- Debian openclipart-svg, public domain (the judge's television drawings)", ""])


def card(build: Path) -> str:
    """README.md of the base, from the trainings' own logs."""
    vae, unet = last_row(build / "vae.jsonl"), last_row(build / "unet.jsonl")
    towers = [json.loads(line) for line in (build / "towers.jsonl").read_text().splitlines()]
    scores = {
        role: next((r["top1"] for r in reversed(towers) if r["role"] == role), float("nan")) for role in ("generator", "judge")
    }
    sets = "\n".join(f"| {a['package']} | {a['author']} | {a['licence']} | {a['used_by']} |" for a in icons.SETS.values())
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- stable-diffusion
- dovetail
---

# Dovetail's embedded base, version 1

A small but complete Stable Diffusion for 64x64 pictures, trained from scratch by `recipes/embedded_base` on openly
licensed icon art: tokenizer, CLIP text encoder, VAE, U-Net, scheduler, all diffusers and transformers classes, and a CLIP
judge of its own. It exists so that fine-tuning can be learnt, tested and shown on a laptop without a GPU or a download.

It knows {len(icons.THINGS)} things ({", ".join(icons.THINGS)}) in three styles (shaded, soft, flat) on plain and gradient
backgrounds. It was never shown a television, a computer screen or a laptop.

| part | figure |
|---|---|
| VAE, held-out composites | {vae.get("psnr", float("nan")):.1f} dB |
| text tower: right caption among 64, unseen scenes | {scores["generator"]:.0%} |
| judge: the same, disturbed renderings | {scores["judge"]:.0%} |
| U-Net | {unet.get("images", 0):,} pictures in {unet.get("minutes", 0):.0f} minutes on two shared CPU cores |

| art | author | licence | seen by |
|---|---|---|---|
{sets}
| Debian openclipart-svg, television drawings | many hands | public domain | judge |

**Limits.** Version 1 is modest: backgrounds are right, common objects are recognisable or nearly so, details are soft, two
objects in one picture rarely work. The weights are under Apache-2.0; the attribution that CC-BY-4.0 asks for is in `NOTICE`.
"""


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
    judge = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": scenes.SIDE},
        "image_processor_type": "CLIPImageProcessor",
    }
    if (args.base / "judge").exists():
        (args.base / "judge" / "preprocessor_config.json").write_text(json.dumps(judge, indent=2) + "\n")
    (args.base / "README.md").write_text(card(args.build))
    (args.base / "NOTICE").write_text(notice())
    (args.base / "model_index.json").write_text(json.dumps(index(), indent=2) + "\n")
    (args.base / "hints.json").write_text(json.dumps(hints(), indent=1) + "\n")
    AutoencoderKL.from_pretrained(args.base / "vae")
    print(f"{sum(f.stat().st_size for f in args.base.rglob('*') if f.is_file()) / 2**20:.1f} MiB in {args.base}")


if __name__ == "__main__":
    main()
