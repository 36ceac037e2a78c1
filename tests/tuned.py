"""A published model that a LoRA was fused into, as `stages/repo` writes it, without the training before it."""

import json
import shutil
from pathlib import Path

import torch

from dovetail.edges import adapters
from dovetail.edges.models import Models, save_unet


def write_tuned(folder: Path, base: Path, *, method: str = "lora", text: bool = True) -> Path:
    """The base with adapters of noise, loud enough to be seen: in files of their own, and added into the weights."""
    shutil.copytree(base, folder)
    models = Models(base, torch.device("cpu"))
    taught = {"unet": models.unet} | ({part: getattr(models, part) for part in models.encoders} if text else {})
    dice = torch.Generator().manual_seed(5)
    for part, model in taught.items():
        for parameter in adapters.add(model, method, 2, 3, seed=1):
            torch.nn.init.normal_(parameter, std=0.25 if part == "unet" else 0.1, generator=dice)
    adapters.write(folder, taught)
    for part, model in taught.items():
        adapters.fuse(model)
        if part != "unet":
            model.save_pretrained(folder / part, safe_serialization=True)
    save_unet(models.unet, folder / "unet", "float32")
    (folder / "provenance.json").write_text(json.dumps({"checkpoint": {"content": "c" * 64}}))
    return folder
