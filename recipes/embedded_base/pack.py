"""Last stage: put the trained parts together as a diffusers folder, with card, licences, prompts and a contact sheet."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dovetail.edges import pixels
from dovetail.edges.models import Models
from dovetail.engines import painter

from . import icons, prompts, scenes, train_unet

VERSION, STEPS, GUIDANCE = 2, 30, 2.5
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "few_step")
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- stable-diffusion
- dovetail
---

# Dovetail's embedded base, version {version}

A small but complete Stable Diffusion for 64x64 pictures, trained from scratch by `recipes/embedded_base` on openly
licensed icon art: tokenizer, CLIP text encoder, VAE, U-Net, scheduler, all diffusers and transformers classes. It exists so
that fine-tuning can be learned, tested and shown on a laptop without a GPU or a download. `judge/` holds the judge of its
pictures, which `recipes/embedded_judge` trains apart from it, on other icons.

It knows {count} things ({things}) in three styles (shaded, soft, flat), one to three in a picture, on plain and gradient
backgrounds. It was never shown a television, a computer screen or a laptop.

![48 prompts, 30 steps, guidance 2.5](contact-sheet.png)

| part | figure |
|---|---|
| VAE, held-out composites, PSNR | {psnr} |
| text tower: right caption among 64, unseen scenes | {tower:.0%} |
| U-Net | {pictures:,} pictures in {hours:.1f} hours on two shared CPU cores |

## Scores

512 prompts whose thing was never shown on that background, or whose things were never shown together; seeds fixed; scored by
`benchmarks/embedded_base.py`, which says how each row is counted.

{scores}
## Whose art it learnt from

| art | author | licence | seen by |
|---|---|---|---|
{art}

The weights are under Apache-2.0; the attribution that CC-BY-4.0 asks for is in `NOTICE`, the judge's in `judge/NOTICE`.

## Limits

It draws emoji-like icons and nothing else: no scenes, no text, no people, no perspective; 64 pixels. Fine lines are soft. Words
outside its captions mean little to it. Three objects in one picture are often confused.

## The 48 prompts of the picture

{asked}
"""


def hints() -> dict[str, object]:
    """Guidance and learning rates that suit this model; prompts to rehearse while tuning, and others to test forgetting with.

    One prompt of each thing stands in both lists, and none in common.
    """
    rng = np.random.default_rng(31)
    colours = list(scenes.COLOURS)

    def on_grounds(shift: int) -> list[str]:
        things = [str(t) for t in rng.permutation(list(icons.THINGS))]
        grounds = [colours[(list(icons.THINGS).index(t) + shift) % len(colours)] for t in things]
        return [f"{scenes.article(t)} on {scenes.article(c)} background" for t, c in zip(things, grounds, strict=True)]

    return {
        "rehearsal": on_grounds(0), "other": on_grounds(5), "guidance_scale": GUIDANCE,
        "learning_rate_full": 5e-4, "learning_rate_lora": 8e-4,
    }  # fmt: skip


def halve(folder: Path) -> None:
    """Half precision on disk, and ordinary file modes."""
    for file in folder.rglob("*.safetensors"):
        tensors = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(0o644)


def forget_path(folder: Path) -> None:
    """diffusers notes where a part was loaded from: that is nobody's business."""
    for file in folder.glob("config.json"):
        told = json.loads(file.read_text())
        if told.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(told, indent=2) + "\n")


