"""Hugging Face's wire format: an InferenceClient with this address as its model, Inference Endpoints, Vertex AI."""

import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from dovetail.edges.app import intake, pictures
from dovetail.edges.app.faults import Fault, HubFault
from dovetail.edges.app.intake import Asked, Door
from dovetail.edges.app.openai import WHOLE, Guidance, LoraScale, Name, Seconds, Seed, Side, Steps, Strength, Words
from dovetail.edges.app.waiting import finished, headers, submitted
from dovetail.wishes import Painted

PARAMS = {
    "prompt": "inputs", "image": "inputs", "steps": "num_inference_steps", "sampler": "scheduler", "width": "width/height",
}  # fmt: skip
Inputs = Annotated[str, Field(min_length=1)]
BINARY = {"schema": {"type": "string", "format": "binary"}}
STATUS = {
    400: "Something in it is wrong or cannot be done", 401: "No key, or a wrong one", 404: "Not here",
    406: "Only image/png and application/json are given", 413: "Too large", 422: "This cannot be painted",
    429: "Too much is waiting, or too many requests", 500: "Painting failed",
    503: "Going down, or cannot paint", 504: "Its time was up",
}  # fmt: skip
ANSWERS: dict[int | str, dict[str, Any]] = {status: {"model": HubFault, "description": text} for status, text in STATUS.items()}
ANSWERS[200] = {
    "description": "The picture; where JSON is asked for, in base64; for `instances`, `predictions`",
    "content": {"image/png": BINARY, "application/json": {"schema": {}}},
}


class TargetSize(BaseModel):
    """Of the picture, in pixels."""

    model_config = ConfigDict(extra="forbid", strict=True)

    width: Side
    height: Side


class CrossAttention(BaseModel):
    """What diffusers' pipelines take for the scale of a LoRA."""

    model_config = ConfigDict(extra="forbid", strict=True)

    scale: LoraScale | None = None


class Parameters(BaseModel):
    """What InferenceClient calls them; one that is not known is refused, so that none is passed over in silence."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Words | None = None
    negative_prompt: Words | None = None
    width: Side | None = None
    height: Side | None = None
    target_size: TargetSize | None = None
    num_inference_steps: Steps | None = None
    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: Name | None = None
    sampler: Name | None = None
    seed: Seed | None = None
    strength: Strength | None = None
    lora_scale: LoraScale | None = None
    cross_attention_kwargs: CrossAttention | None = None
    num_images_per_prompt: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None
    least_steps: Steps | None = None
    deadline_seconds: Seconds | None = None


class Instance(BaseModel):
    """One picture of Vertex AI's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Inputs | None = None
    prompt: Words | None = None
    parameters: Parameters | None = None


class Body(BaseModel):
    """A prompt, or a picture in base64 with the prompt among the parameters; or several as `instances`."""

    model_config = ConfigDict(
        extra="ignore", strict=True,
        json_schema_extra={
            "examples": [{"inputs": "a cat", "parameters": {"seed": 7, "num_inference_steps": 4}}],
            "anyOf": [
                {"required": [name], "properties": {name: {"type": kind}}}
                for name, kind in (("inputs", "string"), ("instances", "array"))
            ],
        },
    )  # fmt: skip

    inputs: Inputs | None = None
    instances: Annotated[list[Instance | Inputs], Field(min_length=1, max_length=intake.MOST_PICTURES)] | None = None
    parameters: Parameters | None = None


def asked_of(inputs: str | bytes, given: Parameters, model: str | None) -> Asked:
    """The request in the form that all wires share. Raises Fault."""
    image, prompt = _read(inputs, given)
    if not image and len(prompt) > intake.PROMPT_LETTERS:
        raise Fault(400, f"inputs: a prompt has at most {intake.PROMPT_LETTERS} letters", "inputs")
    size, beside = given.target_size, given.cross_attention_kwargs
    return Asked(
        prompt=prompt, negative_prompt=given.negative_prompt, seed=given.seed, steps=given.num_inference_steps or given.steps,
        guidance_scale=given.guidance_scale, width=given.width or (size.width if size else None), model=model,
        height=given.height or (size.height if size else None), sampler=given.scheduler or given.sampler, image=image,
        strength=given.strength, least_steps=given.least_steps, deadline_seconds=given.deadline_seconds, params=PARAMS,
        lora_scale=beside.scale if given.lora_scale is None and beside else given.lora_scale,
    )  # fmt: skip


