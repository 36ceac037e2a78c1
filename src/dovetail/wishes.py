"""What is asked of an endpoint, and what comes back: the words between the wire formats and the painter."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

MOST_LORA_SCALE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One picture that somebody wants, with all that its bytes depend on but the model."""

    prompt: str
    negative_prompt: str = ""
    seed: int
    steps: int
    guidance_scale: float
    width: int  # pixels
    height: int
    model: str = ""  # one of `Served.others`, say the base it was tuned from; empty is the model in force
    sampler: str = ""  # a name of `Served.samplers`; empty is the model's own
    image: bytes = b""  # an encoded picture to begin from; empty is noise alone
    strength: float = 1.0  # how much of that picture is painted anew, 0..1
    least_steps: int = 0  # under overload no fewer than these; 0 is never fewer than `steps`
    lora_scale: float = 1.0  # 0..2, where `Served.lora`: of what the tuning changed; 1 is the model as published, 0 its base


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and how long they wait."""

    key: str = ""  # shares are fair between keys
    seconds: float | None = None  # after these the picture is not wanted any more
    request_id: str = ""
    previews: int = 0  # pictures wanted on the way


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A finished picture."""

    png: bytes  # prompt, parameters, model, version and digest in its text chunks
    wish: Wish  # as it was painted: with the sampler's name, and the steps that were done
    model: str
    version: str
    digest: str  # of the model's weights
    degraded: str = ""  # "steps 20 -> 8", where overload lowered them
    waited_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The model in force."""

    name: str
    version: str
    digest: str
    side: int  # pixels of a picture that is asked for without a size
    multiple: int  # sides of pictures are multiples of this
    most_pixels: int  # of a picture
    samplers: tuple[str, ...]  # the model's own first
    others: tuple[str, ...] = ()  # further models that a wish may name
    licence: str
    restrictions: str = ""  # of use
    run: str = ""  # that taught it, where known
    lora: bool = False  # whether it was tuned with a LoRA that a wish may have more or less of


def tagged(wish: Wish, model: str) -> str:
    """The prompt as AUTOMATIC1111's users write it: where there is more or less of the model's LoRA, with a tag at its end."""
    return wish.prompt if wish.lora_scale == 1 else f"{wish.prompt} <lora:{model}:{wish.lora_scale!r}>"


@dataclass(slots=True)
class Ticket:
    """A picture under way. The future gives it, or raises one of the errors below."""

    wish: Wish
    caller: Caller
    future: "Future[Painted]" = field(default_factory=Future)
    step: int = 0  # done so far
    previews: list[bytes] = field(default_factory=list)  # PNGs of what the painter believes it will be
    heard: Callable[["Ticket"], None] | None = None  # called from the painter's thread on each new preview
    dropped: bool = False

    def drop(self) -> None:
        """It is not wanted any more: what it holds is given back within a step, and the future raises DroppedError."""
        self.dropped = True


class WishError(Exception):
    """What this endpoint cannot do; `parameter` is the field of the wish that is at fault."""

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class BusyError(Exception):
    """Too much is waiting already; by then there is room."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"too much is waiting; there is room in about {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class DroppedError(Exception):
    """It was dropped by whoever asked."""


class LateError(Exception):
    """Its time was up before it was done."""


class ClosedError(Exception):
    """The endpoint is going down, or cannot paint."""


class UnpaintableError(Exception):
    """This wish failed, and would fail again: a prompt or size that the model cannot take. Others go on."""


class Studio(Protocol):
    """Who paints. Any thread may call."""

    @property
    def served(self) -> Served:
        """The model that the next wish gets."""

    @property
    def ready(self) -> bool:
        """Whether it can paint now."""

    def submit(self, wishes: Sequence[Wish], caller: Caller) -> list[Ticket]:
        """All of them or none. Raises WishError, BusyError, ClosedError."""

    def state(self) -> dict[str, Any]:
        """Tickets and row-steps that wait and run, rows a call, row-steps a second: plain numbers by name."""

    def under_way(self) -> list[Ticket]:
        """Waiting and running tickets, the oldest first."""

    def exposition(self) -> bytes:
        """Prometheus' text of all metrics."""
