"""From what is asked to finished pictures: submit, wait, and drop what nobody waits for any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from dovetail.edges.app.faults import Fault, fault_of
from dovetail.edges.app.intake import Asked, Door, caller_of, param_of, wishes_of
from dovetail.wishes import Caller, DroppedError, Painted, Ticket, WishError


@dataclass(frozen=True, slots=True)
class Watch:
    """Rings where a picture is done, a preview has come, or the client has gone."""

    bell: asyncio.Event
    gone: "asyncio.Future[None]"


async def submitted(door: Door, request: Request, *asked: Asked) -> list[Ticket]:
    """The tickets of a request, all or none. Raises Fault. What paints is asked in a thread, never in the event loop."""
    caller = caller_of(request, asked)
    try:
        return await _kept(asyncio.ensure_future(run_in_threadpool(_submitted, door, asked, caller)))
    except WishError as error:
        name = param_of(asked[0], error.parameter)
        raise Fault(400, f"{name}: {error}" if name not in str(error) else str(error), name, "invalid_value") from error
    except Fault:
        raise
    except Exception as error:
        raise fault_of(error) from error


async def _kept(submitting: "asyncio.Future[list[Ticket]]") -> list[Ticket]:
    """The tickets; where the request is cancelled meanwhile they are dropped as soon as they are there."""
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(lambda done: None if done.cancelled() or done.exception() else drop(done.result()))
        raise


def _submitted(door: Door, many: Sequence[Asked], caller: Caller) -> list[Ticket]:
    wishes = [wish for asked in many for wish in wishes_of(door, asked)]
    for asked in many:
        if why := door.check(asked.prompt):
            raise Fault(400, why, param_of(asked, "prompt"), "content_policy_violation")
    return door.studio.submit(wishes, caller)


@contextlib.asynccontextmanager
async def watched(request: Request, tickets: Sequence[Ticket]) -> AsyncIterator[Watch]:
    """Watch tickets and the client; at the end what is not done is dropped, whatever ended it."""
    loop, bell = asyncio.get_running_loop(), asyncio.Event()

    def ring(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is there to be woken
            loop.call_soon_threadsafe(bell.set)

    gone = asyncio.ensure_future(_gone(request))
    gone.add_done_callback(lambda _: bell.set())
    try:
        for ticket in tickets:
            ticket.heard = ring
            ticket.future.add_done_callback(ring)
        yield Watch(bell, gone)
    finally:
        gone.cancel()
        drop(tickets)


def drop(tickets: Sequence[Ticket]) -> None:
    """Drop those that are not done."""
    for ticket in tickets:
        if not ticket.future.done():
            ticket.drop()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def finished(request: Request, tickets: Sequence[Ticket], some: bool = False) -> list[Painted]:
    """All pictures in order; where `some` will do, those that were not dropped. Raises Fault."""
    async with watched(request, tickets) as watch:
        while not _settled(tickets, some):
            await watch.bell.wait()
            watch.bell.clear()
            if watch.gone.done():
                raise Fault(499, "the client has gone")
    errors = [error for ticket in tickets if ticket.future.done() and (error := failure(ticket)) and not _spared(error, some)]
    if errors:
        raise fault_of(errors[0]) from errors[0]
    return [ticket.future.result() for ticket in tickets if not failure(ticket)]


def _settled(tickets: Sequence[Ticket], some: bool) -> bool:
    done = [t for t in tickets if t.future.done()]
    return len(done) == len(tickets) or any((error := failure(t)) and not _spared(error, some) for t in done)


def _spared(error: BaseException, some: bool) -> bool:
    return some and isinstance(error, DroppedError)


def failure(ticket: Ticket) -> BaseException | None:
    """Why a ticket that is done has no picture; None where it has one."""
    return DroppedError("cancelled") if ticket.future.cancelled() else ticket.future.exception()


def extras(painted: Painted) -> dict[str, Any]:
    """What is told of each picture beside its bytes."""
    wish = painted.wish
    return {
        "seed": wish.seed, "model": painted.model, "version": painted.version, "digest": painted.digest,
        "steps": wish.steps, "sampler": wish.sampler, "degraded": painted.degraded or None,
    }  # fmt: skip


def headers(made: Sequence[Painted]) -> dict[str, str]:
    """Which model painted, and whether overload lowered something."""
    told = {"x-dovetail-version": made[-1].version, "x-dovetail-model-digest": made[-1].digest} if made else {}
    if lowered := next((p.degraded for p in made if p.degraded), ""):
        told["x-dovetail-degraded"] = lowered
    return {name: text.encode("ascii", "replace").decode() for name, text in told.items()}
