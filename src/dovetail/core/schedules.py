"""The learning rate as a function of the step, and the decay of the averaged weights."""

import math

from dovetail.records import Schedule

DECAY_SHARE = 0.2  # of a warmup_stable_decay, at its end
FLOOR = 1e-7  # where a polynomial decay ends


def learning_rate(step: int, steps: int, peak: float, warmup: int, shape: Schedule) -> float:
    """Rate of optimizer step `step` (from 0): a linear warm-up to `peak`, then constant or falling to zero at `steps`.

    "warmup_stable_decay" stays at `peak` and falls in a straight line over the last fifth (Hägele et al. 2024), so a run may
    be made longer or shorter while it is under way.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    factors = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "polynomial": 1 - progress + progress * min(1.0, FLOOR / peak),
        "warmup_stable_decay": min(1.0, (1 - progress) / DECAY_SHARE),
    }
    return peak * factors[shape]


def ema_decay(step: int, decay: float) -> float:
    """Decay after optimizer step `step` (from 0): min(decay, (1 + n) / (10 + n)), so that the start is forgotten soon."""
    return min(decay, (1 + step) / (10 + step))
