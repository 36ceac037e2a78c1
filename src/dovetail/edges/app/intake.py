"""What every wire format asks for, in one form: checked against the model in force and made to wishes."""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from dovetail.edges.app import pictures
from dovetail.edges.app.faults import Fault
from dovetail.wishes import Caller, Served, Studio, Ticket, Wish

PROMPT_LETTERS = 4000
MOST_PICTURES = 10  # of one request
MOST_STEPS = 150
MOST_GUIDANCE = 30.0
MOST_SEED = 2**63 - 1
SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 86400.0  # of a deadline
STRENGTH = 0.75  # where a request with a picture does not say

Named = Callable[[str, str], str | None]  # (sampler, scheduler) as a client says them -> a name of `Served.samplers`
Check = Callable[[str], str | None]  # a prompt -> why it is refused
Tags = Callable[[str], tuple[str, Sequence[tuple[str, float]]]]  # a prompt -> it without `<lora:name:scale>`, and these


def no_tags(prompt: str) -> tuple[str, Sequence[tuple[str, float]]]:
    """`<lora:name:scale>` is text."""
    return prompt, ()


@dataclass(slots=True)
class Job:
    """The pictures of one request to the web UI's wire."""

    tickets: list[Ticket]
    started: float  # of the monotonic clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What the routes stand on."""

    studio: Studio
    steps: int
    guidance_scale: float
    named: Named
    check: Check
    tags: Tags = no_tags
    alone: bool = True  # no other process answers at the same address: what is kept here is found here
    kept: pictures.Kept = field(default_factory=pictures.Kept)
    jobs: dict[str, list[Job]] = field(default_factory=dict)  # of each key
    chosen: dict[str, str] = field(default_factory=dict)  # model that each key chose in the web UI's options
    watchers: set[str] = field(default_factory=set)  # keys that want to see the web UI's pictures on the way


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, whatever the wire; what is None takes the endpoint's or the model's own."""

    prompt: str
    n: int = 1
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    model: str | None = None
    sampler: str | None = None
    scheduler: str | None = None
    image: bytes = b""
    strength: float | None = None
    lora_scale: float | None = None
    least_steps: int | None = None
    deadline_seconds: float | None = None
    previews: int = 0
    params: Mapping[str, str] = field(default_factory=dict)  # field of a wish -> what the wire calls it


def only_alone(door: Door, what: str, param: str | None = None) -> None:
    """Refuse what one process keeps and the others do not know, where several answer at one address. Raises Fault."""
    if not door.alone:
        raise Fault(400, f"{what} is not offered where several replicas answer at one address", param, "unsupported")


def param_of(asked: Asked, name: str) -> str:
    """What the wire calls a field of the wish."""
    return asked.params.get(name, name)


def wishes_of(door: Door, asked: Asked) -> list[Wish]:
    """One wish a picture, seeds in a row. Raises Fault."""
    served = door.studio.served
    width, height = _sides(served, asked)
    steps = asked.steps or door.steps
    first = asked.seed if asked.seed is not None else secrets.randbelow(2**31)
    alike = Wish(
        prompt=asked.prompt, negative_prompt=asked.negative_prompt or "", seed=first, steps=steps, width=width, height=height,
        guidance_scale=door.guidance_scale if asked.guidance_scale is None else asked.guidance_scale,
        model=model_of(served, asked.model, param_of(asked, "model")), sampler=_sampler(served, door.named, asked),
        image=asked.image, strength=_strength(asked), least_steps=min(asked.least_steps or 0, steps),
        lora_scale=1.0 if asked.lora_scale is None else asked.lora_scale,
    )  # fmt: skip
    fields = {name: getattr(alike, name) for name in Wish.__dataclass_fields__ if name != "seed"}
    return [Wish(**fields, seed=(first + i) % (MOST_SEED + 1)) for i in range(asked.n)]


def model_of(served: Served, name: str | None, param: str) -> str:
    """What a wish says for a model that a client names: nothing for the one in force. Raises Fault (404)."""
    if name in (None, "", "dovetail", served.name, f"{served.name}@{served.version}"):
        return ""
    if name in served.others:
        return str(name)
    raise Fault(404, f"the model {name!r:.200} is not served here; this is {served.name}", param, "model_not_found")


def _sampler(served: Served, named: Named, asked: Asked) -> str:
    if not asked.sampler and not asked.scheduler:
        return ""
    found = named(asked.sampler or "", asked.scheduler or "")
    if found is None or (found and found not in served.samplers):
        said = asked.sampler or asked.scheduler
        known, param = ", ".join(served.samplers), param_of(asked, "sampler")
        raise Fault(400, f"{param}: there is no sampler {said!r:.100} here; there are {known}", param, "invalid_value")
    return found


def _strength(asked: Asked) -> float:
    if not asked.image:
        return 1.0
    return STRENGTH if asked.strength is None else asked.strength


def _sides(served: Served, asked: Asked) -> tuple[int, int]:
    if asked.width is None and asked.height is None and asked.image:
        return near(served, *pictures.size(asked.image, param_of(asked, "image")))
    width, height = (served.side if side is None else side for side in (asked.width, asked.height))
    least = served.multiple
    if width % least or height % least or min(width, height) < least or width * height > served.most_pixels:
        param = param_of(asked, "width")
        raise Fault(
            400, f"{param}: {width}x{height} is not possible; size must be multiples of {least} with at most "
            f"{served.most_pixels} pixels in all, and is {served.side}x{served.side} where it is not said",
            param, "invalid_size",
        )  # fmt: skip
    return width, height


def near(served: Served, width: int, height: int) -> tuple[int, int]:
    """Sides of about that shape and the model's own area, which the model can paint."""
    least, scale = served.multiple, served.side / math.sqrt(width * height)

    def side(pixels: int) -> int:
        return max(least, round(pixels * scale / least) * least)

    longest, shortest = side(max(width, height)), side(min(width, height))
    longest = max(least, min(longest, served.most_pixels // shortest // least * least))
    return (longest, shortest) if width >= height else (shortest, longest)


def caller_of(request: Request, many: Sequence[Asked]) -> Caller:
    """Who asks, and until when: the shortest of the body's deadlines and the header's. Raises Fault."""
    said = request.headers.get("x-deadline-seconds")
    limits = [asked.deadline_seconds for asked in many if asked.deadline_seconds is not None]
    if said is not None:
        limits.append(_seconds(said))
    return Caller(
        key=request.state.key, request_id=request.state.request_id, seconds=min(limits, default=None), previews=many[0].previews
    )


def _seconds(said: str) -> float:
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        name = "x-deadline-seconds"
        raise Fault(400, f"{name} must be seconds, {SHORTEST_SECONDS} to {LONGEST_SECONDS:.0f}", name, "invalid_value")
    return seconds
