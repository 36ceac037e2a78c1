"""A picture that was painted here is painted again from what it says of itself: are the bytes the same, and if not, why."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from dovetail.edges.app import pictures
from dovetail.edges.app.faults import Fault, HubFault, fault_of
from dovetail.edges.app.intake import Door
from dovetail.edges.app.openai import FAULTS
from dovetail.edges.app.waiting import extras, finished
from dovetail.wishes import Caller, Painted, Wish, WishError

Receipt = Callable[[bytes], tuple[Wish, Callable[[Painted], str]]]
TOLD: dict[int | str, dict[str, Any]] = {status: told | {"model": HubFault} for status, told in FAULTS.items()}
BYTES = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "required": True}


class Answer(BaseModel):
    """Whether the picture painted again has the same bytes."""

    same: bool
    why: str  # they differ; empty where they do not
    seed: int
    model: str
    version: str
    digest: str
    steps: int
    sampler: str
    degraded: str | None
    b64_json: str  # the picture painted again


def router(door: Door, receipt: Receipt) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["provenance"])

    @routes.post(
        "/reproduce", summary="Paint a PNG again from what it says, and compare", response_model=Answer, responses=TOLD,
        openapi_extra={"requestBody": BYTES},
    )  # fmt: skip
    async def reproduce(request: Request) -> dict[str, Any]:
        png = await request.body()
        if not pictures.is_picture(png):
            raise Fault(400, "the body must be a PNG that was painted here", "body", "invalid_image")
        caller = Caller(key=request.state.key, request_id=request.state.request_id)
        try:
            wish, why = await run_in_threadpool(receipt, png)
            tickets = await run_in_threadpool(door.studio.submit, [wish], caller)
        except WishError as error:
            raise Fault(400, str(error), "body", "invalid_value") from error
        except Exception as error:
            raise fault_of(error) from error
        (painted,) = await finished(request, tickets)
        told = why(painted)
        return {"same": not told, "why": told, "b64_json": pictures.encoded(painted.png)} | extras(painted)

    return routes
