"""Server-sent events: pictures on the way, finished pictures, faults, and a sign of life where nothing happens."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from dovetail.edges.app import pictures
from dovetail.edges.app.faults import fault_of, told
from dovetail.edges.app.waiting import drop, extras, failure, watched
from dovetail.wishes import Painted, Ticket

KEEP_ALIVE_SECONDS = 10.0
NOTHING = {"text_tokens": 0, "image_tokens": 0}
USAGE = {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": NOTHING}


class Events(StreamingResponse):
    """The answer to a request with `stream`; what is not painted when it ends is dropped."""

    def __init__(self, request: Request, tickets: Sequence[Ticket], kind: str) -> None:
        quiet = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_events(request, tickets, kind), media_type="text/event-stream", headers=quiet)
        self.tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that went before the first event counts too."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            drop(self.tickets)


async def _events(request: Request, tickets: Sequence[Ticket], kind: str) -> AsyncIterator[str]:
    """`kind` is image_generation or image_edit; with several pictures `index` says which."""
    sent, done = [0] * len(tickets), set[int]()
    async with watched(request, tickets) as watch:
        while not watch.gone.done():
            watch.bell.clear()
            for i, ticket in enumerate(tickets):
                over = i not in done and ticket.future.done()
                while sent[i] < min(len(ticket.previews), ticket.caller.previews) and i not in done:
                    yield _partial(kind, ticket, i, sent[i])
                    sent[i] += 1
                if over and (error := failure(ticket)):
                    yield _event("error", {"error": told(fault_of(error)).model_dump()})
                    return
                if over:
                    done.add(i)
                    yield _completed(kind, ticket.future.result(), i)
            if len(done) == len(tickets):
                yield "data: [DONE]\n\n"
                return
            try:
                await asyncio.wait_for(watch.bell.wait(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield ": keep-alive\n\n"


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _picture(kind: str, png: bytes, width: int, height: int, index: int) -> dict[str, Any]:
    return {
        "type": kind, "b64_json": pictures.encoded(png), "created_at": int(time.time()), "size": f"{width}x{height}",
        "quality": "auto", "background": "opaque", "output_format": "png", "index": index,
    }  # fmt: skip


def _partial(kind: str, ticket: Ticket, index: int, number: int) -> str:
    name, wish = f"{kind}.partial_image", ticket.wish
    picture = _picture(name, ticket.previews[number], wish.width, wish.height, index)
    return _event(name, picture | {"partial_image_index": number})


def _completed(kind: str, painted: Painted, index: int) -> str:
    name, wish = f"{kind}.completed", painted.wish
    return _event(name, _picture(name, painted.png, wish.width, wish.height, index) | {"usage": USAGE} | extras(painted))
