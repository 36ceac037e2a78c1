"""What is refused or fails, in the shape that each wire format gives it: one line, no path, no traceback."""

import math
from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from dovetail import wishes

LONGEST_RETRY_SECONDS = 120  # the openai client passes over a Retry-After that is longer
CLOSED_RETRY_SECONDS = 5
ONCE = {"x-should-retry": "false"}  # clients that know it do not ask again
CODES = {
    400: "bad_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    406: "not_acceptable", 413: "too_large", 429: "rate_limited", 500: "failed",
}  # fmt: skip


class Told(BaseModel):
    """What openai's clients read of a fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenaiFault(BaseModel):
    """A fault on /v1."""

    error: Told


class WebuiFault(BaseModel):
    """A fault on /sdapi/v1."""

    error: str
    detail: str
    body: str
    errors: str


class HubFault(BaseModel):
    """A fault everywhere else."""

    error: str


class Fault(HTTPException):
    """An answer that is no picture: its status, one line, the parameter at fault and a word for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, " ".join(message.split())[:500], dict(headers or {}))
        self.param = param
        self.code = code or CODES.get(status)


def fault_of(error: BaseException) -> Fault:
    """The fault that an error of the studio is; what it does not name is told by its kind alone."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, wishes.WishError):
        return Fault(400, str(error), error.parameter, "invalid_value")
    if isinstance(error, wishes.BusyError):
        seconds = min(max(error.retry_after_seconds, 0.05), LONGEST_RETRY_SECONDS)
        return Fault(429, str(error), None, "busy", retry_after(seconds))
    if isinstance(error, wishes.LateError):
        return Fault(504, "its time was up before it was done", "deadline_seconds", "deadline_exceeded", ONCE)
    if isinstance(error, wishes.ClosedError):
        return Fault(503, "the endpoint is going down, or cannot paint now", None, "closed", retry_after(CLOSED_RETRY_SECONDS))
    if isinstance(error, wishes.UnpaintableError):
        why = f": {error}" if str(error) else ""
        return Fault(422, f"this cannot be painted{why}", None, "unpaintable", ONCE)
    if isinstance(error, wishes.DroppedError):
        return Fault(409, "it was dropped before it was done", None, "dropped", ONCE)
    return Fault(500, f"painting failed: {type(error).__name__}", None, "failed")


def retry_after(seconds: float) -> dict[str, str]:
    """Headers that say when to come again: in whole seconds, rounded up, and in milliseconds."""
    return {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def invalid(error: RequestValidationError, wire: str) -> Fault:
    """The first thing that is wrong with a request, with the parameter where it is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    where = "" if where.isdigit() else where  # the place in a text that is no JSON
    status = 422 if wire == "webui" else 400
    return Fault(status, f"{where or 'body'}: {first['msg']}", where or None, "invalid_value")


def wire_of(path: str) -> str:
    """Whose shape faults have there: openai, webui or huggingface."""
    return "openai" if path.startswith(("/v1/", "/images/")) else "webui" if path.startswith("/sdapi/") else "huggingface"


def answer(fault: Fault, wire: str) -> JSONResponse:
    """The fault as that wire tells it."""
    body: BaseModel
    if wire == "openai":
        body = OpenaiFault(error=told(fault))
    elif wire == "webui":
        body = WebuiFault(error="HTTPException", detail=fault.detail, body="", errors=fault.detail)
    else:
        body = HubFault(error=fault.detail)
    return JSONResponse(body.model_dump(), fault.status_code, fault.headers)


def told(fault: Fault) -> Told:
    """The object that openai's clients read."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(fault.status_code, "server_error" if fault.status_code >= 500 else "invalid_request_error")
    return Told(message=fault.detail, type=kind, param=fault.param, code=fault.code)
