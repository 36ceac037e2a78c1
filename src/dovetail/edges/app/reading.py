"""What can be read without a key: health, readiness, metrics, licence, kept pictures, and a page to paint from."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel

from dovetail.edges.app.faults import Fault, OpenaiFault
from dovetail.edges.app.intake import Door

PAGE = Path(__file__).with_name("page.html")
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    404: {"model": OpenaiFault, "description": "No longer kept"},
}


class State(BaseModel):
    """Whether it lives or can paint, and with what."""

    status: str
    model: str
    version: str
    digest: str


def router(door: Door, registry: CollectorRegistry) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["reading"])

    def state(status: str) -> dict[str, str]:
        served = door.studio.served
        return {"status": status, "model": served.name, "version": served.version, "digest": served.digest}

    @routes.get("/health", summary="Is the process alive, and with which version", response_model=State)
    async def health() -> dict[str, str]:
        return state("ok")

    @routes.get(
        "/ready", summary="Can it paint now", response_model=State, responses={503: {"model": State, "description": "No"}}
    )
    async def ready() -> Response:
        return JSONResponse(state("ready"), 200) if door.studio.ready else JSONResponse(state("cannot paint"), 503)

    @routes.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(door.studio.exposition() + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/license", summary="Licence of the model, and restrictions of its use", response_class=PlainTextResponse)
    async def licence() -> str:
        served = door.studio.served
        return served.licence + (f"\n\nRestrictions of use\n\n{served.restrictions}\n" if served.restrictions else "")

    @routes.get(
        "/images/{name}", name="picture", summary="A picture that was asked for as a url", response_class=Response,
        responses=PICTURE,
    )  # fmt: skip
    async def picture(name: str) -> Response:
        found = door.kept.find(name)
        if not found:
            raise Fault(404, "this picture is no longer kept", "name")
        return Response(found, media_type="image/png")

    @routes.get("/", summary="A page to type a prompt and see the picture", response_class=HTMLResponse)
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html")

    return routes
