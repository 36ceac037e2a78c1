"""The learning rate as a function of the step, and the decay of the averaged weights."""

import math
from typing import Literal


def learning_rate(step: int, steps: int, peak: float, warmup: int, shape: Literal["constant", "cosine", "linear"]) -> float:
    """Rate of optimizer step `step` (from 0): a linear warm-up to `peak`, then constant or falling to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[shape]
    return peak * factor


def ema_decay(step: int, decay: float) -> float:
    """Decay after optimizer step `step` (from 0): min(decay, (1 + n) / (10 + n)), so that the start is forgotten soon."""
    return min(decay, (1 + step) / (10 + step))
