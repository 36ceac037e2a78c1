"""The endpoint's door: OpenAI's, Hugging Face's and the web UI's wire formats over one studio (FastAPI, uvicorn)."""

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from dovetail.edges.app import faults, huggingface, openai, reading, reproducing, webui
from dovetail.edges.app.guard import Access, Guard, access_from, refuse_open
from dovetail.edges.app.intake import Door, Tags, no_tags
from dovetail.edges.app.logs import JsonLines
from dovetail.edges.app.logs import begin as log
from dovetail.edges.app.reading import PAGE
from dovetail.edges.app.server import Server, bind, url_of
from dovetail.wishes import Studio

__all__ = ["PAGE", "Access", "JsonLines", "Server", "access_from", "bind", "build_app", "log", "refuse_open", "url_of"]


def _as_said(sampler: str, scheduler: str) -> str | None:
    """A sampler is called as the model calls it."""
    return sampler or scheduler


def _all_pass(prompt: str) -> str | None:
    return None


def build_app(
    studio: Studio,
    default_steps: int,
    default_guidance: float,
    access: Access | None = None,
    *,
    named: Callable[[str, str], str | None] = _as_said,
    check: Callable[[str], str | None] = _all_pass,
    tags: Tags = no_tags,
    receipt: reproducing.Receipt | None = None,
    alone: bool = True,
) -> FastAPI:
    """The application over a studio.

    `named` makes (sampler, scheduler), as any of the wires says them, a name of `Served.samplers`, or None.
    `receipt` makes a PNG of ours the wish that it came from, and a function that says why a picture is not it.
    `tags` takes `<lora:name:scale>` out of a prompt of the web UI's wire, and gives (name, scale) of each.
    `check` says why a prompt is refused, or None; it may take its time.
    Where it is not `alone` at its address, what one process keeps for later requests is refused.
    """
    door = Door(
        studio=studio, steps=default_steps, guidance_scale=default_guidance, named=named, check=check, tags=tags, alone=alone
    )
    registry = CollectorRegistry()
    app = FastAPI(title="Dovetail endpoint", version="1", docs_url="/docs", redoc_url=None, redirect_slashes=False)
    for routes in (openai.router(door), webui.router(door), reading.router(door, registry), huggingface.router(door)):
        app.include_router(routes)
    if receipt:
        app.include_router(reproducing.router(door, receipt))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wire = faults.wire_of(request.url.path)
        return faults.answer(faults.invalid(error, wire), wire)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        told = dict(error.headers or {})
        if error.status_code == 405 and (methods := app.openapi()["paths"].get(request.url.path)):
            told["Allow"] = ", ".join(method.upper() for method in sorted(methods))  # the router tells the first route's alone
        plain = faults.Fault(error.status_code, error.detail, headers=told)
        fault = error if isinstance(error, faults.Fault) else plain
        return faults.answer(fault, faults.wire_of(request.url.path))

    app.add_middleware(Guard, access=access or Access(), registry=registry)
    return app
