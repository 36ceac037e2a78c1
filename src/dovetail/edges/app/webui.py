"""The wire format of AUTOMATIC1111's web UI: /sdapi/v1 for its API's clients."""

import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from dovetail.edges.app import intake, lists, pictures
from dovetail.edges.app.faults import Fault, WebuiFault
from dovetail.edges.app.intake import Asked, Door, Job
from dovetail.edges.app.openai import WHOLE, Guidance, Name, Seconds, Side, Steps, Strength, Words
from dovetail.edges.app.waiting import drop, failure, finished, submitted
from dovetail.wishes import MOST_LORA_SCALE, Painted, Served, Ticket, tagged

PARAMS = {
    "guidance_scale": "cfg_scale", "sampler": "sampler_name", "strength": "denoising_strength", "image": "init_images",
    "model": "override_settings.sd_model_checkpoint", "width": "width/height", "lora_scale": "prompt",
}  # fmt: skip
DOT = (  # a picture of one pixel, for the examples
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": WebuiFault, "description": text}
    for status, text in {
        400: "Something in it cannot be done", 401: "No key, or a wrong one", 404: "Not here", 413: "Too large",
        422: "Something in it is wrong, or cannot be painted", 429: "Too much is waiting, or too many requests",
        500: "Painting failed", 503: "Going down, or cannot paint", 504: "Its time was up",
    }.items()
}  # fmt: skip


class TextToImage(BaseModel):
    """What the clients send. What would change the picture and is not offered is refused, not passed over."""

    model_config = ConfigDict(
        extra="ignore", strict=True, json_schema_extra={"examples": [{"prompt": "a cat", "seed": 7, "steps": 4}]}
    )

    prompt: Words | None = ""
    negative_prompt: Words | None = ""
    seed: Annotated[int, Field(ge=-1, le=intake.MOST_SEED), WHOLE] | None = -1
    steps: Steps | None = None
    cfg_scale: Guidance | None = None
    width: Side | None = None
    height: Side | None = None
    batch_size: Annotated[int, Field(ge=1, le=intake.MOST_PICTURES), WHOLE] | None = 1
    n_iter: Annotated[int, Field(ge=1, le=intake.MOST_PICTURES), WHOLE] | None = 1
    sampler_name: Name | None = None
    sampler_index: Name | None = None
    scheduler: Name | None = None
    denoising_strength: Strength | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True
    enable_hr: bool | None = False
    tiling: bool | None = False
    restore_faces: bool | None = False
    styles: list[str] | None = None
    subseed_strength: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = None
    least_steps: Steps | None = None
    deadline_seconds: Seconds | None = None


