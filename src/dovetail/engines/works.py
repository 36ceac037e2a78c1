"""A wish on its way through the painter, and what is asked of it before it is let in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dovetail.core import shares, solvers
from dovetail.engines import receipts
from dovetail.engines.revisions import Revision, Told
from dovetail.errors import BadConfigError
from dovetail.wishes import MOST_LORA_SCALE, Painted, Served, Ticket, UnpaintableError, Wish, WishError

MOST_LETTERS, MOST_BREAKS = 4000, 16
Group = tuple[int, int, int, int, bool]
NOWHERE = torch.empty(0)
NOTHING = Told(states=NOWHERE)
EMPTY = solvers.Plan(NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE, (), (0.0, 0.0))


@dataclass(slots=True, eq=False)
class Work:
    """A ticket on its way through the painter."""

    ticket: Ticket
    revision: Revision
    wish: Wish  # with the steps and the solver that are meant
    asked: float  # when
    cost: float  # row-steps
    degraded: str = ""
    begun: float = 0.0
    plan: solvers.Plan = EMPTY  # these four, once it was made ready
    told: Told = NOTHING
    state: Tensor = NOWHERE  # (1, 4, c, h, w), of the solver: latents first
    fresh: torch.Generator | None = None  # of the noise that some solvers add
    turns: float = 0.0  # that its group had, when it joined
    shown: frozenset[int] = field(default_factory=frozenset)  # steps after which a preview is wanted
    ended: float = 0.0

    @property
    def group(self) -> Group:
        """What goes through the U-Net together: at LoRA scale 1 through the plain one, at all others through another."""
        scaled = self.told.shift is not None
        return id(self.revision), self.wish.height, self.wish.width, self.told.states.shape[1], scaled

    @property
    def rows(self) -> int:
        """In each call."""
        return 2 if self.wish.guidance_scale > 1 else 1


def checked(wish: Wish, served: Served, config: Mapping[str, Any]) -> Wish:
    """The wish as it is meant, its solver named; `config` is the model's scheduler. Raises WishError where it cannot be."""
    sampler = wish.sampler or served.samplers[0]
    if sampler not in served.samplers:
        raise WishError(f"sampler must be one of {', '.join(served.samplers)}", "sampler")
    if wish.width % served.multiple or wish.height % served.multiple or min(wish.width, wish.height) < served.multiple:
        raise WishError(f"width and height must be multiples of {served.multiple}", "size")
    if wish.width * wish.height > served.most_pixels:
        raise WishError(f"a picture may have {served.most_pixels} pixels, not {wish.width}x{wish.height}", "size")
    if wish.steps < 1:
        raise WishError("steps must be 1 or more", "steps")
    if not 0 < wish.strength <= 1 or (wish.image and int(wish.steps * wish.strength) < 1):
        raise WishError("strength must be above 0 and at most 1, and leave a step to be done", "strength")
    if max(len(wish.prompt), len(wish.negative_prompt)) > MOST_LETTERS:
        raise WishError(f"a prompt may have {MOST_LETTERS} letters", "prompt")
    if not 0 <= wish.seed < 2**63:
        raise WishError("seed must be 0 or more, and below 2 to the 63", "seed")
    if not 1 <= wish.guidance_scale < math.inf:
        raise WishError("guidance_scale must be a number of 1 or more", "guidance_scale")
    if max(wish.prompt.count("BREAK"), wish.negative_prompt.count("BREAK")) > MOST_BREAKS:
        raise WishError(f"a prompt may have {MOST_BREAKS} BREAKs: each is a pass of the text encoder", "prompt")
    if not 0 <= wish.lora_scale <= MOST_LORA_SCALE:
        raise WishError(f"lora_scale must be a number from 0 to {MOST_LORA_SCALE:g}", "lora_scale")
    if wish.lora_scale != 1 and not served.lora:
        raise WishError(f"lora_scale can only be 1 here: {served.name} was not tuned with a LoRA", "lora_scale")
    if wish.image:
        receipts.looked_at(wish.image)
    try:
        solvers.plan(sampler, wish.steps, config, wish.strength if wish.image else None)
    except BadConfigError as error:
        raise WishError(f"{sampler} cannot do that: {error}", "steps") from error
    return replace(wish, sampler=sampler, strength=wish.strength if wish.image else 1.0)


def probe(served: Served) -> Wish:
    """The least that can be wished: to see whether the model paints."""
    return Wish(prompt="", seed=0, steps=1, guidance_scale=1.0, width=served.side, height=served.side)


def area(work: Work) -> float:
    """Of its picture, in pictures of the usual size."""
    return work.wish.width * work.wish.height / work.revision.served.side**2


def price(wish: Wish, served: Served) -> float:
    """Row-steps that it takes."""
    return shares.row_steps(wish.steps, wish.guidance_scale, wish.strength, wish.width * wish.height, served.side**2)


def part(work: Work) -> tuple[Tensor, float, Told]:
    """What the U-Net is asked for its next step: latents (1, c, h, w) as it sees them, timestep, texts."""
    number = work.ticket.step
    return work.state[:, 0] * float(work.plan.enter[number]), float(work.plan.timesteps[number]), work.told


def guided(work: Work, answer: Tensor) -> Tensor:
    """(1, c, h, w) of the U-Net's answer (rows, c, h, w): classifier-free guidance (Ho & Salimans 2022, eq. 6)."""
    if work.rows == 1:
        return answer
    without, along = answer[:1], answer[1:]
    return without + work.wish.guidance_scale * (along - without)


def noise(work: Work) -> Tensor:
    """(1, c, h, w) that its solver adds in this step, from a generator of its own."""
    return torch.randn(work.state[:, 0].shape, generator=work.fresh).to(work.state.device)


def unpaintable(cause: Exception) -> UnpaintableError:
    """In one line, for the one who asked: no path and no traceback; those are its cause."""
    memory = isinstance(cause, torch.OutOfMemoryError) or "can't allocate memory" in str(cause)
    told = "this size does not fit into memory" if memory else f"painting failed: {type(cause).__name__}"
    error = UnpaintableError(told)
    error.__cause__ = cause
    return error


def told(work: Work, painted: Painted | None = None) -> dict[str, object]:
    """What the log says of it: ids and numbers."""
    wish, caller = work.wish, work.ticket.caller
    said: dict[str, object] = {
        "request_id": caller.request_id, "key": caller.key, "version": work.revision.served.version, "seed": wish.seed,
        "steps": wish.steps, "sampler": wish.sampler, "size": f"{wish.width}x{wish.height}", "done": work.ticket.step,
    }  # fmt: skip
    if painted:
        seconds = {"wait": painted.waited_seconds, "denoise": painted.denoise_seconds, "decode": painted.decode_seconds}
        said |= {f"{name}_seconds": round(spent, 4) for name, spent in seconds.items()} | {"degraded": painted.degraded}
    return said
