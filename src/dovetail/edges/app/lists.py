"""What the web UI's clients ask to list, and its line of parameters."""

import re
from typing import Any

from fastapi import APIRouter

from dovetail.edges.app.intake import Door
from dovetail.wishes import Painted, Served, tagged

NONE_UPSCALER = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
AUTOMATIC = {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
FIXED: dict[str, Any] = {
    "scripts": {"txt2img": [], "img2img": []}, "script-info": [], "sd-vae": [], "upscalers": [NONE_UPSCALER],
    "latent-upscale-modes": [], "hypernetworks": [], "face-restorers": [], "realesrgan-models": [], "prompt-styles": [],
    "embeddings": {"loaded": {}, "skipped": {}}, "cmd-flags": {}, "memory": {"ram": {}, "cuda": {}}, "extensions": [],
    "schedulers": [AUTOMATIC],
}  # fmt: skip


def add_to(routes: APIRouter, door: Door) -> None:
    """The lists: models and samplers as they are, and what there is none of."""

    @routes.get("/sd-models", summary="The models served here")
    async def models() -> list[dict[str, Any]]:
        served = door.studio.served
        return [_model(served, name) for name in (served.name, *served.others)]

    @routes.get("/samplers", summary="The samplers, the model's own first")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": name, "aliases": [], "options": {}} for name in door.studio.served.samplers]

    @routes.get("/loras", summary="The LoRA that the model was tuned with, where there is one")
    async def loras() -> list[dict[str, Any]]:
        served = door.studio.served
        return [{"name": served.name, "alias": served.name, "path": served.name, "metadata": {}}] if served.lora else []

    @routes.post("/refresh-checkpoints", summary="Nothing needs it: releases are followed")
    async def refresh() -> None:
        return None

    def fixed(content: Any) -> Any:
        async def listed() -> Any:
            return content

        return listed

    for name, content in FIXED.items():
        listed = fixed(content)
        listed.__name__ = name.replace("-", "_")
        routes.get(f"/{name}", summary=f"The {name.replace('-', ' ')}")(listed)


def title(served: Served, name: str) -> str:
    """What the web UI calls a model: its name and the beginning of its digest, where it is known."""
    name = name or served.name
    return f"{name} [{served.digest[:10]}]" if name == served.name and served.digest else name


def plain(title: str | None) -> str | None:
    """The name in a title."""
    return re.sub(r" \[[0-9a-f]+\]$", "", title) if title else title


def _model(served: Served, name: str) -> dict[str, Any]:
    digest = served.digest if name == served.name else ""
    return {
        "title": title(served, name), "model_name": name, "hash": digest[:10], "sha256": digest, "filename": name,
        "config": None,
    }  # fmt: skip


def infotext(painted: Painted) -> str:
    """The line of parameters of a picture, as the web UI writes and reads it."""
    wish = painted.wish
    told = {
        "Steps": wish.steps, "Sampler": wish.sampler, "CFG scale": f"{wish.guidance_scale:g}", "Seed": wish.seed,
        "Size": f"{wish.width}x{wish.height}", "Model hash": painted.digest[:10], "Model": painted.model,
    } | ({"Denoising strength": f"{wish.strength:g}"} if wish.image else {}) | {"Version": painted.version}  # fmt: skip
    prompt = tagged(wish, painted.model)
    return _lines(prompt, wish.negative_prompt, ", ".join(f"{name}: {value}" for name, value in told.items()))


def _lines(prompt: str, negative: str, parameters: str) -> str:
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), parameters])


def infotext_of(texts: dict[str, str]) -> str:
    """The same from a picture's text chunks; the web UI's own chunk as it is."""
    if "parameters" in texts:
        return texts["parameters"]
    names = {
        "steps": "Steps", "sampler": "Sampler", "guidance_scale": "CFG scale", "seed": "Seed", "model": "Model",
        "version": "Version",
    }  # fmt: skip
    told = ", ".join(f"{names[key]}: {texts[key]}" for key in names if key in texts)
    return _lines(texts.get("prompt", ""), texts.get("negative_prompt", ""), told) if told else ""
