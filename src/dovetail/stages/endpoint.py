"""Stage 9, endpoint creation: answer requests; and, as a stage of a run, see that it does."""

import base64
import json
import os
import socket
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dovetail import bases
from dovetail.config import Endpoint
from dovetail.core import digests, prompts, solvers
from dovetail.edges import adapters, cluster, machine
from dovetail.edges import app as web
from dovetail.edges.console import Show
from dovetail.edges.folders import Artifact, Desk, Showing, write_bytes, write_json
from dovetail.edges.models import Models
from dovetail.edges.registry import default_root
from dovetail.engines import receipts
from dovetail.engines.revisions import Revision
from dovetail.engines.studio import Studio
from dovetail.errors import EndpointError
from dovetail.records import Example, Hints
from dovetail.wishes import Painted, Served, Wish

Find = Callable[[], tuple[Path, str]]  # folder and version to be served now
Base = Callable[[Path], Path | None]  # a model's folder -> that of the base it was tuned from
POLL_SECONDS = 0.5
GRACE_SECONDS = 35.0  # in which a replica finishes what is under way
AREAS = 4  # pictures may be so many times larger than the usual one


def opened(folder: Path, name: str, version: str, engine: str = "auto") -> Revision:
    """Load a diffusers folder; its U-Net has been called by then, so that the first picture is as fast as the second."""
    models = Models(folder, machine.pick_device())
    own = solvers.own(models.scheduler().config)
    texts = [f for f in ("LICENSE", "NOTICE", "README.md") if (folder / f).exists()]
    licence = (folder / texts[0]).read_text(encoding="utf-8") if texts else "not stated"
    _, found, restrictions = licence.partition("Use Restrictions")
    made_by = _made_by(folder)
    served = Served(
        name=name, version=version, digest=digest_of(folder), side=models.resolution, multiple=models.pixels_per_step,
        most_pixels=AREAS * models.resolution**2, samplers=(own, *(n for n in solvers.NAMES if n != own)), licence=licence,
        restrictions=f"{found}{restrictions}".strip(), run=made_by,
        lora=bool(made_by) and adapters.is_lora(folder),  # else nothing says that it is in the weights already
    )  # fmt: skip
    return Revision(models, served, engine, default_root().parent / "engines" / served.digest)


def digest_of(folder: Path) -> str:
    """What paints, told by its bytes: of the U-Net, the text encoders and the VAE."""
    parts = [p for p in ("unet", "text_encoder", "text_encoder_2", "vae") if (folder / p).is_dir()]
    return digests.of_data({part: bases.part_digest(folder, part) for part in parts})


