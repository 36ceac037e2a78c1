"""The painter behind an endpoint: one loop owns the model and batches by step; company changes no byte of a picture.

A wish waits, is made ready (texts read, noise drawn), runs, and is decoded. In each turn of the loop the pictures of one group
(same model, size and length of text; at LoRA scale 1, or at others) go through the U-Net together, whatever their steps,
guidance, solver and position; each row then takes its own solver's step. Reading and decoding happen in a second thread, so
that they hold up no step; what paints at other LoRA scales is made in a third one.
"""

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dovetail.core import shares, solvers
from dovetail.edges import pixels
from dovetail.edges.metrics import Metrics, resident_bytes
from dovetail.engines import receipts, works
from dovetail.engines.painter import start_noise
from dovetail.engines.revisions import Revision
from dovetail.engines.works import Group, Work
from dovetail.wishes import (
    BusyError,
    Caller,
    ClosedError,
    DroppedError,
    LateError,
    Served,
    Ticket,
    UnpaintableError,
    Wish,
    WishError,
)

LOG = logging.getLogger("dovetail.studio")
ROWS = {"cpu": 16, "cuda": 64}  # through the U-Net at once
QUEUE_SECONDS = 30.0  # of work that may wait
CALM_SECONDS = 5.0  # of waiting work, before steps are lowered where that is allowed
MOST_DECODING = 4  # pictures, before no further one is begun
MOST_WAITING = 512  # tickets, however little each takes
SICK = 3  # pictures in a row that failed with nobody else's fault, before it says that it cannot paint
PROBE_SECONDS = 1.0  # between two looks whether it can paint again
REST_SECONDS = 60.0  # without a wish, before what only some wishes need is given back


