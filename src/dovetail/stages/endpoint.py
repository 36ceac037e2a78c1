"""Stage 9, endpoint creation: answer requests; and, as a stage of a run, see that it does."""

import base64
import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dovetail.config import Endpoint
from dovetail.edges import app as web
from dovetail.edges import machine, pixels
from dovetail.edges.folders import Artifact, Desk, Showing, write_bytes, write_json
from dovetail.edges.models import Models
from dovetail.engines import painter
from dovetail.errors import EndpointError
from dovetail.records import Example, Hints

POLL_SECONDS = 0.5


def engine_of(folder: Path, name: str, version: str) -> web.Engine:
    """Load a diffusers folder and paint once, so that the first request is as fast as the second."""
    models = Models(folder, machine.pick_device())

    def paint(wish: web.Wish) -> bytes:
        order = painter.Order(prompt=wish.prompt, seed=wish.seed, negative_prompt=wish.negative_prompt)
        picture = painter.paint(models, [order], steps=wish.steps, guidance_scale=wish.guidance_scale)[0]
        told = {
            "prompt": wish.prompt, "negative_prompt": wish.negative_prompt, "seed": str(wish.seed), "steps": str(wish.steps),
            "guidance_scale": f"{wish.guidance_scale:g}", "model": name, "version": version,
        }  # fmt: skip
        return pixels.png(picture, told)

    paint(web.Wish(prompt="", negative_prompt="", seed=0, steps=1, guidance_scale=2.0))
    texts = [f for f in ("LICENSE", "NOTICE", "README.md") if (folder / f).exists()]
    licence = (folder / texts[0]).read_text(encoding="utf-8") if texts else "not stated"
    return web.Engine(paint=paint, name=name, version=version, side=models.resolution, licence=licence)


def check(repo: Artifact, dataset: Artifact, hints: Hints, config: Endpoint, desk: Desk) -> None:
    """Published model -> an endpoint on a free port that answers one real request; its picture is kept."""
    published = json.loads((repo.folder / "published.json").read_text())
    engine = engine_of(repo.folder / "model", published["name"], published["version"])
    studio = web.Studio(engine)
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
    bound = web.bind(config.host, config.port)
    folder, version = find()
    studio = web.Studio(engine_of(folder, name, version))
    server = web.Server(web.build_app(studio, config.steps, config.guidance_scale or guidance_scale), bound)
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


def _follow(
    find: Callable[[], tuple[Path, str]], name: str, studio: web.Studio, stopped: threading.Event, show: Showing
) -> None:
    refused = ""
    while not stopped.wait(POLL_SECONDS):
        version = ""
        try:
            folder, version = find()
            if version in (studio.engine.version, refused):
                continue
            studio.swap(engine_of(folder, name, version))
            show.say(f"now serving {name} {version}")
        except Exception as error:  # whatever is wrong with the next version, the one in force serves on
            refused = version
            show.say(f"still serving {name} {studio.engine.version}: {error}")
