"""The endpoint: OpenAI's image wire format, health, metrics, and one page (FastAPI, uvicorn, prometheus-client)."""

import base64
import queue
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from dovetail.errors import EndpointError

PAGE = Path(__file__).with_name("page.html")
WAITING = 32  # pictures that may wait; one more is refused with 429
KEPT_PICTURES = 64


class Generation(BaseModel):
    """A request as the `openai` client sends it, and what Stable Diffusion needs beside it (through `extra_body`)."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = 1
    size: str | None = "auto"
    response_format: str | None = None
    output_format: str | None = "png"
    stream: bool | None = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    steps: Annotated[int, Field(ge=1, le=100)] | None = None
    guidance_scale: Annotated[float, Field(ge=1, le=30)] | None = None
    negative_prompt: Annotated[str, Field(max_length=4000)] | None = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One picture somebody waits for."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loaded model: what paints, and what it is."""

    paint: Callable[[Wish], bytes]  # PNG bytes
    name: str
    version: str
    side: int
    licence: str


class BusyError(Exception):
    """Too many pictures are waiting already."""


class Studio:
    """One thread owns the model: it paints what waits, and takes up a new model between two pictures."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waiting: queue.Queue[tuple[Wish, Future] | None] = queue.Queue(WAITING)
        self.metrics = CollectorRegistry()
        self.pictures = Counter("dovetail_pictures_total", "Pictures painted", ["version"], registry=self.metrics)
        self.failures = Counter(
            "dovetail_failures_total", "Requests that failed or were refused", ["why"], registry=self.metrics
        )
        self.seconds = Histogram("dovetail_paint_seconds", "Seconds to paint one picture", registry=self.metrics)
        Gauge("dovetail_waiting", "Pictures that wait", registry=self.metrics).set_function(self.waiting.qsize)
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether pictures are being painted."""
        return self._thread.is_alive()

    def submit(self, wish: Wish) -> "Future[tuple[bytes, Engine]]":
        """A future of the PNG and the engine that made it. Raises BusyError where too many wait."""
        future: Future = Future()
        try:
            self.waiting.put_nowait((wish, future))
        except queue.Full as error:
            raise BusyError from error
        return future

    def swap(self, engine: Engine) -> None:
        """The next picture comes from `engine`; the one under way is finished by the old one."""
        self.engine = engine

    def stop(self) -> None:
        """Finish what waits, then end."""
        self.waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (entry := self.waiting.get()) is not None:
            wish, future = entry
            if not future.set_running_or_notify_cancel():
                continue
            engine, started = self.engine, time.perf_counter()
            try:
                future.set_result((engine.paint(wish), engine))
                self.pictures.labels(engine.version).inc()
            except Exception as error:  # one bad request must not end the endpoint
                self.failures.labels("paint").inc()
                future.set_exception(error)
            self.seconds.observe(time.perf_counter() - started)


def _refusal(status: int, message: str, param: str | None = None, code: str | None = None, **headers: str) -> JSONResponse:
    kind = (
        "invalid_request_error" if status < 500 and status != 429 else "rate_limit_error" if status == 429 else "server_error"
    )
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def build_app(studio: Studio, default_steps: int, default_guidance: float) -> FastAPI:
    """The application over a studio."""
    app = FastAPI(title="Dovetail endpoint", version="1", docs_url="/docs", redoc_url=None)
    kept: OrderedDict[str, bytes] = OrderedDict()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if p != "body")
        studio.failures.labels("invalid").inc()
        return _refusal(400, f"{where or 'body'}: {first['msg']}", where or None)

    @app.post("/v1/images/generations", summary="Paint pictures of a prompt")
    async def generate(wanted: Generation, request: Request) -> Response:
        engine = studio.engine
        if fault := _unfulfillable(wanted, engine):
            studio.failures.labels("invalid").inc()
            return _refusal(*fault)
        first_seed = wanted.seed if wanted.seed is not None else secrets.randbelow(2**31)
        wishes = [
            Wish(
                prompt=wanted.prompt, negative_prompt=wanted.negative_prompt or "", seed=first_seed + i,
                steps=wanted.steps or default_steps, guidance_scale=wanted.guidance_scale or default_guidance,
            )
            for i in range(wanted.n or 1)
        ]  # fmt: skip
        futures: list[Future[tuple[bytes, Engine]]] = []
        try:
            for wish in wishes:
                futures.append(studio.submit(wish))
        except BusyError:
            for future in futures:
                future.cancel()
            studio.failures.labels("busy").inc()
            return _refusal(429, "too many pictures are waiting, try again", None, "busy", **{"Retry-After": "5"})
        try:
            made = [await run_in_threadpool(future.result) for future in futures]
        except Exception as error:
            return _refusal(500, f"painting failed: {type(error).__name__}")
        data = []
        for (picture, _), wish in zip(made, wishes, strict=True):
            if wanted.response_format == "url":
                name = f"{secrets.token_hex(12)}.png"
                kept[name] = picture
                while len(kept) > KEPT_PICTURES:
                    kept.popitem(last=False)
                data.append({"url": str(request.url_for("picture", name=name)), "seed": wish.seed})
            else:
                data.append({"b64_json": base64.b64encode(picture).decode(), "seed": wish.seed})
        maker = made[-1][1]
        body = {"created": int(time.time()), "data": data, "model": maker.name, "version": maker.version}
        return JSONResponse(body, headers={"X-Dovetail-Version": maker.version})

    _add_reading_routes(app, studio, kept)
    return app