class ImageToImage(TextToImage):
    """The same from a picture."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a cat", "init_images": [f"data:image/png;base64,{DOT}"], "steps": 4}]}
    )

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    include_init_images: bool | None = False
    mask: str | None = None
    resize_mode: Annotated[int, Field(ge=0, le=3), WHOLE] | None = 0


class Made(BaseModel):
    """Pictures in base64, the request, and what was done as a text of JSON."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class Options(BaseModel):
    """What can be set: the model that this key's requests take where they do not say, and pictures on the way."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"live_previews_enable": True}]})

    sd_model_checkpoint: Name | None = None
    live_previews_enable: bool | None = None


class Shown(BaseModel):
    """A picture to be read."""

    model_config = ConfigDict(strict=True, json_schema_extra={"examples": [{"image": DOT}]})

    image: str


def asked_of(door: Door, key: str, wanted: TextToImage) -> Asked:
    """The request in the form that all wires share. Raises Fault."""
    _refuse_unoffered(wanted)
    settings = dict(wanted.override_settings or {})
    model = settings.pop("sd_model_checkpoint", None) or door.chosen.get(key)
    if model is not None and not isinstance(model, str):
        raise Fault(400, "override_settings.sd_model_checkpoint must be a name", "override_settings.sd_model_checkpoint")
    if settings:
        name = f"override_settings.{min(settings)}"[:100]
        raise Fault(400, f"{name} is not offered here", name, "unsupported")
    count = (wanted.batch_size or 1) * (wanted.n_iter or 1)
    if count > intake.MOST_PICTURES:
        raise Fault(400, f"batch_size times n_iter is at most {intake.MOST_PICTURES}", "n_iter", "invalid_value")
    picture = wanted.init_images[0] if isinstance(wanted, ImageToImage) else ""
    prompt, lora_scale = _prompt(door, wanted.prompt or "", lists.plain(model))
    return Asked(
        prompt=prompt, lora_scale=lora_scale, n=count, negative_prompt=wanted.negative_prompt,
        seed=None if wanted.seed in (None, -1) else wanted.seed, steps=wanted.steps, guidance_scale=wanted.cfg_scale,
        width=wanted.width, height=wanted.height, model=lists.plain(model), sampler=wanted.sampler_name or wanted.sampler_index,
        scheduler=wanted.scheduler if wanted.sampler_name or wanted.sampler_index else None,
        image=pictures.decoded(picture, "init_images") if isinstance(wanted, ImageToImage) else b"",
        strength=wanted.denoising_strength, least_steps=wanted.least_steps, deadline_seconds=wanted.deadline_seconds,
        previews=3 if key in door.watchers else 0, params=PARAMS,
    )  # fmt: skip


def _prompt(door: Door, text: str, model: str | None) -> tuple[str, float | None]:
    """A prompt without its tag `<lora:NAME:SCALE>`, and the scale. Raises Fault where it asks for what is not there."""
    (prompt, tags), served = door.tags(text), door.studio.served
    if not tags:
        return prompt, None
    name, scale = tags[0]
    if not served.lora or name != served.name or intake.model_of(served, model, PARAMS["model"]):
        offered = f"there is <lora:{served.name}:SCALE>, for {served.name} alone" if served.lora else "there is none"
        raise Fault(400, f"prompt: the LoRA {name!r:.100} is not offered here; {offered}", "prompt", "unsupported")
    if len(tags) > 1 or not 0 <= scale <= MOST_LORA_SCALE:
        told = f"prompt: there can be one <lora:{name}:SCALE>, its scale one number from 0 to {MOST_LORA_SCALE:g}"
        raise Fault(400, told, "prompt", "invalid_value")
    return prompt, scale


def _refuse_unoffered(wanted: TextToImage) -> None:
    names = ["enable_hr", "tiling", "restore_faces", "styles", "subseed_strength", "script_name", "alwayson_scripts"]
    if isinstance(wanted, ImageToImage):
        names += ["mask", "resize_mode"]
    for name in names:
        if getattr(wanted, name):
            raise Fault(400, f"{name} is not offered here", name, "unsupported")


def router(door: Door) -> APIRouter:
    """The routes under /sdapi/v1."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["webui"], responses=FAULTS)

    @routes.post("/txt2img", summary="Paint pictures of a prompt", response_model=Made)
    async def text_to_image(wanted: TextToImage, request: Request) -> dict[str, Any]:
        return await _answered(door, request, wanted)

    @routes.post("/img2img", summary="Paint pictures that begin from a picture", response_model=Made)
    async def image_to_image(wanted: ImageToImage, request: Request) -> dict[str, Any]:
        return await _answered(door, request, wanted)

    @routes.get("/progress", summary="How far this key's requests are")
    async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        intake.only_alone(door, "progress")
        return _progress(door.jobs.get(request.state.key, []), skip_current_image)

    @routes.post("/interrupt", summary="Drop what this key asked for here and is not done")
    async def interrupt(request: Request) -> dict[str, Any]:
        intake.only_alone(door, "interrupt")
        for job in list(door.jobs.get(request.state.key, [])):
            drop(job.tickets)
        return {}

    @routes.post("/skip", summary="Drop the oldest picture that this key asked for here and is not done")
    async def skip(request: Request) -> dict[str, Any]:
        intake.only_alone(door, "skip")
        waiting = [t for job in door.jobs.get(request.state.key, []) for t in job.tickets if not t.future.done()]
        drop(waiting[:1])
        return {}

    @routes.get("/options", summary="The model that this key's requests take, and whether pictures on the way are made")
    async def options(request: Request) -> dict[str, Any]:
        served, key = door.studio.served, request.state.key
        chosen = door.chosen.get(key, served.name)
        return {"sd_model_checkpoint": lists.title(served, chosen), "live_previews_enable": key in door.watchers}

    @routes.post("/options", summary="Set them, for this key alone")
    async def set_options(wanted: Options, request: Request) -> None:
        intake.only_alone(door, "setting options")
        _set(door, request.state.key, wanted)

    @routes.post("/png-info", summary="What a picture tells of its making")
    async def png_info(wanted: Shown) -> dict[str, Any]:
        found = pictures.texts(pictures.decoded(wanted.image, "image"), "image")
        return {"info": lists.infotext_of(found), "items": found, "parameters": {}}

    lists.add_to(routes, door)
    return routes


