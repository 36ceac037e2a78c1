"""Aspect-ratio buckets: which there are, which one a picture gets, and that none is lost."""

from collections import Counter

import pytest

from dovetail.core import buckets


@pytest.mark.parametrize(("side", "step"), [(512, 64), (1024, 64), (64, 16)])
def test_buckets_have_nearly_one_area_and_fit_the_unet(side: int, step: int) -> None:
    found = buckets.shapes(side, step)
    assert (side, side) in found and len(set(found)) == len(found) >= 3
    assert all(w % step == h % step == 0 and w * h <= side * side for w, h in found)
    assert all((h, w) in found and max(w, h) <= 2.5 * min(w, h) for w, h in found)
    assert all(w * h > 0.6 * side * side for w, h in found)


def test_a_picture_gets_the_bucket_of_its_shape() -> None:
    shapes = buckets.shapes(512, 64)
    assert buckets.nearest(1000, 1000, shapes) == (512, 512)
    wide, tall = buckets.nearest(1600, 900, shapes), buckets.nearest(900, 1600, shapes)
    assert wide == tall[::-1] and 1.5 < wide[0] / wide[1] < 2
    assert buckets.nearest(3000, 100, shapes) == max(shapes, key=lambda s: s[0] / s[1]) == (768, 320)


@pytest.mark.parametrize("kinds", [(0,) * 9 + (1,) * 5 + (2,), (0, 1, 2), (0,) * 8, tuple(i % 5 for i in range(103))])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_every_picture_is_seen_once_an_epoch_and_most_batches_have_one_shape(kinds: tuple[int, ...], batch: int) -> None:
    seen = [place for step in range(-(-3 * len(kinds) // batch)) for place in buckets.position(step, batch, kinds, 7)]
    for epoch in range(3):
        own = [i for i, e in seen if e == epoch]
        assert Counter(own) == Counter(range(len(kinds))) or epoch == 3
    batches = [{kinds[i] for i, _ in seen[a : a + batch]} for a in range(0, len(seen), batch)]
    could = sum(n // batch for n in Counter(kinds).values())
    assert sum(len(b) == 1 for b in batches) >= 3 * max(0, could - 2)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    kinds = tuple(i % 3 for i in range(20))
    first, again = ([buckets.position(s, 4, kinds, 1) for s in range(10)] for _ in range(2))
    other = [buckets.position(s, 4, kinds, 2) for s in range(10)]
    assert first == again != other
    assert [i for i, _ in first[0] + first[1]] != [i for i, _ in first[5] + first[6]]
