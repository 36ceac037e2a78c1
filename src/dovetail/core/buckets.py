"""Aspect-ratio buckets: shapes of nearly one area, the nearest one for a picture, an order in which a batch has one shape."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from dovetail.core.randomness import generator

WIDEST = 2.5  # longer over shorter side of a bucket


def shapes(side: int, step: int) -> tuple[tuple[int, int], ...]:
    """(width, height) of all buckets: multiples of `step`, at most the area of `side` squared, as large as that allows."""
    steps, area = side // step, (side // step) ** 2
    found = {(w, area // w) for w in range(1, area + 1) if area // w > 0 and max(w, area // w) <= WIDEST * min(w, area // w)}
    found |= {(h, w) for w, h in found} | {(steps, steps)}
    return tuple(sorted((w * step, h * step) for w, h in found))


def nearest(width: int, height: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to the picture's, by its logarithm."""
    own = math.log(width / height)
    return min(buckets, key=lambda b: (abs(math.log(b[0] / b[1]) - own), b))


@lru_cache(maxsize=8)
def _order(kinds: tuple[int, ...], batch: int, seed: int, epoch: int) -> tuple[int, ...]:
    """All items once, shuffled, so that as many batches as can be hold one kind only; an epoch may begin within a batch."""
    chance = generator(seed, "buckets", epoch)
    by_kind: dict[int, list[int]] = {}
    for i in torch.randperm(len(kinds), generator=chance).tolist():
        by_kind.setdefault(kinds[i], []).append(i)
    whole = [part[a : a + batch] for part in by_kind.values() for a in range(0, len(part) - batch + 1, batch)]
    whole = [whole[i] for i in torch.randperm(len(whole), generator=chance).tolist()]
    rest = [i for part in by_kind.values() for i in part[len(part) // batch * batch :]]  # of one kind together
    head = -epoch * len(kinds) % batch  # items that fill the batch which the epoch before has begun
    while len(rest) < head and whole:
        rest += whole.pop()
    first, rest = rest[:head], rest[head:]
    full = len(rest) // batch * batch
    middle = whole + [rest[a : a + batch] for a in range(0, full, batch)]
    chunks = [middle[i] for i in torch.randperm(len(middle), generator=chance).tolist()]
    return tuple(i for chunk in (first, *chunks, rest[full:]) for i in chunk)


def position(step: int, batch: int, kinds: tuple[int, ...], seed: int) -> list[tuple[int, int]]:
    """(index, epoch) of the `batch` items of step `step`, as `randomness.position` gives them; `kinds` are their buckets."""
    first = step * batch
    places = [divmod(at, len(kinds)) for at in range(first, first + batch)]
    orders = {epoch: _order(kinds, batch, seed, epoch) for epoch in {epoch for epoch, _ in places}}
    return [(orders[epoch][offset], epoch) for epoch, offset in places]
