"""Intervals and tests of paired differences: coverage, false alarms, and the cases that have a known answer."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from dovetail.core import intervals

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "right-skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
    "left-skewed": lambda rng, shape: 1 - rng.exponential(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, shape),
}


def names(count: int) -> list[str]:
    return [f"{i:03d}" for i in range(count)]


@pytest.mark.parametrize("count", [3, 5, 14, 32])
@pytest.mark.parametrize("kind", list(DRAWS))
def test_the_interval_covers_the_true_mean(kind: str, count: int) -> None:
    rng, trials = np.random.default_rng([7, count, len(kind)]), 600
    found = [intervals.paired_interval(row.tolist(), names(count)) for row in DRAWS[kind](rng, (trials, count))]
    covered = np.mean([i.low <= 0 <= i.high for i in found])
    assert covered >= (0.87 if "skewed" in kind else 0.925), covered
    assert covered <= 0.985


@pytest.mark.parametrize("count", [2, 4, 6, 8, 14, 16])
@pytest.mark.parametrize("kind", list(DRAWS))
def test_no_difference_is_rarely_taken_for_a_gain(kind: str, count: int) -> None:
    rng, trials = np.random.default_rng([9, count, len(kind)]), 600
    alarms = np.mean(
        [intervals.superiority_p_value(x.tolist(), names(count)) <= 0.01 for x in DRAWS[kind](rng, (trials, count))]
    )
    assert alarms <= 0.045, alarms  # 3 % and the noise of 600 trials


def test_a_plain_gain_is_seen() -> None:
    values = [3.0, 2.5, 4.1, 2.2, 3.3, 2.9, 3.8, 2.7]
    assert intervals.superiority_p_value(values, names(8)) <= 0.01
    assert intervals.superiority_p_value([-v for v in values], names(8)) > 0.99


def test_without_skewness_the_interval_is_students() -> None:
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) + 3
    expected = stats.t.interval(0.95, 4, values.mean(), values.std(ddof=1) / math.sqrt(5))
    found = intervals.paired_interval(values.tolist(), names(5))
    assert (found.low, found.high) == pytest.approx(expected)


def test_samples_of_one_prompt_do_not_count_as_independent() -> None:
    values = np.random.default_rng(0).normal(0, 1, 20)
    once = intervals.paired_interval(values.tolist(), names(20))
    repeated = intervals.paired_interval(np.repeat(values, 50).tolist(), list(np.repeat(names(20), 50)))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    assert repeated.count == 20


def test_with_six_prompts_the_sign_flip_test_cannot_reach_one_percent() -> None:
    assert intervals.superiority_p_value([1.0] * 6, names(6)) == pytest.approx(1 / 64)
    assert intervals.superiority_p_value([1.0] * 7, names(7)) == pytest.approx(1 / 128)


@pytest.mark.parametrize(("values", "owners", "count"), [([1.0, 2.0], ["a", "a"], 1), ([], [], 0)])
def test_one_cluster_or_none_has_an_infinite_interval(values: list[float], owners: list[str], count: int) -> None:
    found = intervals.paired_interval(values, owners)
    assert (found.low, found.high, found.count) == (-math.inf, math.inf, count)
    assert intervals.superiority_p_value(values, owners) == 1.0
    assert intervals.needed_clusters(values, owners, 0.01, 7) is None


def test_equal_differences_have_an_interval_of_no_width_and_numbers_that_are_none_prove_nothing() -> None:
    found = intervals.paired_interval([2.0, 2.0, 2.0], names(3))
    assert (found.low, found.high) == (2.0, 2.0)
    broken = intervals.paired_interval([1.0, math.nan, 2.0], names(3))
    assert math.isnan(broken.low) and intervals.superiority_p_value([1.0, math.nan, 2.0], names(3)) == 1.0


def test_a_weaker_gain_needs_more_prompts_and_no_gain_none_at_all() -> None:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(12) - 0.0
    noise -= noise.mean()
    strong, weak = (intervals.needed_clusters((noise + shift).tolist(), names(12), 0.01, 7) for shift in (1.0, 0.3))
    assert strong is not None and weak is not None and 7 <= strong < weak
    assert intervals.needed_clusters((noise - 0.5).tolist(), names(12), 0.01, 7) is None


def test_a_share_has_wilsons_interval() -> None:
    found = intervals.rate_interval(3, 20)
    expected = stats.binomtest(3, 20).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (intervals.rate_interval(0, 0).low, intervals.rate_interval(0, 0).high) == (0.0, 1.0)
