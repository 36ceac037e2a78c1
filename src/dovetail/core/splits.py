"""Train / validation / test by group: what belongs together stays on one side, and stays there when data is added."""

from collections.abc import Sequence
from typing import Literal

from dovetail.core.digests import unit_interval

Split = Literal["train", "validation", "test"]


def joined_groups(count: int, links: Sequence[tuple[int, int]], names: Sequence[str]) -> list[int]:
    """A group number for each of `count` items: linked items, and items with the same non-empty name, share one."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_of: dict[str, int] = {}
    named = [(i, first_of.setdefault(n, i)) for i, n in enumerate(names) if n]
    for a, b in [*links, *named]:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(i) for i in range(count)]


def split_of(u: float, validation_share: float, test_share: float) -> Split:
    """The split that a group with the number `u` in [0, 1) belongs to."""
    return "test" if u < test_share else "validation" if u < test_share + validation_share else "train"


def _can_spare(name: str, splits: dict[str, Split]) -> bool:
    """Whether a group's own split keeps another one without it."""
    return sum(s == splits[name] for s in splits.values()) > 1


TEST_GROUPS, VALIDATION_GROUPS = 8, 4  # a verdict and a best step want that many, where there are enough


def _is_short(split: Split, splits: dict[str, Split], sizes: dict[str, int], pictures: float, groups: int) -> bool:
    own = [sizes[name] for name, s in splits.items() if s == split]
    return sum(own) < pictures or len(own) < groups


def assign(sizes: dict[str, int], validation_share: float, test_share: float, seed: int) -> dict[str, Split]:
    """Group name -> split.

    Each group's place follows from its own name and the seed, so that adding data moves nothing. Small collections are
    topped up: where a split holds less than half of its share, or fewer groups than a verdict needs (8 of test and 4 of
    validation, at most two fifths and a sixth of all groups), the groups nearest to its border join it, as long as the training
    split keeps at least one.
    """
    numbers = {name: unit_interval("split", str(seed), name) for name in sizes}
    splits = {name: split_of(u, validation_share, test_share) for name, u in numbers.items()}
    total = sum(sizes.values())
    borders: list[tuple[Split, float, float, int]] = [
        ("test", test_share, test_share, min(TEST_GROUPS, 2 * len(sizes) // 5)),
        ("validation", validation_share, test_share + validation_share, min(VALIDATION_GROUPS, len(sizes) // 6)),
    ]
    for split, share, border, least in borders:
        while share and _is_short(split, splits, sizes, share * total / 2, least):
            spare = [n for n in numbers if splits[n] != split and _can_spare(n, splits)]
            if not spare:
                break
            splits[min(spare, key=lambda n: (splits[n] != "train", abs(numbers[n] - border)))] = split
    if "train" not in splits.values() and splits:
        splits[max(numbers, key=numbers.__getitem__)] = "train"
    return splits
