"""Who comes next, what a wish costs, and when there will be room: an endpoint's queue as arithmetic."""

import math
from collections.abc import Mapping, Sequence

LONGEST_RETRY = 120.0  # seconds; clients give up rather than wait longer


def row_steps(steps: int, guidance_scale: float, strength: float, pixels: int, usual_pixels: int) -> float:
    """What a picture costs: rows through the U-Net over all steps, in rows of the usual size."""
    done = max(1, min(steps, int(steps * strength)))
    return done * (2 if guidance_scale > 1 else 1) * pixels / usual_pixels


def retry_after(waiting: float, rate: float, most: float) -> float:
    """Seconds until `waiting` row-steps have come down to `most`, at `rate` of them a second; 1 to 120."""
    return min(LONGEST_RETRY, max(1.0, (waiting - most) / max(rate, 1e-9)))


def able(rate: float, finished: Sequence[tuple[float, float]], now: float) -> float:
    """Row-steps a second: of the U-Net alone (`rate`), or fewer where decoding holds up what the latest pictures took.

    `finished` says when each was done and what it cost, since decoding last had nothing to do; 8 of the last minute are
    asked for.
    """
    recent = [(when, cost) for when, cost in finished if now - when < 60]
    if len(recent) < 8:
        return rate
    return min(rate, sum(cost for _, cost in recent[1:]) / max(now - recent[0][0], 1e-9))


def next_key(waiting: Mapping[str, float], served: Mapping[str, float]) -> str:
    """The key that has had the least, of those that wait; at a draw the one that waits longest.

    `waiting` says since when each waits, `served` the row-steps that each was given so far (start-time fair queueing,
    Goyal et al. 1996, with what was served for virtual time).
    """
    return min(waiting, key=lambda k: (served.get(k, 0.0), waiting[k]))


def next_group(groups: Sequence[tuple[float, float]]) -> int:
    """Index of the group whose turn it is: the least (turns had per row) first, then the oldest; (turns, since) each."""
    return min(range(len(groups)), key=lambda i: groups[i])


def fewer_steps(steps: int, least: int, backlog_seconds: float, calm_seconds: float) -> int:
    """Steps under overload: as many times fewer as the backlog is longer than `calm_seconds`, but at least `least`.

    `least` 0 means that they may not be lowered.
    """
    if not least or least >= steps or backlog_seconds <= calm_seconds:
        return steps
    return max(least, math.ceil(steps * calm_seconds / backlog_seconds))


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """After which of `steps` steps a preview is shown: evenly, the last one not among them."""
    return frozenset(round(steps * k / (previews + 1)) for k in range(1, previews + 1)) - {0, steps}