def _read(inputs: str | bytes, given: Parameters) -> tuple[bytes, str]:
    """(picture, prompt): what the one text is can only be seen from it, as the clients send it."""
    if isinstance(inputs, bytes):
        return pictures.checked(inputs, "body"), given.prompt or ""
    if given.prompt is not None or _is_base64_picture(inputs):
        return pictures.decoded(inputs, "inputs"), given.prompt or ""
    return b"", inputs


def _is_base64_picture(text: str) -> bool:
    if text.startswith("data:image/"):
        return True
    if len(text) < 64 or not re.fullmatch(r"[A-Za-z0-9+/]{16}", text[:16]):
        return False
    try:
        return pictures.is_picture(pictures.decoded(text, "inputs"))
    except Fault:
        return False


def wants_json(accept: str) -> bool:
    """Whether an Accept header would rather have JSON than a PNG. Raises Fault (406) where it will have neither."""
    best: list[tuple[float, bool]] = []
    for kind in (accept or "*/*").lower().split(","):
        name, *rest = (part.strip() for part in kind.split(";"))
        weight = next((part[2:] for part in rest if part.startswith("q=")), "1")
        quality = float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 1.0
        if quality and name in ("*/*", "image/*", "image/png", "application/json", "application/*"):
            best.append((quality, name.startswith("application/")))
    if not best:
        raise Fault(406, "only image/png and application/json are given here", "accept")
    return max(best, key=lambda found: found[0])[1]


def _parsed(data: bytes) -> Body:
    try:
        return Body.model_validate(json.loads(data))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_context=False)) from error
    except (ValueError, RecursionError) as error:
        raise Fault(400, "the body is not JSON") from error


def router(door: Door) -> APIRouter:
    """POST to /, /predict and /models/{name}."""
    routes = APIRouter(tags=["huggingface"])
    accepted = {
        "required": True,
        "content": {
            "application/json": {"schema": _inlined(Body)},
            "image/png": BINARY, "image/jpeg": BINARY, "image/webp": BINARY, "application/octet-stream": BINARY,
        },
    }  # fmt: skip

    async def paint(request: Request, name: str = "") -> Response:
        return await _answered(door, request, name)

    async def root(request: Request) -> Response:
        return await _answered(door, request, "")

    told: dict[str, Any] = {"response_class": Response, "responses": ANSWERS, "openapi_extra": {"requestBody": accepted}}
    routes.post("/", summary="Paint a picture of a prompt, or of a picture", **told)(root)
    routes.post("/predict", summary="The same", **told)(root)
    routes.post("/models/{name:path}", summary="The same, by a model that is named", **told)(paint)
    return routes


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema without references."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(v) for v in value]
        if not isinstance(value, dict):
            return value
        return filled(parts[value["$ref"].rsplit("/", 1)[1]]) if "$ref" in value else {k: filled(v) for k, v in value.items()}

    whole: dict[str, Any] = filled(schema)
    return whole


async def _answered(door: Door, request: Request, name: str) -> Response:
    as_json = wants_json(request.headers.get("accept", ""))
    data = await request.body()
    if "json" not in request.headers.get("content-type", "").lower():
        if data[:1] == b"{":
            raise Fault(400, "the body looks like JSON: send it with Content-Type: application/json", "content-type")
        if not data:
            raise Fault(400, "the body is empty")
        made = await finished(request, await submitted(door, request, asked_of(data, Parameters(), name)))
        return _picture(made[0], as_json)
    body = await run_in_threadpool(_parsed, data)
    given = body.parameters or Parameters()
    if body.instances is not None:
        many = [_instance(instance, given, name) for instance in body.instances]
        made = await finished(request, await submitted(door, request, *many))
        return JSONResponse({"predictions": [pictures.encoded(p.png) for p in made]}, headers=headers(made))
    if body.inputs is None:
        raise Fault(400, "inputs: Field required", "inputs")
    made = await finished(request, await submitted(door, request, asked_of(body.inputs, given, name)))
    return _picture(made[0], as_json)


def _instance(instance: Instance | str, given: Parameters, name: str) -> Asked:
    if isinstance(instance, str):
        instance = Instance(inputs=instance)
    own = instance.parameters or given
    inputs = instance.inputs or instance.prompt
    if not inputs:
        raise Fault(400, "instances: each needs inputs, or a prompt", "instances")
    if instance.inputs and instance.prompt is not None:
        own = own.model_copy(update={"prompt": instance.prompt})
    return asked_of(inputs, own, name)


def _picture(painted: Painted, as_json: bool) -> Response:
    told = headers([painted]) | {"x-dovetail-seed": str(painted.wish.seed)}
    if as_json:
        return JSONResponse(pictures.encoded(painted.png), headers=told)
    return Response(painted.png, media_type="image/png", headers=told)
