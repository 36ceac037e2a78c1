"""The whole recipe in small: drawn stand-ins for the icon sets, a step or two of each training, and what comes out opens."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dovetail.config import Training
from recipes.embedded_base import (
    distill,
    icons,
    latents,
    pack,
    prompts,
    televisions,
    tokenizer,
    train_towers,
    train_unet,
    train_vae,
)
from recipes.embedded_base.whole import whole


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `icons.json` for each set, in which every thing is a shape of its own colour."""
    folder = tmp_path_factory.mktemp("icons")
    for number, name in enumerate(icons.SETS):
        drawn = {}
        for k, icon in enumerate([*icons.THINGS.values(), "television"]):
            colour = f"hsl({(37 * k + 60 * number) % 360},70%,50%)"
            shapes = (f'<circle cx="8" cy="8" r="7" fill="{colour}"/>', f'<path d="M1 15L8 1L15 15z" fill="{colour}"/>')
            drawn[icon] = {"body": shapes[k % 2]}
        (folder / name).mkdir()
        (folder / name / "icons.json").write_text(json.dumps({"width": 16, "height": 16, "icons": drawn}))
    return folder


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step or two of everything."""
    learning = dict(batch_size=4, warmup_steps=1, checkpoint_every=1, held_out_every=2, sample_every=2, caption_dropout=0.0)
    monkeypatch.setattr(train_vae, "STEPS", {"whole": 1, "decoder": 1})
    for name, count in (("BATCH", 2), ("HELD_OUT", 8), ("CENTRED", 8)):
        monkeypatch.setattr(train_vae, name, count)
    monkeypatch.setattr(latents, "HELD_OUT", 2)
    monkeypatch.setattr(train_unet, "LEARNING", Training(steps=2, rehearsal_share=0, **learning))
    monkeypatch.setattr(train_unet, "SHEET_STEPS", 1)
    monkeypatch.setattr(distill, "CONFIG", Training(method="lora", lora_rank=2, steps=1, rehearsal_share=0, **learning))
    monkeypatch.setattr(distill, "HELD_OUT", 2)
    monkeypatch.setattr(
        distill, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers)
    )  # latents has it
    monkeypatch.setattr(pack, "STEPS", 1)
    asked = prompts.card()[:3]
    monkeypatch.setattr(prompts, "card", lambda: asked)
    monkeypatch.setattr(televisions, "drawings", lambda folder, side=256: [])


@pytest.mark.filterwarnings("ignore")
def test_from_icons_to_a_model_that_diffusers_opens(downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    build, base = tmp_path / "build", tmp_path / "base"
    places = ("--downloads", downloads, "--out", build)
    call(tokenizer, monkeypatch, *places)
    call(train_vae, monkeypatch, "whole", *places)
    call(train_towers, monkeypatch, "--steps", "1", "--batch", "16", *places)
    call(latents, monkeypatch, "--scenes", "12", "--workers", "1", *places)
    call(train_unet, monkeypatch, "--out", build)
    call(distill, monkeypatch, "--paths", "6", "--workers", "1", "--out", build)
    before = load_file(build / "vae" / "diffusion_pytorch_model.safetensors")
    call(train_vae, monkeypatch, "decoder", *places)
    base.mkdir()
    call(pack, monkeypatch, "--build", build, "--base", base)

    after = load_file(build / "vae-sharp" / "diffusion_pytorch_model.safetensors")
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"decoder", "post_quant_conv"}, "the encoder is frozen, or latents would change"
    pipe = StableDiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(base / "few_step", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert np.asarray(pipe("a cat", num_inference_steps=1, guidance_scale=1.0).images[0]).shape == (64, 64, 3)
    hints = json.loads((base / "hints.json").read_text())
    assert len(hints["rehearsal"]) == len(hints["other"]) == len(icons.THINGS) and not set(hints["rehearsal"]) & set(
        hints["other"]
    )
    assert {f.suffix for f in base.rglob("*") if f.is_file()} <= {".json", ".safetensors", ".md", ".png", ".txt", ""}


def test_an_interrupted_result_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole(tmp_path / "vae") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not (tmp_path / "vae").exists()
    with whole(tmp_path / "vae") as folder:
        (folder / "all").write_text("x")
    assert [f.name for f in (tmp_path / "vae").iterdir()] == ["all"]
    assert not list(tmp_path.glob(".*"))
