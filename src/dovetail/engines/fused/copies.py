"""bf16 copies of float32 weights: made where a layer first uses them, kept, and written anew by AdamW as it walks.

A copy is what a cast would give, to the last bit. By its weights' addresses and versions it is told whether it is one of theirs
as they are now; where it is not (other weights were put in their place, a checkpoint was read) it is made again.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class Copy:
    """Of some weights (out, ...), as matrices (out, in) below each other."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = tuple(weights)
        rows = [len(w) for w in weights]
        self.matrix = torch.empty(sum(rows), weights[0][0].numel(), dtype=torch.bfloat16)
        self.parts = dict(zip(self.weights, self.matrix.split(rows), strict=True))
        self.states: dict[Tensor, tuple[int, int]] = {}

    def now(self) -> Tensor:
        """The matrix, of the weights as they are."""
        for weight in self.weights:
            if self.states.get(weight) != _state(weight):
                self.parts[weight].copy_(weight.detach().flatten(1))
                self.states[weight] = _state(weight)
        return self.matrix


def allow(weights: Iterable[Tensor]) -> None:
    """Have copies of these kept, once they are used."""
    for weight in weights:
        weight.copied = None  # type: ignore[attr-defined]


def of(weights: Sequence[Tensor]) -> Tensor | None:
    """The copy of these together, where they may have one."""
    first: Any = weights[0]
    if not hasattr(first, "copied"):
        return None
    if first.copied is None:
        copy = Copy(weights)
        for weight in weights:
            weight.copied = copy  # type: ignore[attr-defined]
    same = len(first.copied.weights) == len(weights) and all(a is b for a, b in zip(first.copied.weights, weights, strict=True))
    return first.copied.now() if same else None


def parts(weights: Iterable[Any]) -> list[Tensor | None]:
    """Where each weight's own part of its copy lies, for who changes both."""
    copies = [getattr(weight, "copied", None) for weight in weights]
    return [copy and copy.parts[weight] for copy, weight in zip(copies, weights, strict=True)]


def written(weights: Iterable[Any]) -> None:
    """All these copies were changed as their weights were."""
    for weight in weights:
        if (copy := getattr(weight, "copied", None)) is not None:
            copy.states[weight] = _state(weight)


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version