def _set(door: Door, key: str, wanted: Options) -> None:
    if wanted.sd_model_checkpoint is not None:
        door.chosen[key] = intake.model_of(door.studio.served, lists.plain(wanted.sd_model_checkpoint), "sd_model_checkpoint")
    if wanted.live_previews_enable is not None:
        (door.watchers.add if wanted.live_previews_enable else door.watchers.discard)(key)


async def _answered(door: Door, request: Request, wanted: TextToImage) -> dict[str, Any]:
    key = request.state.key
    tickets = await submitted(door, request, asked_of(door, key, wanted))
    job = Job(tickets, time.monotonic())
    door.jobs.setdefault(key, []).append(job)
    try:
        made = await finished(request, tickets, some=True)
    finally:
        door.jobs[key].remove(job)
    images = [pictures.encoded(p.png) for p in made] + _unfinished(tickets)
    echo = wanted.model_dump()
    if not getattr(wanted, "include_init_images", True):
        echo["init_images"] = None
    sent = images if wanted.send_images is not False else []
    return {"images": sent, "parameters": echo, "info": _info(door.studio.served, tickets, made, wanted)}


def _unfinished(tickets: list[Ticket]) -> list[str]:
    """How far those that were interrupted came, where pictures on the way were made."""
    return [pictures.encoded(t.previews[-1]) for t in tickets if t.previews and failure(t)]


def _info(served: Served, tickets: list[Ticket], made: list[Painted], wanted: TextToImage) -> str:
    wishes = [p.wish for p in made] or [tickets[0].wish]
    first = wishes[0]
    name, maker = (made[0].model, made[0]) if made else (served.name, served)
    lowered = next((p.degraded for p in made if p.degraded), "")
    prompts = [tagged(w, name) for w in wishes]
    told = {
        "prompt": prompts[0], "all_prompts": prompts, "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [w.negative_prompt for w in wishes], "seed": first.seed, "all_seeds": [w.seed for w in wishes],
        "subseed": -1, "all_subseeds": [-1] * len(wishes), "subseed_strength": 0, "width": first.width, "height": first.height,
        "sampler_name": first.sampler, "cfg_scale": first.guidance_scale, "steps": first.steps,
        "batch_size": wanted.batch_size or 1, "restore_faces": False, "face_restoration_model": None, "sd_model_name": name,
        "sd_model_hash": maker.digest[:10], "sd_vae_name": None, "sd_vae_hash": None, "seed_resize_from_w": -1,
        "seed_resize_from_h": -1, "denoising_strength": first.strength if first.image else None,
        "extra_generation_params": {"degraded": lowered} if lowered else {}, "index_of_first_image": 0,
        "infotexts": [lists.infotext(p) for p in made], "styles": [],
        "job_timestamp": datetime.now(UTC).strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1, "is_using_inpainting_conditioning": False, "version": maker.version,
    }  # fmt: skip
    return json.dumps(told)


def _progress(jobs: list[Job], skip_current_image: bool) -> dict[str, Any]:
    tickets = [t for job in jobs for t in job.tickets]
    whole = sum(t.wish.steps for t in tickets)
    done = sum(t.wish.steps if t.future.done() else min(t.step, t.wish.steps) for t in tickets)
    share = min(done / whole, 0.999) if whole else 0.0
    taken = time.monotonic() - min((job.started for job in jobs), default=time.monotonic())
    running = next((t for t in tickets if not t.future.done()), None)
    shown = running.previews[-1] if running and running.previews and not skip_current_image else None
    state = {
        "skipped": False, "interrupted": any(t.dropped for t in tickets), "stopping_generation": False,
        "job": running.caller.request_id if running else "", "job_count": len(tickets), "job_timestamp": "0",
        "job_no": sum(t.future.done() for t in tickets), "sampling_step": running.step if running else 0,
        "sampling_steps": running.wish.steps if running else 0,
    }  # fmt: skip
    return {
        "progress": share, "eta_relative": taken / share * (1 - share) if share else 0.0, "state": state,
        "current_image": pictures.encoded(shown) if shown else None, "textinfo": None,
    }  # fmt: skip
