"""The real endpoint over a real studio, and a client of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from waiting import CEILING

from dovetail.core import solvers
from dovetail.edges import app as web
from dovetail.engines.studio import Studio
from dovetail.stages import endpoint


@contextmanager
def answering(studio: Studio, steps: int, **keys: Any) -> Iterator[httpx.Client]:
    """On a free port; both are closed at the end."""
    app = web.build_app(studio, steps, 3.0, named=solvers.named, receipt=endpoint._receipt(studio), **keys)
    server = web.Server(app, web.bind("127.0.0.1", 0))
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=CEILING) as client:
            yield client
    finally:
        server.stop()
        studio.close()