class Studio:
    """Paints wishes; see `dovetail.wishes.Studio`. Close it when done."""

    def __init__(self, revision: Revision, others: Mapping[str, Revision] | None = None, rows: int | None = None) -> None:
        self.metrics = Metrics()
        self._revision, self._others = revision, dict(others or {})
        self._most_rows = rows or ROWS[revision.models.device.type]
        self._bell = threading.Condition()
        self._waiting: list[Work] = []
        self._running: list[Work] = []  # the loop's own, but for its length
        self._joining: list[Work] = []  # made ready, not running yet
        self._preparing = self._decoding = 0
        self._had: dict[str, float] = {}  # row-steps that each key was given
        self._turns: dict[Group, float] = {}
        self._rate, self._sick = revision.rate, 0
        self._closing = self._stop = False  # takes nothing more; ends
        self._finished: deque[tuple[float, float]] = deque(maxlen=16)  # when, row-steps
        self._desk: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._aside = ThreadPoolExecutor(1, "studio _scale")  # its thread is begun at the first use
        self._threads = [threading.Thread(target=f, name=f"studio {f.__name__}", daemon=True) for f in (self._loop, self._work)]
        for thread in self._threads:
            thread.start()

    # What others see

    @property
    def served(self) -> Served:
        """The model that the next wish gets."""
        return replace(self._revision.served, others=tuple(self._others))

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self._revision.engine

    @property
    def ready(self) -> bool:
        """Whether it can paint now."""
        return not self._closing and self._sick < SICK and all(t.is_alive() for t in self._threads)

    def submit(self, wishes: Sequence[Wish], caller: Caller) -> list[Ticket]:
        """All of them or none. Raises WishError, BusyError, ClosedError."""
        if self._closing or not all(t.is_alive() for t in self._threads):
            raise ClosedError("the endpoint is going down")
        with self._bell:
            taken = [self._taken(wish, caller) for wish in wishes]
            waiting, rate = sum(w.cost for w in self._waiting), shares.able(self._rate, list(self._finished), time.monotonic())
            more, room = sum(w.cost for w in taken), QUEUE_SECONDS * rate
            if self._waiting and (waiting + more > room or len(self._waiting) + len(taken) > MOST_WAITING):
                self.metrics.failures.labels("busy").inc()
                raise BusyError(shares.retry_after(waiting + more, rate, room))
            self._waiting += taken
            self._bell.notify_all()
        return [work.ticket for work in taken]

    def swap(self, revision: Revision) -> None:
        """What is not begun is painted by `revision`; what runs, and what asks for more or less of a LoRA that it has not, is
        finished by the one before."""
        with self._bell:
            before, self._revision = self._revision, revision
            for work in self._waiting:
                if work.revision is before and (revision.served.lora or work.wish.lora_scale == 1):
                    work.revision = revision
            self._sick = 0

    def state(self) -> dict[str, Any]:
        """Tickets and row-steps that wait and run, row-steps a second, memory."""
        with self._bell:
            return {
                "waiting": len(self._waiting), "running": self._under_way(), "engine": self.engine,
                "waiting_row_steps": round(sum(w.cost for w in self._waiting), 1),
                "row_steps_per_second": round(self._rate, 1), "resident_bytes": resident_bytes(),
            }  # fmt: skip

    def under_way(self) -> list[Ticket]:
        """Waiting and running tickets, the oldest first."""
        with self._bell:
            every = sorted([*self._waiting, *self._joining, *self._running], key=lambda w: w.asked)
        return [work.ticket for work in every]

    def exposition(self) -> bytes:
        """Prometheus' text of all metrics."""
        self.metrics.ready.set(self.ready)
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.running.set(self._under_way())
        return self.metrics.text()

    def close(self, grace_seconds: float = 30.0) -> None:
        """Take nothing more, finish what is under way within that time, and end; what is left fails with ClosedError."""
        self._closing = True
        deadline = time.monotonic() + grace_seconds
        with self._bell:
            self._bell.notify_all()
            while (self._waiting or self._under_way()) and time.monotonic() < deadline and self._threads[0].is_alive():
                self._bell.wait(0.05)
            for work in [*self._waiting, *self._joining, *self._running]:
                work.ticket.drop()
            self._stop = True
            self._bell.notify_all()
        self._threads[0].join()
        self._aside.shutdown()
        self._desk.put(None)
        self._threads[1].join()

    # Taking in

    def _taken(self, wish: Wish, caller: Caller) -> Work:
        if wish.model not in ("", *self._others):
            raise WishError(f"there is no model {wish.model!r} here", "model")
        revision = self._others.get(wish.model, self._revision)
        meant = works.checked(wish, revision.served, revision.config)
        return Work(
            ticket=Ticket(wish=wish, caller=caller), revision=revision, wish=meant, asked=time.monotonic(),
            cost=works.price(meant, revision.served),
        )  # fmt: skip

    def _under_way(self) -> int:
        return len(self._running) + len(self._joining) + self._preparing + self._decoding

    def _admit(self) -> None:
        """Begin what waits, as long as a call of the U-Net has room: the key that has had the least comes first."""
        with self._bell:
            for work in [w for w in self._waiting if self._over(w)]:
                self._waiting.remove(work)
            rows = sum(w.rows for w in [*self._running, *self._joining]) + 2 * self._preparing
            while self._waiting and rows < self._most_rows and self._decoding < MOST_DECODING:
                first: dict[str, float] = {}
                for work in self._waiting:
                    first.setdefault(work.ticket.caller.key, work.asked)
                key = shares.next_key(first, self._had)
                work = next(w for w in self._waiting if w.ticket.caller.key == key)
                self._waiting.remove(work)
                self._lower(work)
                self._charge(key, work.cost)
                self._preparing += 1
                rows += work.rows
                if work.wish.lora_scale == 1:
                    self._desk.put(lambda work=work: self._prepare(work))  # type: ignore[misc]
                else:
                    self._aside.submit(self._scale, work)
            self._running += self._joining
            self._joining = []

    def _charge(self, key: str, cost: float) -> None:
        """A key that was away does not come back with a claim on the time in which it wanted nothing."""
        others = [self._had[w.ticket.caller.key] for w in [*self._waiting, *self._running] if w.ticket.caller.key in self._had]
        self._had[key] = max(self._had.get(key, 0.0), min(others, default=0.0)) + cost
        if not self._waiting and not self._running:
            self._had = {key: 0.0}

    def _lower(self, work: Work) -> None:
        backlog = sum(w.cost for w in self._waiting) / max(self._rate, 1e-9)
        least = work.wish.least_steps and max(work.wish.least_steps, math.ceil(1 / work.wish.strength))  # a step is left to do
        steps = shares.fewer_steps(work.wish.steps, least, backlog, CALM_SECONDS)
        if steps < work.wish.steps:
            work.degraded = f"steps {work.wish.steps} -> {steps}"
            work.wish = replace(work.wish, steps=steps)
            work.cost = works.price(work.wish, work.revision.served)

    def _over(self, work: Work) -> bool:
        """Whether nobody wants it any more; then its future says so."""
        seconds = work.ticket.caller.seconds
        if work.ticket.dropped or work.ticket.future.cancelled():
            return self._fail(
                work, ClosedError("the endpoint went down") if self._closing else DroppedError("dropped"), "dropped"
            )
        if seconds is not None and time.monotonic() - work.asked > seconds:
            return self._fail(work, LateError(f"it was not done within {seconds:g} s"), "late")
        return False

    def _fail(self, work: Work, error: Exception, why: str) -> bool:
        """Tell whoever waits; the log has what lies behind it. True."""
        if not work.ticket.future.done():
            LOG.info(why, exc_info=error.__cause__, extra={"told": works.told(work) | {"why": str(error)}})
            work.ticket.future.set_exception(error)
            self.metrics.failures.labels(why).inc()
        return True

    # The desk: what holds up no step

    def _work(self) -> None:
        while (task := self._desk.get()) is not None:
            task()

    def _scale(self, work: Work) -> None:
        """Make what paints at LoRA scales that are not 1: the first time it takes seconds, in which the desk goes on."""
        try:
            work.revision.scaled()
        except Exception as error:
            self._fail(work, works.unpaintable(error), "prepare")
        self._desk.put(lambda: self._prepare(work))

    def _prepare(self, work: Work) -> None:
        try:
            if not work.ticket.future.done() and not self._over(work):
                self._ready(work)
        except Exception as error:  # a poisoned prompt, memory, a picture that cannot be read: this wish alone
            self._fail(work, works.unpaintable(error), "prepare")
        with self._bell:
            self._preparing -= 1
            if not work.ticket.future.done():
                work.turns = max(self._turns.get(work.group, 0.0), min(self._turns.values(), default=0.0))
                self._joining.append(work)
            self._bell.notify_all()

    def _ready(self, work: Work) -> None:
        wish, revision = work.wish, work.revision
        models = revision.models
        work.begun = time.monotonic()
        self.metrics.wait.observe(work.begun - work.asked)
        work.plan = solvers.plan(wish.sampler, wish.steps, revision.config, wish.strength if wish.image else None)
        work.told = revision.told(wish)
        height, width = wish.height // models.pixels_per_latent, wish.width // models.pixels_per_latent
        noise = start_noise(wish.seed, revision.channels, height, width).to(models.device)
        work.state = solvers.start(work.plan, noise[0], revision.encoded(wish)[0] if wish.image else None)[None]
        work.fresh = torch.Generator().manual_seed(wish.seed + 1)
        work.shown = shares.preview_steps(len(work.plan), work.ticket.caller.previews)

    def _finish(self, work: Work) -> None:
        try:
            if self._over(work):
                return
            picture = work.revision.decoded(work.state[:, 0])
            done = time.monotonic()
            self.metrics.decode.observe(done - work.ended)
            painted = receipts.painted(picture, work.wish, work.revision.served, work.revision.engine)
            painted = replace(
                painted, degraded=work.degraded, waited_seconds=work.begun - work.asked,
                denoise_seconds=work.ended - work.begun, decode_seconds=done - work.ended,
            )  # fmt: skip
            if not work.ticket.future.done():
                self._finished.append((done, work.cost))
                LOG.info("painted", extra={"told": works.told(work, painted)})
                work.ticket.future.set_result(painted)
                self.metrics.pictures.labels(work.revision.served.version).inc()
                self._sick = 0
        except Exception as error:
            self._fail(work, works.unpaintable(error), "decode")
        finally:
            with self._bell:
                self._decoding -= 1
                if not self._decoding:
                    self._finished.clear()  # decoding holds up nothing
                self._bell.notify_all()

    def _preview(self, work: Work, believed: Tensor) -> None:
        if work.ticket.future.done() or work.ticket.dropped:
            return
        try:
            work.ticket.previews.append(pixels.png(work.revision.preview(believed)))
            if work.ticket.heard:
                work.ticket.heard(work.ticket)
        except Exception as error:  # a preview is no reason to lose the picture
            LOG.info("preview", exc_info=error, extra={"told": works.told(work)})
            self.metrics.failures.labels("preview").inc()

    # The loop

    def _loop(self) -> None:
        while True:
            with self._bell:
                while not (self._waiting or self._joining or self._running or self._stop):
                    sick = self._sick >= SICK
                    if self._bell.wait(PROBE_SECONDS if sick else REST_SECONDS) or self._waiting:
                        continue
                    if sick:
                        self._waiting.append(self._taken(works.probe(self._revision.served), Caller()))
                    elif not self._preparing:
                        for revision in (self._revision, *self._others.values()):
                            revision.rest()
                if self._stop:
                    break
            try:
                self._admit()
                self._running = [w for w in self._running if not self._over(w)]
                if self._running:
                    self._turn()
                    continue
            except Exception as error:  # nothing that runs may end the loop; what ran is given up
                LOG.exception("the loop failed")
                self._sick += 1
                for work in self._running:
                    self._fail(work, works.unpaintable(error), "loop")
                self._running = []
            with self._bell:
                if not self._joining and not self._stop:
                    self._bell.wait(0.02)
        for work in [*self._waiting, *self._joining, *self._running]:
            self._fail(work, ClosedError("the endpoint went down"), "closed")

    def _turn(self) -> None:
        """One call of the U-Net for the group whose turn it is, and each picture's own step."""
        groups: dict[Group, list[Work]] = {}
        for work in self._running:
            groups.setdefault(work.group, []).append(work)
        keys = list(groups)
        self._turns = {k: self._turns.get(k, groups[k][0].turns) for k in keys}
        key = keys[shares.next_group([(self._turns[k], groups[k][0].begun) for k in keys])]
        group, began = groups[key], time.monotonic()
        rows, area = sum(w.rows for w in group), works.area(group[0])
        self._turns[key] += rows
        answers = self._answers(group)
        if answers:
            self._step([work for work, _ in answers], torch.cat([answer for _, answer in answers]))
        self._running = [w for w in self._running if not w.ended and not w.ticket.future.done()]
        self.metrics.row_steps.inc(rows)
        self.metrics.rows.observe(rows)
        self._rate += 0.05 * (rows * area / max(time.monotonic() - began, 1e-6) - self._rate)

    def _answers(self, group: list[Work]) -> list[tuple[Work, Tensor]]:
        """The U-Net's guided answers; where a call fails each picture is tried alone, and what fails alone is given up."""
        try:
            said = group[0].revision.predict([works.part(w) for w in group])
            return [(w, works.guided(w, answer)) for w, answer in zip(group, said, strict=True)]
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0], works.unpaintable(error), "paint")
                self._sick += 1
                return []
        return [pair for work in group for pair in self._answers([work])]

    def _step(self, group: list[Work], said: Tensor) -> None:
        """Each picture's own solver takes its own step; those that are through go to be decoded."""
        at = solvers.gather([(w.plan, w.ticket.step) for w in group], said.device)
        fresh = None
        if any(at.noisy):
            fresh = torch.cat(
                [works.noise(w) if n else torch.zeros_like(said[:1]) for w, n in zip(group, at.noisy, strict=True)]
            )
        state = solvers.step(at, torch.cat([w.state for w in group]), said, fresh)
        sound = state.isfinite().flatten(1).all(1).tolist()
        for work, own, whole in zip(group, state.split(1), sound, strict=True):
            work.state = own
            work.ticket.step += 1
            if not whole:
                self._sick += 1
                told = "the picture came out as no numbers; another seed or prompt may do"
                self._fail(work, UnpaintableError(told), "not a number")
                continue
            if work.ticket.step in work.shown:
                self._desk.put(lambda work=work, seen=own[:, 2]: self._preview(work, seen))  # type: ignore[misc]
            if work.ticket.step == len(work.plan):
                work.ended = time.monotonic()
                self.metrics.denoise.observe(work.ended - work.begun)
                with self._bell:
                    self._decoding += 1
                self._desk.put(lambda work=work: self._finish(work))  # type: ignore[misc]
