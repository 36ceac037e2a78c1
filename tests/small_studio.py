"""A small real studio: one thread paints on a tiny base, step by step, so that tests can hold it, drop and fill it up."""

import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import httpx
import numpy as np
import torch
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, generate_latest
from waiting import CEILING

from dovetail import wishes
from dovetail.edges import app as web
from dovetail.edges import pixels
from dovetail.edges.models import Models
from dovetail.engines.painter import start_noise

SAMPLERS = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}
MODELS: dict[Path, Models] = {}


def named(sampler: str, scheduler: str) -> str | None:
    """Sampler names of all three worlds, as far as this studio knows them."""
    known = {"ddim": "ddim", "ddimscheduler": "ddim", "euler": "euler", "eulerdiscretescheduler": "euler"}
    return known.get(sampler.lower()) if scheduler.lower() in ("", "automatic") else None


@dataclass
class SmallStudio:
    """The protocol of `dovetail.wishes.Studio`, one picture after the other."""

    folder: Path
    most: int = 32  # tickets that may wait and run
    open: threading.Event = field(default_factory=threading.Event)  # while it is not set no step is done
    stops_at: tuple[int, int] = (0, 0)  # pictures painted and steps of the next, after which `open` is no longer set
    closed: bool = False
    painted: list[wishes.Wish] = field(default_factory=list)
    seen: list[wishes.Caller] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()
        self.models = MODELS.setdefault(self.folder, Models(self.folder, torch.device("cpu")))
        self.served = wishes.Served(
            name="tiny", version="v1", digest="d" * 64, side=self.models.resolution, multiple=self.models.pixels_per_step,
            most_pixels=64 * 64, samplers=tuple(SAMPLERS), others=("stock",), licence="Apache License", restrictions="No harm.",
        )  # fmt: skip
        self.metrics = CollectorRegistry()
        self.pictures = Counter("dovetail_pictures_total", "Pictures painted", ["version"], registry=self.metrics)
        self.tickets: list[wishes.Ticket] = []
        self.due: dict[int, float] = {}
        self.ended = threading.Event()
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    @property
    def ready(self) -> bool:
        return self.thread.is_alive() and not self.closed

    def submit(self, wanted: Sequence[wishes.Wish], caller: wishes.Caller) -> list[wishes.Ticket]:
        if self.closed:
            raise wishes.ClosedError
        if wanted[0].prompt == "wishful":
            raise wishes.WishError("no such guidance", "guidance_scale")
        with self.news:
            if len(self.tickets) + len(wanted) > self.most:
                raise wishes.BusyError(1.4)
            new = [wishes.Ticket(wish, caller) for wish in wanted]
            self.seen.append(caller)
            self.tickets += new
            for ticket in new:
                self.due[id(ticket)] = time.monotonic() + (caller.seconds or 1e9)
            self.news.notify()
        return new

    def state(self) -> dict[str, Any]:
        return {"tickets": len(self.tickets)}

    def under_way(self) -> list[wishes.Ticket]:
        return list(self.tickets)

    def exposition(self) -> bytes:
        return generate_latest(self.metrics)

    def stop(self) -> None:
        self.open.set()
        self.ended.set()
        with self.news:
            self.news.notify()
        self.thread.join(CEILING)

    def _work(self) -> None:
        while True:
            with self.news:
                self.news.wait_for(lambda: self.tickets or self.ended.is_set())
                if not self.tickets:
                    return
                ticket = self.tickets[0]
            result = self._tried(ticket)
            with self.news:
                self.tickets.remove(ticket)
            if isinstance(result, Exception):
                ticket.future.set_exception(result)
            else:
                self.painted.append(ticket.wish)
                self.pictures.labels("v1").inc()
                ticket.future.set_result(result)

    def _tried(self, ticket: wishes.Ticket) -> wishes.Painted | Exception:
        try:
            return self._painted(ticket)
        except Exception as error:
            return error

    def _wait(self, ticket: wishes.Ticket) -> None:
        while True:
            if ticket.dropped:
                raise wishes.DroppedError
            if time.monotonic() > self.due[id(ticket)]:
                raise wishes.LateError
            if self.open.wait(0.005):
                return

    @torch.no_grad()
    def _painted(self, ticket: wishes.Ticket) -> wishes.Painted:
        wish, models = ticket.wish, self.models
        self._wait(ticket)
        if wish.prompt == "fail":
            raise RuntimeError("out of paint: /secret/place")
        if wish.prompt == "unpaintable":
            raise wishes.UnpaintableError("the latents are no numbers")
        steps = max(wish.least_steps, 1) if wish.prompt == "overload" else wish.steps
        kind = wish.sampler or "ddim"
        scheduler = getattr(diffusers, SAMPLERS[kind]).from_config(models.scheduler().config)
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps[steps - max(1, round(steps * wish.strength)) :]
        shape = wish.height // models.pixels_per_latent, wish.width // models.pixels_per_latent
        latents = start_noise(wish.seed, models.unet.config.in_channels, *shape)
        latents = self._begun(wish, scheduler, latents, times[:1]) if wish.image else latents * scheduler.init_noise_sigma
        states = torch.cat([models.embed([wish.negative_prompt]), models.embed([wish.prompt])])
        for number, timestep in enumerate(times, 1):
            self._wait(ticket)
            rows = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            without, along = models.unet(rows, timestep, encoder_hidden_states=states, return_dict=False)[0].chunk(2)
            latents = scheduler.step(without + wish.guidance_scale * (along - without), timestep, latents, return_dict=False)[0]
            ticket.step = number
            if self.stops_at == (len(self.painted), number):
                self.open.clear()
            if len(ticket.previews) < ticket.caller.previews:
                ticket.previews.append(pixels.png(models.decode(latents)[0]))
                if ticket.heard:
                    ticket.heard(ticket)
        told = {"prompt": wish.prompt, "negative_prompt": wish.negative_prompt, "seed": str(wish.seed), "steps": str(steps)}
        told |= {"guidance_scale": f"{wish.guidance_scale:g}", "model": "tiny", "version": "v1", "sampler": kind}
        return wishes.Painted(
            png=pixels.png(models.decode(latents)[0], told), wish=replace(wish, sampler=kind, steps=steps), model="tiny",
            version="v1", digest="d" * 64, degraded=f"steps {wish.steps} -> {steps}" if steps < wish.steps else "",
        )  # fmt: skip

    def _begun(self, wish: wishes.Wish, scheduler: Any, noise: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        with Image.open(io.BytesIO(wish.image)) as image:
            picture = np.asarray(image.convert("RGB").resize((wish.width, wish.height)), np.float32)
        mean = self.models.moments(torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None]).chunk(2, 1)[0]
        return scheduler.add_noise(mean * self.models.vae.config.scaling_factor, noise, first)


@dataclass(frozen=True)
class Serving:
    """An endpoint over a small studio."""

    studio: SmallStudio
    url: str
    client: httpx.Client

    def ask(self, **body: Any) -> httpx.Response:
        """A request to OpenAI's wire; two steps where `body` does not say."""
        return self.client.post("/v1/images/generations", json={"prompt": "a cat", "steps": 2} | body)


@contextmanager
def serving(folder: Path, access: web.Access | None = None, **keys: Any) -> Iterator[Serving]:
    """An endpoint on a free port, and a client of it."""
    studio = SmallStudio(folder)
    server = web.Server(web.build_app(studio, 2, 3.0, access, named=named, **keys), web.bind("127.0.0.1", 0))
    server.start()
    limits = httpx.Limits(max_connections=100)
    try:
        with httpx.Client(base_url=server.url, timeout=CEILING, trust_env=False, limits=limits) as client:
            yield Serving(studio, server.url, client)
    finally:
        studio.open.set()
        server.stop()
        studio.stop()
