"""OpenAI's wire format: pictures of a prompt, pictures of a picture, the models."""

import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dovetail.edges.app import intake, pictures, streams
from dovetail.edges.app.faults import Fault, OpenaiFault
from dovetail.edges.app.intake import Asked, Door
from dovetail.edges.app.waiting import extras, finished, headers, submitted
from dovetail.wishes import MOST_LORA_SCALE

PARAMS = {"width": "size", "height": "size"}
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenaiFault, "description": text}
    for status, text in {
        400: "Something in it is wrong or cannot be done", 401: "No key, or a wrong one", 404: "Not here",
        413: "Too large", 422: "This cannot be painted", 429: "Too much is waiting, or too many requests",
        500: "Painting failed", 503: "Going down, or cannot paint", 504: "Its time was up",
    }.items()
}  # fmt: skip


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _size(value: str) -> str:
    if value not in ("", "auto") and not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", value):
        raise ValueError("size must be auto or WIDTHxHEIGHT")
    return value


WHOLE = BeforeValidator(_whole)  # 20.0 is 20, as JSON has it
Words = Annotated[str, Field(max_length=intake.PROMPT_LETTERS)]
Name = Annotated[str, Field(max_length=200)]
Steps = Annotated[int, Field(ge=1, le=intake.MOST_STEPS), WHOLE]
Guidance = Annotated[float, Field(ge=1, le=intake.MOST_GUIDANCE, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LoraScale = Annotated[
    float,
    Field(
        ge=0, le=MOST_LORA_SCALE, allow_inf_nan=False, examples=[0.6],
        description="Of a model with `lora` in /v1/models: 0 is its base, 1 (the default) the model as published",
    ),
]  # fmt: skip
Seed = Annotated[int, Field(ge=0, le=intake.MOST_SEED), WHOLE]
Side = Annotated[int, Field(ge=1, le=65536), WHOLE]
Seconds = Annotated[float, Field(ge=intake.SHORTEST_SECONDS, le=intake.LONGEST_SECONDS, allow_inf_nan=False)]


class Common(BaseModel):
    """What generations and edits share: OpenAI's fields, and what Stable Diffusion needs beside them (`extra_body`)."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[Words, Field(min_length=1)]
    model: Name | None = None
    n: Annotated[int, Field(ge=1, le=intake.MOST_PICTURES), WHOLE] | None = 1
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})?$"), AfterValidator(_size)] | None = "auto"
    response_format: Annotated[str, Field(pattern="^(b64_json|url)$")] | None = None
    output_format: Annotated[str, Field(pattern="^png$")] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3), WHOLE] | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    negative_prompt: Words | None = None
    sampler: Name | None = None
    lora_scale: LoraScale | None = None
    least_steps: Steps | None = None
    deadline_seconds: Seconds | None = None


class Generation(Common):
    """A request for pictures of a prompt."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"prompt": "a cat", "seed": 7, "steps": 4, "size": "auto"}]}
    )


class Edit(Common):
    """A request for pictures that begin from another picture."""

    image: UploadFile | None = None
    images: Annotated[list[UploadFile] | None, Field(alias="image[]")] = None
    mask: UploadFile | None = None
    strength: Strength | None = None


class Item(BaseModel):
    """One picture."""

    model_config = ConfigDict(extra="allow")

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Made(BaseModel):
    """The answer."""

    model_config = ConfigDict(extra="allow")

    created: int
    data: list[Item]


class Model(BaseModel):
    """A model that is served."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str
    created: int
    owned_by: str


class Models(BaseModel):
    """All of them, the one in force first."""

    object: str
    data: list[Model]


def asked_of(wanted: Common, image: bytes = b"", strength: float | None = None) -> Asked:
    """The request in the form that all wires share."""
    width, height = (int(side) for side in wanted.size.split("x")) if wanted.size not in (None, "", "auto") else (None, None)
    return Asked(
        prompt=wanted.prompt, n=wanted.n or 1, negative_prompt=wanted.negative_prompt, seed=wanted.seed,
        steps=wanted.steps or wanted.num_inference_steps, guidance_scale=wanted.guidance_scale, width=width, height=height,
        model=wanted.model, sampler=wanted.sampler, image=image, strength=strength, least_steps=wanted.least_steps,
        lora_scale=wanted.lora_scale, deadline_seconds=wanted.deadline_seconds,
        previews=(wanted.partial_images or 0) if wanted.stream else 0, params=PARAMS,
    )  # fmt: skip


def router(door: Door) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=FAULTS)
    streamed = {200: {"model": Made, "content": {"text/event-stream": {"schema": {}}}}}

    @routes.post("/images/generations", summary="Paint pictures of a prompt", responses=streamed)  # type: ignore[arg-type]
    async def generate(wanted: Generation, request: Request) -> Response:
        return await _answered(door, request, wanted, asked_of(wanted), "image_generation")

    @routes.post("/images/edits", summary="Paint pictures that begin from a picture", responses=streamed)  # type: ignore[arg-type]
    async def edit(wanted: Annotated[Edit, Form(media_type="multipart/form-data")], request: Request) -> Response:
        if wanted.mask is not None:
            raise Fault(400, "mask: only whole pictures are painted anew here, a mask is not offered", "mask", "unsupported")
        given = [picture for picture in [wanted.image, *(wanted.images or [])] if picture is not None]
        if len(given) != 1:
            raise Fault(400, f"image: one picture is needed, there are {len(given)}", "image", "invalid_image")
        image = pictures.checked(await given[0].read(), "image")
        return await _answered(door, request, wanted, asked_of(wanted, image, wanted.strength), "image_edit")

    @routes.get("/models", summary="The models served here", response_model=Models)
    async def models() -> dict[str, Any]:
        served = door.studio.served
        return {"object": "list", "data": [_model(door, name) for name in (served.name, *served.others)]}

    @routes.get("/models/{name:path}", summary="One of them", response_model=Model)
    async def model(name: str) -> dict[str, Any]:
        served = door.studio.served
        return _model(door, intake.model_of(served, name, "model") or served.name)

    return routes


def _model(door: Door, name: str) -> dict[str, Any]:
    served = door.studio.served
    told: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "dovetail"}
    if name == served.name:
        own = ("version", "digest", "samplers", "multiple", "most_pixels", "others", "restrictions", "run", "lora")
        told |= {"size": served.side, "steps": door.steps, "guidance_scale": door.guidance_scale}
        told |= {key: getattr(served, key) for key in own}
    return told


async def _answered(door: Door, request: Request, wanted: Common, asked: Asked, kind: str) -> Response:
    if wanted.response_format == "url":
        intake.only_alone(door, "response_format: url", "response_format")
    tickets = await submitted(door, request, asked)
    if wanted.stream:
        return streams.Events(request, tickets, kind)
    made = await finished(request, tickets)
    data = []
    for painted in made:
        if wanted.response_format == "url":
            where = {"url": str(request.url_for("picture", name=door.kept.keep(painted.png)))}
        else:
            where = {"b64_json": pictures.encoded(painted.png)}
        data.append(where | extras(painted))
    size = f"{made[0].wish.width}x{made[0].wish.height}"
    body = {"created": int(time.time()), "data": data, "size": size, "output_format": "png"}
    return JSONResponse(body | {"model": made[-1].model, "version": made[-1].version}, headers=headers(made))
