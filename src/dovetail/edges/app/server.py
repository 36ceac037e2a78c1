"""A bound socket and the server over it (uvicorn)."""

import socket
import threading
import time

import uvicorn
from fastapi import FastAPI

from dovetail.errors import EndpointError


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


def url_of(bound: socket.socket) -> str:
    """Where a bound socket answers."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server:
    """uvicorn over a bound socket, in this thread or in one of its own."""

    def __init__(self, app: FastAPI, bound: socket.socket) -> None:
        self.bound = bound
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30))
        self._thread = threading.Thread(target=self.run, name="endpoint", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return url_of(self.bound)

    def run(self) -> None:
        """Serve until told to stop (Ctrl-C, SIGTERM or `stop`); requests under way are finished."""
        self.server.run(sockets=[self.bound])

    def start(self, timeout_seconds: float = 300) -> None:
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