def _unfulfillable(wanted: Generation, engine: Engine) -> tuple[int, str, str] | None:
    """(status, message, parameter) of what this endpoint cannot do."""
    if wanted.size not in (None, "auto", f"{engine.side}x{engine.side}"):
        return 400, f"size must be auto or {engine.side}x{engine.side} for this model", "size"
    if wanted.model not in (None, "", "dovetail", engine.name, f"{engine.name}@{engine.version}"):
        return 404, f"the model {wanted.model!r} is not served here; this is {engine.name}", "model"
    if wanted.response_format not in (None, "b64_json", "url"):
        return 400, "response_format must be b64_json or url", "response_format"
    if wanted.output_format not in (None, "png"):
        return 400, "output_format must be png", "output_format"
    if wanted.stream:
        return 400, "streaming is not offered by this endpoint", "stream"
    return None


def _add_reading_routes(app: FastAPI, studio: Studio, kept: "OrderedDict[str, bytes]") -> None:
    @app.get("/images/{name}", name="picture", summary="A picture that was asked for as a url")
    async def picture(name: str) -> Response:
        found = kept.get(name)
        return Response(found, media_type="image/png") if found else _refusal(404, "this picture is no longer kept", "name")

    @app.get("/v1/models", summary="The model served here")
    async def models() -> dict[str, Any]:
        engine = studio.engine
        entry = {
            "id": engine.name,
            "object": "model",
            "created": 0,
            "owned_by": "dovetail",
            "version": engine.version,
            "size": engine.side,
        }
        return {"object": "list", "data": [entry]}

    @app.get("/health", summary="Is the process alive, can it paint, with which version")
    async def health() -> Response:
        body = {
            "status": "ok" if studio.ready else "cannot paint",
            "model": studio.engine.name,
            "version": studio.engine.version,
        }
        return JSONResponse(body, 200 if studio.ready else 503)

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(generate_latest(studio.metrics), media_type=CONTENT_TYPE_LATEST)

    @app.get("/license", summary="Licence of the model", response_class=PlainTextResponse)
    async def licence() -> str:
        return studio.engine.licence

    @app.get("/", summary="A page to type a prompt and see the picture", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises EndpointError where the port is taken or the address is not ours."""
    try:
        bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = error.strerror or str(error)
        raise EndpointError(
            f"cannot listen on {host}:{port}: {why}", do="choose another with --port, or stop what listens there"
        ) from error
    # Its sockets have no protocol number, so asyncio leaves Nagle's algorithm on and each answer waits 40 ms.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


class Server:
    """uvicorn over a bound socket, in this thread or in one of its own."""

    def __init__(self, app: FastAPI, bound: socket.socket) -> None:
        self.bound = bound
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30))
        self._thread = threading.Thread(target=self.run, name="endpoint", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self.bound.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self) -> None:
        """Serve until told to stop (Ctrl-C, SIGTERM or `stop`); requests under way are finished."""
        self.server.run(sockets=[self.bound])

    def start(self, timeout_seconds: float = 30) -> None:
        """Serve in a thread; returns when it answers. Raises EndpointError where it does not."""
        self._thread.start()
        deadline = time.monotonic() + timeout_seconds
        while not self.server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise EndpointError("the endpoint did not start", do="look at the lines above")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the thread."""
        self.server.should_exit = True
        self._thread.join(timeout=30)
        self.bound.close()