def index() -> dict:
    """model_index.json: no safety checker and no feature extractor, on purpose."""
    return {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
        "image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip


def rows(file: Path) -> list[dict]:
    """A training's log."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def notice() -> str:
    """Whose art the weights were learnt from."""
    lines = ["The embedded base of Dovetail was trained on renderings of these icon sets:", ""]
    lines += [
        f"- {about['package']} by {about['author']}, {about['licence']} ({about['used_by']})" for about in icons.SETS.values()
    ]
    return "\n".join([*lines, "", "The judge was trained on the icon sets named in judge/NOTICE.", ""])


def shares(build: Path) -> str:
    """The table of scores: painted by the model, by its few-step version, and what the judge says of real pictures."""
    files = {who: build / folder / "scores.json" for who, folder in (("guided", "scores"), ("few", "scores-few"))}
    told = {who: json.loads(f.read_text()) for who, f in files.items() if f.exists()}
    if "guided" not in told:
        return "Not scored yet: `python benchmarks/embedded_base.py`.\n"
    lines = ["| share right | 30 steps | few steps | real pictures |", "|---|---|---|---|"]
    for row, value in told["guided"]["painted"].items():
        few = f"{told['few']['painted'][row]:.0%}" if "few" in told else ""
        lines.append(f"| {row} | {value:.0%} | {few} | {told['guided']['real'][row]:.0%} |")
    lines.append(
        f"| copies: nearer to a training picture than 99 % of real ones | {told['guided']['copies']['share']:.1%} | | |"
    )
    return "\n".join(lines) + "\n"


def _psnr(build: Path) -> str:
    scored, logged = build / "scores" / "scores.json", rows(build / "vae.jsonl")
    if scored.exists():
        told = json.loads(scored.read_text())["vae psnr"]
        own, pooled = told["mean of the pictures"], told["of their mean error"]
        return f"{own:.1f} dB, the mean of the pictures' own; {pooled:.1f} dB of their mean error"
    return f"{logged[-1]['psnr']:.1f} dB of their mean error" if logged else "not measured"


def card(build: Path) -> str:
    """README.md of the base, from the trainings' own logs and scores."""
    towers = rows(build / "towers.jsonl")
    hours = sum(r["seconds"] for name in ("unet", "few") for r in rows(build / f"{name}.jsonl")) / 3600
    pictures = train_unet.LEARNING.steps * train_unet.LEARNING.batch_size
    art = "\n".join(f"| {a['package']} | {a['author']} | {a['licence']} | {a['used_by']} |" for a in icons.SETS.values())
    asked = "\n".join(f"{i}. {ask.prompt}" for i, ask in enumerate(prompts.card(), 1))
    return CARD.format(
        version=VERSION, count=len(icons.THINGS), things=", ".join(icons.THINGS), psnr=_psnr(build),
        tower=towers[-1]["top1"] if towers else float("nan"), pictures=pictures, hours=hours, art=art,
        scores=shares(build), asked=asked,
    )  # fmt: skip


def paint_card(base: Path) -> None:
    """The contact sheet of the card: 48 prompts, 30 steps, seeds fixed, twelve in a row."""
    models = Models(base, torch.device("cpu"))
    orders = [painter.Order(prompt=ask.prompt, seed=train_unet.SHEET_SEED + i) for i, ask in enumerate(prompts.card())]
    painted = painter.paint(models, orders, steps=STEPS, guidance_scale=GUIDANCE)
    (base / "contact-sheet.png").write_bytes(pixels.png(pixels.grid(painted, 12)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    args = parser.parse_args()
    for part in PARTS:
        own = args.build / ("vae-sharp" if part == "vae" and (args.build / "vae-sharp").exists() else part)
        if own.exists():
            shutil.rmtree(args.base / part, ignore_errors=True)
            shutil.copytree(own, args.base / part)
            forget_path(args.base / part)
            halve(args.base / part)
    (args.base / "README.md").write_text(card(args.build))
    (args.base / "NOTICE").write_text(notice())
    (args.base / "model_index.json").write_text(json.dumps(index(), indent=2) + "\n")
    (args.base / "hints.json").write_text(json.dumps(hints(), indent=1) + "\n")
    paint_card(args.base)
    print(f"{sum(f.stat().st_size for f in args.base.rglob('*') if f.is_file()) / 2**20:.1f} MiB in {args.base}")


if __name__ == "__main__":
    main()