def _made_by(folder: Path) -> str:
    """Content digest of the training that a published model came from; empty where it does not say."""
    try:
        return str(json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["checkpoint"]["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check(repo: Artifact, dataset: Artifact, hints: Hints, config: Endpoint, desk: Desk) -> None:
    """Published model -> an endpoint on a free port that answers one real request; its picture is kept."""
    published = json.loads((repo.folder / "published.json").read_text())
    studio = Studio(opened(repo.folder / "model", published["name"], published["version"], config.engine))
    guidance_scale = config.guidance_scale or hints.guidance_scale
    app = web.build_app(studio, config.steps, guidance_scale, named=solvers.named, tags=prompts.tags)
    server = web.Server(app, web.bind("127.0.0.1", 0))
    tests = sorted((e for e in dataset.records(Example) if e.split == "test"), key=lambda e: e.key)
    prompt = config.prompt or (tests[0].caption if tests else dataset.records(Example)[0].caption)
    wanted = {"prompt": prompt, "seed": config.seed, "model": published["name"]}
    server.start()
    try:
        answer = _post(f"{server.url}/v1/images/generations", wanted)
        health = json.loads(urllib.request.urlopen(f"{server.url}/health", timeout=600).read())
    finally:
        server.stop()
        studio.close()
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


def serve(
    find: Find, name: str, guidance_scale: float, config: Endpoint, show: Showing, base: Base = lambda folder: None
) -> None:
    """Answer requests until stopped; where `find` comes to name another version, take it up without dropping a request.

    `base` finds the folder of the base that a model was tuned from, to be served beside it under the name `base`.
    """
    access = web.access_from(os.environ)
    web.refuse_open(config.host, access)
    bound = web.bind(config.host, config.port)
    if config.replicas:
        _serve_together(find, name, guidance_scale, config, show, base, access, bound)
        return
    stand = Stand(find, name, guidance_scale, config, show, base, access)
    server = web.Server(stand.app, bound)
    show.say(f"{name} {stand.studio.served.version} answers at {server.url} ({stand.studio.engine}; Ctrl-C stops it)")
    try:
        server.run()
    finally:
        stand.close()


class Stand:
    """The application over a studio that follows the releases of a name."""

    def __init__(
        self, find: Find, name: str, guidance_scale: float, config: Endpoint, show: Showing, base: Base, access: web.Access
    ) -> None:
        if config.log == "json":
            web.log()
        folder, version = find()
        beside = base(folder) if config.base_too else None
        others = {"base": opened(beside, "base", "base", config.engine)} if beside else {}
        self.studio = Studio(opened(folder, name, version, config.engine), others)
        self.app = web.build_app(
            self.studio, config.steps, config.guidance_scale or guidance_scale, access, named=solvers.named,
            tags=prompts.tags, receipt=_receipt(self.studio), alone=config.replicas < 2,
        )  # fmt: skip
        self._stopped = threading.Event()
        told = (find, name, self.studio, self._stopped, show, config)
        self._follower = threading.Thread(target=_follow, args=told, name="follower", daemon=True)
        self._follower.start()

    @property
    def ready(self) -> bool:
        """Whether it can paint now."""
        return self.studio.ready

    def close(self) -> None:
        """Finish what is under way and end."""
        self._stopped.set()
        self._follower.join()
        self.studio.close()


def _serve_together(
    find: Find, name: str, guidance_scale: float, config: Endpoint, show: Showing, base: Base, access: web.Access,
    bound: socket.socket,
) -> None:  # fmt: skip
    """The same by several processes at one address, which paint the same bytes: with one engine, and as many threads each."""
    with bound:  # free, or we would not be here; from now on it is Ray Serve's
        url, port = web.url_of(bound), bound.getsockname()[1]
    with cluster.crew(config.replicas) as crew:
        show.say(f"{crew.count} replicas of {name} with {crew.threads} threads each are being started")
        engine = crew.ask(_engine, find, name, config) if config.engine == "auto" else config.engine
        alike = config.model_copy(update={"engine": engine})
        crew.stand(partial(_replica, find, name, guidance_scale, alike, base, access), config.host, port, GRACE_SECONDS)
        show.say(f"{name} answers at {url} ({engine}, {crew.count} replicas; Ctrl-C stops them)")
        crew.wait()


def _engine(find: Find, name: str, config: Endpoint) -> str:
    """The fastest one where the replicas are to run."""
    folder, version = find()
    return opened(folder, name, version, config.engine).engine


def _replica(find: Find, name: str, guidance_scale: float, config: Endpoint, base: Base, access: web.Access) -> Stand:
    return Stand(find, name, guidance_scale, config, Show(), base, access)


def _receipt(studio: Studio) -> Callable[[bytes], tuple[Wish, Callable[[Painted], str]]]:
    """From a PNG to its wish, and to why a picture painted now is not the same."""

    def read(png: bytes) -> tuple[Wish, Callable[[Painted], str]]:
        wish, told = receipts.wish_of(png)
        if told.get("model") in studio.served.others:
            wish = replace(wish, model=told["model"])
        return wish, lambda painted: receipts.difference(png, painted, told)

    return read


def _follow(find: Find, name: str, studio: Studio, stopped: threading.Event, show: Showing, config: Endpoint) -> None:
    refused = ""
    while not stopped.wait(POLL_SECONDS):
        version = ""
        try:
            folder, version = find()
            if version in (studio.served.version, refused):
                continue
            studio.swap(opened(folder, name, version, config.engine))
            show.say(f"now serving {name} {version}")
        except Exception as error:  # whatever is wrong with the next version, the one in force serves on
            refused = version
            show.say(f"still serving {name} {studio.served.version}: {error}")
