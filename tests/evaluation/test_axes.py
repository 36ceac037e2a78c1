"""Axes from plain numbers: what is planted is found, and no difference is called none."""

from typing import Any

import numpy as np
import pytest

from dovetail.evaluation import axes, copies, kernel_distance

PROMPTS = [f"prompt {i:02d}" for i in range(12)]
EACH = [p for p in PROMPTS for _ in range(4)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def cloud(rng: np.random.Generator, center: np.ndarray, spread: float, samples: int = 4, prompts: int = 12) -> np.ndarray:
    return unit(center + spread * rng.standard_normal((prompts, samples, len(center))))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def scores(rng: np.random.Generator, gain: float) -> tuple[list[float], list[float]]:
    base = rng.normal(20, 3, 48)
    return base.tolist(), (base + gain + rng.normal(0, 2, 48)).tolist()


def test_a_plain_gain_wins_the_prompt_axis_and_a_plain_loss_loses_it(rng: np.random.Generator) -> None:
    assert axes.prompt_axis(*scores(rng, 6.0), EACH, "points").outcome == "won"
    assert axes.prompt_axis(*scores(rng, -6.0), EACH, "points").outcome == "lost"
    even = axes.prompt_axis(*scores(rng, 0.2), EACH, "points")
    assert even.outcome == "even" and "no clear gain" in even.sentence


def test_a_small_gain_says_how_many_prompts_it_needs(rng: np.random.Generator) -> None:
    base = np.zeros(12)
    tuned = np.array([1.0, -0.6, 0.8, -0.5, 1.2, 0.3, -0.4, 0.9, -0.2, 0.5, 0.1, -0.3])
    found = axes.prompt_axis(base.tolist(), tuned.tolist(), PROMPTS, "points")
    assert found.outcome == "even" and found.needed is not None and found.needed > 12


def test_few_prompts_do_not_win_however_large_the_gain(rng: np.random.Generator) -> None:
    found = axes.prompt_axis([0.0] * 4, [50.0, 51.0, 52.0, 53.0], PROMPTS[:4], "points")
    assert found.outcome == "even" and found.needed == axes.LEAST_DECIDING == 8


def test_samples_that_move_towards_the_real_pictures_win_likeness(rng: np.random.Generator) -> None:
    here, there = rng.standard_normal((2, 16))
    real = cloud(rng, here, 0.3, samples=1)
    base, near = cloud(rng, there, 0.3), cloud(rng, here, 0.35)
    assert axes.likeness_axis(base, near, real, PROMPTS).outcome == "won"
    assert axes.likeness_axis(near, base, real, PROMPTS).outcome == "lost"
    assert axes.likeness_axis(base, cloud(rng, there, 0.3), real, PROMPTS).outcome == "even"


def test_exchanging_the_models_exchanges_the_distances_and_nothing_else(rng: np.random.Generator) -> None:
    one, other, real = (cloud(rng, rng.standard_normal(8), 0.5, n) for n in (3, 3, 1))
    there, back = kernel_distance.kernel_distances(one, other, real), kernel_distance.kernel_distances(other, one, real)
    assert (there.base, there.tuned) == pytest.approx((back.tuned, back.base))
    np.testing.assert_allclose(there.base_similarity, back.tuned_similarity)


def test_the_kernel_distance_is_unbiased_for_samples_of_the_same_distribution() -> None:
    rng = np.random.default_rng(5)
    center = rng.standard_normal(8)
    found = [
        kernel_distance.kernel_distances(*(cloud(rng, center, 0.5, n, prompts=6) for n in (2, 2, 1))).tuned for _ in range(300)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_likeness_is_rarely_won_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(8)
    center, elsewhere = rng.standard_normal((2, 8))
    outcomes = []
    for _ in range(200):
        real = cloud(rng, center, 0.5, 1, prompts=8)
        base, tuned = (cloud(rng, elsewhere, 0.5, 4, prompts=8) for _ in range(2))
        outcomes.append(axes.likeness_axis(base, tuned, real, PROMPTS[:8]).outcome)
    assert outcomes.count("won") <= 8


def test_details_are_compared_with_what_the_vae_can_do_at_best(rng: np.random.Generator) -> None:
    here, there = rng.standard_normal((2, 16))
    real = cloud(rng, here, 0.3)
    found = axes.details_axis(cloud(rng, there, 0.3), cloud(rng, here, 0.3), real, unit(real + 0.01), PROMPTS)
    assert found.outcome == "won" and found.role == "information"
    assert found.details["vae_distance"] < found.details["base_distance"]


@pytest.mark.parametrize(("shift", "outcome"), [(0.2, "lost"), (-0.2, "won"), (0.0, "even")])
def test_held_out_loss_is_a_guard_by_its_whole_interval(rng: np.random.Generator, shift: float, outcome: str) -> None:
    changes = shift + rng.normal(0, 0.1, 12)
    found = axes.held_out_loss_axis(changes.tolist(), PROMPTS, {"low-noise": changes.tolist()})
    assert found.outcome == outcome and found.required
    assert ("above" in found.sentence) == (float(changes.mean()) > 0)


def test_pictures_of_one_drawing_are_one_piece_of_evidence(rng: np.random.Generator) -> None:
    found = axes.held_out_loss_axis([0.2, 0.21, 0.19, 0.2], ["a drawing"] * 4, {})
    assert found.outcome == "cannot judge" and found.required


def test_lost_words_are_seen_and_weaker_ones_forgiven(rng: np.random.Generator) -> None:
    base = 0.3 + rng.normal(0, 0.03, 12)
    assert axes.words_axis(base.tolist(), rng.normal(0, 0.02, 12).tolist(), PROMPTS).outcome == "lost"
    assert axes.words_axis(base.tolist(), (0.8 * base).tolist(), PROMPTS).outcome == "even"
    ignored = rng.normal(0, 0.02, 12).tolist()
    assert axes.words_axis(ignored, ignored, PROMPTS).outcome == "lost"  # twelve pictures, and the caption does not matter
    assert axes.words_axis(ignored[:5], ignored[:5], PROMPTS[:5]).outcome == "even"  # too few to say so
    assert axes.words_axis(base.tolist(), (2 * base).tolist(), PROMPTS).outcome == "won"


def test_one_picture_for_every_prompt_is_a_collapse(rng: np.random.Generator) -> None:
    real, base = cloud(rng, np.zeros(16), 1.0, 1), cloud(rng, np.zeros(16), 1.0)
    one = unit(rng.standard_normal(16) + 0.05 * rng.standard_normal((12, 4, 16)))
    assert axes.variety_axis(base, one, real, PROMPTS).outcome == "lost"
    assert axes.variety_axis(base, cloud(rng, np.zeros(16), 1.0), real, PROMPTS).outcome == "even"


def test_forgetting_has_a_margin_of_one_point(rng: np.random.Generator) -> None:
    assert axes.forgetting_axis(*scores(rng, -4.0), EACH, "points").outcome == "lost"
    assert axes.forgetting_axis(*scores(rng, -0.9), EACH, "points").outcome == "even"


def _pictures(kind: str) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    drawn = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(6)]
    made: dict[str, Any] = {
        "good": drawn, "blank": [np.full((32, 32, 3), 200, np.uint8)] * 6,
        "saturated": [((d > 127) * 255).astype(np.uint8) for d in drawn],
    }  # fmt: skip
    return list(made[kind])


@pytest.mark.parametrize("kind", ["good", "blank", "saturated"])
def test_broken_pictures_are_told_by_what_is_wrong(kind: str) -> None:
    faults = [axes.fault_of(p) for p in _pictures(kind)]
    assert set(faults) == {"" if kind == "good" else kind}
    good = [""] * 6
    assert axes.broken_axis(faults, good, good).outcome == ("even" if kind == "good" else "lost")
    assert axes.broken_axis(faults, good, faults).outcome == "even"  # the real pictures are like that


def test_drawings_on_pure_white_are_not_saturated_where_real_ones_are_like_that() -> None:
    drawn = np.full((32, 32, 3), 255, np.uint8)
    drawn[8:24, 8:24] = np.random.default_rng(1).integers(20, 230, (16, 16, 3))
    assert axes.fault_of(drawn, limit=axes.saturation_limit([])) == "saturated"
    assert axes.fault_of(drawn, limit=axes.saturation_limit([drawn])) == ""
    assert axes.fault_of(_pictures("saturated")[0], limit=axes.saturation_limit([drawn])) == "saturated"


def test_numbers_that_are_none_are_broken_and_one_accident_is_forgiven() -> None:
    assert axes.fault_of(_pictures("good")[0], finite=False) == "not a number"
    assert axes.broken_axis(["blank"] + [""] * 63, [""] * 64, [""] * 8).outcome == "even"
    assert axes.broken_axis([], [], []).outcome == "even"


def _squares(seed: int, count: int) -> list[np.ndarray]:
    """Pictures of a few rectangles each: shapes that differ."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        picture = np.full((64, 64, 3), rng.integers(0, 255, 3), np.uint8)
        for _ in range(3):
            y, x = rng.integers(4, 40, 2)
            height, width = rng.integers(8, 24, 2)
            picture[y : y + height, x : x + width] = rng.integers(0, 255, 3)
        found.append(picture)
    return found


def _finding(samples: list[np.ndarray]) -> copies.CopyFinding:
    train, held_out = _squares(1, 12), _squares(2, 8)
    views = [copies.shape_descriptors([*x, *copies.mirrored(x)]) for x in (train, held_out)]
    own = copies.shape_descriptors(samples)
    to_train, to_held_out = (copies.similarity_table(own, v, 2) for v in views)
    control = copies.similarity_table(views[1][:8], views[0], 2).max(1)
    groups = [str(i) for i in range(12)]
    return copies.find_copies(to_train, groups, to_held_out, groups[:8], control)


def _asked(samples: list[np.ndarray]) -> list[str]:
    return [f"prompt {i // 4}" for i in range(len(samples))]


def test_copies_are_found_in_other_colors_and_mirrored_and_new_drawings_are_not_copies() -> None:
    train = _squares(1, 12)
    recolored = [(255 - picture) for picture in train]
    for samples in (train, recolored, copies.mirrored(train)):
        found = _finding(samples)
        assert axes.copies_axis(found, _asked(samples), 8).outcome == "lost"
        assert found.nearest.tolist() == list(range(12))
    new = _squares(3, 40)
    assert axes.copies_axis(_finding(new), _asked(new), 8).outcome == "even"


def test_samples_as_near_to_held_out_drawings_as_to_training_ones_are_at_half(rng: np.random.Generator) -> None:
    groups = [[f"{kind} {i // 3}" for i in range(count)] for kind, count in (("train", 30), ("held-out", 12))]
    similarities = [rng.random((400, len(g))) for g in groups]
    found = copies.find_copies(similarities[0], groups[0], similarities[1], groups[1], rng.random(12))
    assert found.nearer_to_training.mean() == pytest.approx(0.5, abs=0.03)  # ten training drawings, four held out
    nearer = copies.find_copies(similarities[0] + 1, groups[0], similarities[1], groups[1], rng.random(12))
    assert (nearer.nearer_to_training == 1).all()


def test_too_few_held_out_pictures_leave_guards_unmeasured_and_required() -> None:
    found = [
        axes.copies_axis(_finding(_squares(3, 4)), _asked([np.zeros(1)] * 4), 3),
        axes.variety_axis(*(np.ones((3, 1, 4)),) * 3, PROMPTS[:3]),
        axes.held_out_loss_axis([], [], {}),
    ]
    assert all(a.outcome == "cannot judge" and a.required and a.advice for a in found)
    assert axes.likeness_axis(*(np.ones((3, 1, 4)),) * 3, PROMPTS[:3]).outcome == "cannot judge"
    assert axes.words_axis([], [], []).outcome == "cannot judge"
