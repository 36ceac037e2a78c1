"""Randomness is an argument: every draw is named by what it is for, so a killed run continues bit for bit."""

import hashlib

import torch


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `names` alone (first 8 bytes of their SHA-256)."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch."""
    return torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()


def position(step: int, batch: int, count: int, seed: int) -> list[tuple[int, int]]:
    """(index, epoch) of the `batch` items that step `step` learns from, out of `count`, epochs following one another."""
    first = step * batch
    orders: dict[int, list[int]] = {}
    places = []
    for at in range(first, first + batch):
        epoch, offset = divmod(at, count)
        order = orders.setdefault(epoch, shuffled(count, seed, epoch))
        places.append((order[offset], epoch))
    return places
