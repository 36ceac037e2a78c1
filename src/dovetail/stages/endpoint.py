"""Stage 9, endpoint creation: answer requests; and, as a stage of a run, see that it does."""

import base64
import json
import os
import queue
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest

from dovetail.config import Endpoint
from dovetail.edges import app as web
from dovetail.edges import machine, pixels
from dovetail.edges.folders import Artifact, Desk, Showing, write_bytes, write_json
from dovetail.edges.models import Models
from dovetail.engines import painter
from dovetail.errors import EndpointError
from dovetail.records import Example, Hints
from dovetail.wishes import BusyError, Caller, ClosedError, DroppedError, Painted, Served, Ticket, Wish, WishError

POLL_SECONDS = 0.5
WAITING = 32  # pictures that may wait and run; one more is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loaded model: what paints, and what it is."""

    paint: Callable[[Wish], bytes]  # PNG bytes
    served: Served


def engine_of(folder: Path, name: str, version: str) -> Engine:
    """Load a diffusers folder and paint once, so that the first request is as fast as the second."""
    models = Models(folder, machine.pick_device())
    side = models.resolution

    def paint(wish: Wish) -> bytes:
        order = painter.Order(prompt=wish.prompt, seed=wish.seed, negative_prompt=wish.negative_prompt)
        picture = painter.paint(models, [order], steps=wish.steps, guidance_scale=wish.guidance_scale)[0]
        told = {
            "prompt": wish.prompt, "negative_prompt": wish.negative_prompt, "seed": str(wish.seed), "steps": str(wish.steps),
            "guidance_scale": f"{wish.guidance_scale:g}", "model": name, "version": version,
        }  # fmt: skip
        return pixels.png(picture, told)

    paint(Wish(prompt="", seed=0, steps=1, guidance_scale=2.0, width=side, height=side))
    texts = [f for f in ("LICENSE", "NOTICE", "README.md") if (folder / f).exists()]
    served = Served(
        name=name, version=version, digest="", side=side, multiple=side, most_pixels=side * side,
        samplers=(type(models.scheduler()).__name__,),
        licence=(folder / texts[0]).read_text(encoding="utf-8") if texts else "not stated",
    )  # fmt: skip
    return Engine(paint=paint, served=served)


class Single:
    """A studio of one thread that paints one picture after the other, and takes up a new model between two."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._waiting: queue.Queue[Ticket | None] = queue.Queue()
        self._tickets: list[Ticket] = []  # waiting and running
        self._lock = threading.Lock()
        self._metrics = CollectorRegistry()
        self._pictures = Counter("dovetail_pictures_total", "Pictures painted", ["version"], registry=self._metrics)
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    @property
    def served(self) -> Served:
        """The model that the next wish gets."""
        return self.engine.served

    @property
    def ready(self) -> bool:
        """Whether pictures are being painted."""
        return self._thread.is_alive()

    def submit(self, wishes: Sequence[Wish], caller: Caller) -> list[Ticket]:
        """All of them or none. Raises WishError, BusyError, ClosedError."""
        if any(wish.image for wish in wishes):
            raise WishError("a picture to begin from is not offered by this endpoint", "image")
        if not self.ready:
            raise ClosedError
        tickets = [Ticket(wish, caller) for wish in wishes]
        with self._lock:
            if len(self._tickets) + len(tickets) > WAITING:
                raise BusyError(5)
            self._tickets += tickets
            for ticket in tickets:
                self._waiting.put(ticket)
        return tickets

    def state(self) -> dict[str, Any]:
        """How many tickets wait and run."""
        return {"tickets": len(self._tickets)}

    def under_way(self) -> list[Ticket]:
        """Waiting and running tickets, the oldest first."""
        return list(self._tickets)

    def exposition(self) -> bytes:
        """Prometheus' text of all metrics."""
        return generate_latest(self._metrics)

    def swap(self, engine: Engine) -> None:
        """The next picture comes from `engine`; the one under way is finished by the old one."""
        self.engine = engine

    def stop(self) -> None:
        """Finish what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            engine, wish = self.engine, ticket.wish
            try:
                if ticket.dropped:
                    raise DroppedError
                png, own = engine.paint(wish), engine.served
                done = replace(wish, sampler=own.samplers[0])
                ticket.future.set_result(Painted(png=png, wish=done, model=own.name, version=own.version, digest=own.digest))
                self._pictures.labels(own.version).inc()
            except Exception as error:  # one bad request must not end the endpoint
                ticket.future.set_exception(error)
            with self._lock:
                self._tickets.remove(ticket)


def check(repo: Artifact, dataset: Artifact, hints: Hints, config: Endpoint, desk: Desk) -> None:
    """Published model -> an endpoint on a free port that answers one real request; its picture is kept."""
    published = json.loads((repo.folder / "published.json").read_text())
    engine = engine_of(repo.folder / "model", published["name"], published["version"])
    studio = Single(engine)
    guidance_scale = config.guidance_scale or hints.guidance_scale
    server = web.Server(web.build_app(studio, config.steps, guidance_scale), web.bind("127.0.0.1", 0))
    tests = sorted((e for e in dataset.records(Example) if e.split == "test"), key=lambda e: e.key)
    prompt = config.prompt or (tests[0].caption if tests else dataset.records(Example)[0].caption)
    wanted = {"prompt": prompt, "seed": config.seed, "model": published["name"]}
    server.start()
    try:
        answer = _post(f"{server.url}/v1/images/generations", wanted)
        health = json.loads(urllib.request.urlopen(f"{server.url}/health", timeout=30).read())
    finally:
        server.stop()
        studio.stop()
    write_bytes(desk.folder / "picture.png", base64.b64decode(answer["data"][0]["b64_json"]))
    write_json(desk.folder / "endpoint.json", {"request": wanted, "health": health, "version": answer["version"]})


def _post(url: str, body: dict[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            said: dict[str, Any] = json.loads(answer.read())
            return said
    except OSError as error:
        raise EndpointError(
            f"the endpoint did not answer: {error}", do="look at the lines above and run the same command again"
        ) from error


def serve(find: Callable[[], tuple[Path, str]], name: str, guidance_scale: float, config: Endpoint, show: Showing) -> None:
    """Answer requests until stopped; where `find` comes to name another version, take it up without dropping a request."""
    access = web.access_from(os.environ)
    web.refuse_open(config.host, access)
    bound = web.bind(config.host, config.port)
    folder, version = find()
    studio = Single(engine_of(folder, name, version))
    server = web.Server(web.build_app(studio, config.steps, config.guidance_scale or guidance_scale, access), bound)
    stopped = threading.Event()
    follower = threading.Thread(target=_follow, args=(find, name, studio, stopped, show), name="follower", daemon=True)
    follower.start()
    show.say(f"{name} {version} answers at {server.url} (Ctrl-C stops it)")
    try:
        server.run()
    finally:
        stopped.set()
        follower.join()
        studio.stop()


def _follow(find: Callable[[], tuple[Path, str]], name: str, studio: Single, stopped: threading.Event, show: Showing) -> None:
    refused = ""
    while not stopped.wait(POLL_SECONDS):
        version = ""
        try:
            folder, version = find()
            if version in (studio.served.version, refused):
                continue
            studio.swap(engine_of(folder, name, version))
            show.say(f"now serving {name} {version}")
        except Exception as error:  # whatever is wrong with the next version, the one in force serves on
            refused = version
            show.say(f"still serving {name} {studio.served.version}: {error}")
