"""Who may ask, how much and how often: keys, limits, request ids, in front of every route."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dovetail.edges.app.faults import Fault, answer, fault_of, retry_after, wire_of
from dovetail.errors import EndpointError

OPEN = ("/", "/health", "/ready", "/metrics", "/license", "/docs", "/openapi.json")
UNCOUNTED = ("/interrupt", "/skip", "/options", "/png-info")
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
TOKEN = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)
MOST_TOKENS = 20_000  # brackets and quotes of a body; a real request has a few hundred


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Keys and limits of an endpoint. Without keys anyone on this machine may ask, and nobody else."""

    keys: tuple[str, ...] = ()
    requests_per_minute: int | None = None  # of each key; None is as many as there is room for
    most_body_bytes: int = 32 << 20
    most_depth: int = 32  # of JSON


def access_from(environment: Mapping[str, str]) -> Access:
    """`DOVETAIL_API_KEYS` (by commas) and `DOVETAIL_REQUESTS_PER_MINUTE`. Raises EndpointError."""
    keys = tuple(key.strip() for key in environment.get("DOVETAIL_API_KEYS", "").split(",") if key.strip())
    said = environment.get("DOVETAIL_REQUESTS_PER_MINUTE", "").strip()
    if said and not (said.isascii() and said.isdigit() and int(said)):
        raise EndpointError("DOVETAIL_REQUESTS_PER_MINUTE is not a number above 0", do="give one, or leave it out")
    return Access(keys=keys, requests_per_minute=int(said) if said else None)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own and nobody else reaches it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost")


def refuse_open(host: str, access: Access) -> None:
    """Raises EndpointError where others could reach the endpoint and no key is asked of them."""
    if not access.keys and not is_loopback(host):
        raise EndpointError(
            f"an endpoint at {host} can be reached from other machines and has no key",
            do="set DOVETAIL_API_KEYS, or listen on 127.0.0.1",
        )


def given_key(headers: Headers) -> str:
    """The key of a request: Bearer, X-API-Key, or the password of Basic; empty where there is none."""
    kind, _, rest = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return headers.get("x-api-key", "").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


LOG = logging.getLogger("dovetail.http")


