"""Small trainings for the tests of the learner: a few pictures of noise and a tiny U-Net."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import TOKENS, WIDTH
from torch import Tensor

from dovetail.config import Training
from dovetail.core import randomness
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import learner
from dovetail.engines.material import Item, Material

CPU = torch.device("cpu")


def items(kind: str, count: int, views: int = 2) -> list[Item]:
    """Pictures of noise, the same each time."""

    def moments(n: int) -> Tensor:
        return torch.randn(views, 8, 8, 8, generator=randomness.generator(0, kind, n)) * torch.tensor(
            [1.0, 0.1]
        ).repeat_interleave(4).view(1, 8, 1, 1)

    return [Item(name=f"{kind} {n}", caption=f"{kind} {n}", moments=moments(n)) for n in range(count)]


def states(caption: str) -> Tensor:
    """What a text encoder might say."""
    return torch.randn(TOKENS, WIDTH, generator=randomness.generator(1, caption))


def material() -> Material:
    """Five pictures to learn, two to rehearse, two to be measured on."""
    painted = [
        Item(name=f"rehearsal {n}", caption=f"other {n}", moments=None, latents=torch.full((4, 8, 8), n - 0.5))
        for n in range(2)
    ]
    return Material(train=items("train", 5), rehearsal=painted, validation=items("validation", 2), test=[], states=states)


def config(**more: Any) -> Training:
    """Six steps, with every kind of event among them."""
    told: dict[str, Any] = {
        "steps": 6, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2, "held_out_every": 3, "sample_every": 2,
        "mixed_precision": "no", "lora_rank": 2, "lora_alpha": 4,
    }  # fmt: skip
    return Training(**told | more)


def teach(
    base: Path,
    folder: Path,
    material: Material,
    settings: Training,
    rate: float = 2e-3,
    on_sample: Callable[[int], None] = lambda step: None,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights and curve."""
    taught = learner.teach(Models(base, CPU), material, settings, rate, folder, Show(quiet=True), on_sample)
    return taught.weights, taught.curve


def held_out(curve: list[dict[str, Any]], which: str) -> list[float]:
    """Mean loss at each measurement."""
    rows = [row["losses"] for row in curve if row.get("set") == which]
    return [sum(sum(v) for v in row.values()) / sum(len(v) for v in row.values()) for row in rows]
