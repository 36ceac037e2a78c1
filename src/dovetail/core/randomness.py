"""Randomness is an argument: every draw is named by what it is for, so a killed run continues bit for bit."""

import hashlib
from functools import lru_cache

import torch


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `names` alone (first 8 bytes of their SHA-256)."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


@lru_cache(maxsize=8)
def shuffled(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch."""
    return tuple(torch.randperm(count, generator=generator(seed, "order", epoch)).tolist())


def position(step: int, batch: int, count: int, seed: int) -> list[tuple[int, int]]:
    """(index, epoch) of the `batch` items that step `step` learns from, out of `count`, epochs following one another."""
    first = step * batch
    places = (divmod(at, count) for at in range(first, first + batch))
    return [(shuffled(count, seed, epoch)[offset], epoch) for epoch, offset in places]
