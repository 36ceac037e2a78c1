"""Splits, fingerprints, crops: what stands where, what looks alike, what is cut out."""

import numpy as np
import pytest
from PIL import Image
from tiny import COLOURS, SHAPES, drawing

from dovetail.core import crops, fingerprints, splits


def test_linked_and_named_alike_share_a_group_and_others_do_not() -> None:
    groups = splits.joined_groups(6, [(0, 1), (1, 2)], ["", "", "", "shoot", "shoot", ""])
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3


def test_links_across_named_groups_join_the_groups_whole() -> None:
    assert len(set(splits.joined_groups(4, [(1, 2)], ["a", "a", "b", "b"]))) == 1


def test_a_large_collection_gets_about_the_shares_asked_for() -> None:
    chosen = splits.assign({f"g{i}": 1 for i in range(3000)}, 0.15, 0.2, seed=0)
    counts = {s: sum(v == s for v in chosen.values()) / 3000 for s in ("train", "validation", "test")}
    assert counts["test"] == pytest.approx(0.2, abs=0.03) and counts["validation"] == pytest.approx(0.15, abs=0.03)


def test_adding_groups_moves_no_other_group_where_the_shares_are_filled() -> None:
    sizes = {f"g{i}": 1 + i % 3 for i in range(200)}
    before = splits.assign(sizes, 0.15, 0.2, seed=0)
    after = splits.assign(sizes | {f"new{i}": 2 for i in range(40)}, 0.15, 0.2, seed=0)
    assert {n: after[n] for n in before} == before


def test_the_order_of_the_groups_does_not_matter_and_the_seed_does() -> None:
    sizes = {f"g{i}": 1 for i in range(50)}
    chosen = splits.assign(sizes, 0.15, 0.2, seed=0)
    assert splits.assign(dict(reversed(sizes.items())), 0.15, 0.2, seed=0) == chosen
    assert splits.assign(sizes, 0.15, 0.2, seed=1) != chosen


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_few_groups_are_topped_up_so_that_every_split_holds_one(count: int) -> None:
    for seed in range(20):
        chosen = splits.assign({f"g{i}": 3 for i in range(count)}, 0.15, 0.2, seed)
        assert set(chosen.values()) == {"train", "validation", "test"}, f"seed {seed}: {chosen}"


@pytest.mark.parametrize("seed", range(6))
def test_one_group_only_is_learnt_from(seed: int) -> None:
    assert splits.assign({"only": 7}, 0.15, 0.2, seed) == {"only": "train"}


@pytest.mark.parametrize("seed", range(6))
def test_two_groups_leave_one_to_learn_from(seed: int) -> None:
    assert "train" in splits.assign({"a": 7, "b": 1}, 0.15, 0.2, seed).values()


def test_no_share_means_no_such_split() -> None:
    assert set(splits.assign({f"g{i}": 1 for i in range(30)}, 0.0, 0.0, 0).values()) == {"train"}
    assert splits.assign({}, 0.1, 0.1, 0) == {}


def _prints(image: Image.Image) -> tuple[str, str]:
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)).astype(np.float64)
    return fingerprints.perceptual_hash(grey), fingerprints.colour_signature(
        np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.LANCZOS))
    )


def _pairs(*images: Image.Image, bits: int = 6) -> list[tuple[int, int]]:
    hashes, colours = zip(*(_prints(i) for i in images), strict=True)
    return fingerprints.near_duplicates(list(hashes), list(colours), bits)


def test_the_same_picture_resized_or_saved_again_is_a_near_duplicate() -> None:
    picture = drawing("round", "red", (96, 80))
    noisy = np.clip(np.asarray(picture).astype(int) + np.random.default_rng(0).normal(0, 4, (80, 96, 3)), 0, 255).astype(
        np.uint8
    )
    assert _pairs(picture, picture.resize((57, 48)), Image.fromarray(noisy)) == [(0, 1), (0, 2), (1, 2)]


def test_the_same_drawing_in_another_colour_is_not_a_near_duplicate() -> None:
    assert _pairs(drawing("round", "red"), drawing("round", "blue")) == []


def test_all_fifteen_different_drawings_are_told_apart() -> None:
    assert _pairs(*(drawing(s, c) for s in SHAPES for c in COLOURS)) == []


def test_every_near_duplicate_is_found_wherever_it_stands() -> None:
    others = [drawing(s, "green") for s in SHAPES]
    assert _pairs(others[0], *others[1:], others[0].resize((60, 50))) == [(0, 5)]


def test_hamming_distance_counts_bits() -> None:
    assert fingerprints.hamming("00ff", "00f0") == 4 and fingerprints.hamming("ffff", "0000") == 16
    assert fingerprints.colour_distance("000000", "0a0a0a") == 10.0
    assert len(fingerprints.perceptual_hash(np.zeros((32, 32)))) == 16


@pytest.mark.parametrize(("width", "height"), [(64, 64), (40, 90), (333, 65), (7, 5), (1000, 999)])
@pytest.mark.parametrize("centre", [True, False])
def test_every_view_is_a_square_inside_the_scaled_picture(width: int, height: int, centre: bool) -> None:
    for view in crops.views(width, height, (32, 32), centre=centre, flip=True, key="k"):
        assert min(view.width, view.height) == 32
        assert 0 <= view.left <= view.width - 32 and 0 <= view.top <= view.height - 32
        assert view.width / view.height == pytest.approx(width / height, rel=0.05)


def test_views_come_in_mirrored_pairs_where_flips_are_wanted_and_alone_where_not() -> None:
    views = crops.views(90, 40, (32, 32), centre=False, flip=True, key="k")
    assert len(views) == 2 * crops.RANDOM_CROPS
    assert all(
        a.left == b.left and a.top == b.top and (a.mirrored, b.mirrored) == (False, True)
        for a, b in zip(views[::2], views[1::2], strict=True)
    )
    assert [v.mirrored for v in crops.views(90, 40, (32, 32), centre=True, flip=False, key="k")] == [False]


def test_random_crops_follow_from_the_key_and_differ_between_keys() -> None:
    one, again, other = (crops.views(400, 40, (32, 32), centre=False, flip=False, key=k) for k in ("a", "a", "b"))
    assert one == again and one != other and len({v.left for v in one}) > 1


def test_the_centre_crop_is_in_the_middle() -> None:
    assert crops.views(96, 32, (32, 32), centre=True, flip=False, key="")[0].left == 32


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 40), (33, 400), (20, 20)])
def test_closer_views_lie_inside_the_picture_and_follow_the_views_of_the_whole(width: int, height: int) -> None:
    plain = crops.views(width, height, (32, 32), centre=True, flip=True, key="k")
    views = crops.views(width, height, (32, 32), centre=True, flip=True, key="k", closer=5)
    assert views[: len(plain)] == plain and len(views) == len(plain) + 10
    for view in views[len(plain) :]:
        assert 0 <= view.left <= view.width - 32 and 0 <= view.top <= view.height - 32
        assert (1 - crops.CLOSEST) * min(view.width, view.height) <= 32.5
        assert view.width / view.height == pytest.approx(width / height, rel=0.05)
    assert len({(v.width, v.left, v.top) for v in views}) > 3
    assert views != crops.views(width, height, (32, 32), centre=True, flip=True, key="other", closer=5)