class Guard:
    """Middleware around the application."""

    def __init__(
        self, app: ASGIApp, access: Access, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app, self.access, self.clock = app, access, clock
        self.keys = [_digest(key) for key in access.keys]
        self.left: dict[str, tuple[float, float]] = {}  # requests that each key may still make, and when that was counted
        labels = ["wire", "status"]
        self.answers = Counter("dovetail_http_answers_total", "Answers by wire and status", labels, registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, with its id and its key's name, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, wire, began = Headers(scope=scope), wire_of(scope["path"]), self.clock()
        request_id, started = _request_id(headers), list[int]()
        told = {"request_id": request_id, "wire": wire, "method": scope["method"], "path": scope["path"]}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                own["x-request-id"] = request_id
                own["x-content-type-options"] = "nosniff"
                self.answers.labels(wire, str(message["status"])).inc()
                started.append(message["status"])
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                spent = {"status": started[0], "seconds": round(self.clock() - began, 4)}
                LOG.info("answered", extra={"told": told | spent})

        try:
            name = self._admitted(scope, headers)
        except Fault as fault:
            await answer(fault, wire)(scope, receive, sending)
            return
        told["key"] = name  # a few letters of its digest
        scope.setdefault("state", {}).update(key=name, request_id=request_id)
        try:
            await self.app(scope, _limited(receive, headers, self.access), sending)
        except Exception as error:  # a fault of ours: the client hears its kind, the log all of it
            if not started:
                await answer(fault_of(error), wire)(scope, receive, sending)
            raise

    def _admitted(self, scope: Scope, headers: Headers) -> str:
        """The name of the key that asks. Raises Fault."""
        path, reading = scope["path"], scope["method"] in ("GET", "HEAD")
        open_to_all = reading and (path in OPEN or path.startswith("/images/"))
        name = "" if open_to_all else self._key(headers)
        if not open_to_all and not reading and not path.endswith(UNCOUNTED):
            self._count(name)
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.access.most_body_bytes:
            raise _too_large(self.access.most_body_bytes)
        return name

    def _key(self, headers: Headers) -> str:
        if not self.keys:
            _from_here(headers)
            return ""
        given, found = _digest(given_key(headers)), b""
        for key in self.keys:  # all of them, each in the same time, whichever it is
            found = key if hmac.compare_digest(given, key) else found
        if not found:
            asks = {"WWW-Authenticate": 'Bearer realm="dovetail", Basic realm="dovetail"'}
            raise Fault(401, "this endpoint needs a key: Bearer, X-API-Key, or the password of Basic", None, None, asks)
        return found.hex()[:12]

    def _count(self, name: str) -> None:
        most = self.access.requests_per_minute
        if most is None:
            return
        now = self.clock()
        left, then = self.left.get(name, (float(most), now))
        left = min(float(most), left + (now - then) * most / 60)
        if left < 1:
            seconds = (1 - left) * 60 / most
            limits = {"ratelimit": f'"requests";r=0;t={math.ceil(seconds)}', "ratelimit-policy": f'"requests";q={most};w=60'}
            raise Fault(429, f"more than {most} requests a minute", None, "rate_limited", retry_after(seconds) | limits)
        self.left[name] = (left - 1, now)


def _from_here(headers: Headers) -> None:
    """Without keys, a web page of somebody else must not ask in the name of who looks at it. Raises Fault."""
    for name, host in (("host", "//" + headers.get("host", "")), ("origin", headers.get("origin", ""))):
        try:
            there = urlsplit(host).hostname
        except ValueError:
            there = "?"
        if (there or host not in ("", "//")) and not is_loopback(there or "?"):
            raise Fault(403, f"without a key only this machine is answered, and {name} is another", None, "forbidden")


def _request_id(headers: Headers) -> str:
    for name in ("x-request-id", "x-amzn-trace-id"):
        if REQUEST_ID.fullmatch(said := headers.get(name, "")):
            return said
    return uuid.uuid4().hex


def _too_large(most: int) -> Fault:
    return Fault(413, f"the body is larger than {most} bytes", None, None, {"Connection": "close"})


def _limited(receive: Receive, headers: Headers, access: Access) -> Receive:
    """The body as it comes, no more than there may be, and JSON no deeper. Raises Fault while it is read."""
    depth = Depth(access.most_depth) if "json" in headers.get("content-type", "").lower() else None
    taken = 0

    async def receiving() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            part = message.get("body", b"")
            taken += len(part)
            if taken > access.most_body_bytes:
                raise _too_large(access.most_body_bytes)
            if depth and part:
                depth.feed(part)
        return message

    return receiving


class Depth:
    """Follows JSON that comes in parts, before anything builds objects of it."""

    def __init__(self, most: int) -> None:
        self.most, self.depth, self.tokens, self.quoted, self.rest = most, 0, 0, False, b""

    def feed(self, part: bytes) -> None:
        """The next part. Raises Fault where it is too deep or too intricate."""
        part = self.rest + part
        slashes = len(part) - len(part.rstrip(b"\\"))
        self.rest = part[-1:] if slashes % 2 else b""  # a backslash belongs to what follows
        for token in TOKEN.finditer(part, 0, len(part) - len(self.rest)):
            self.tokens += 1
            self._take(token[0])
            if self.depth > self.most or self.tokens > MOST_TOKENS:
                raise Fault(400, f"the JSON is deeper than {self.most} or more intricate than a request is", None, "too_deep")

    def _take(self, token: bytes) -> None:
        if token == b'"':
            self.quoted = not self.quoted
        elif not self.quoted and not token.startswith(b"\\"):
            self.depth += 1 if token in b"[{" else -1
