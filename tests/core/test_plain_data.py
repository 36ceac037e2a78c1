"""Digests, captions, schedules: pure functions on plain data."""

import hashlib
from itertools import pairwise

import pytest

from dovetail.core import captions, digests, schedules


def test_digest_of_data_does_not_depend_on_the_order_of_keys_but_on_the_values() -> None:
    assert digests.of_data({"a": 1, "b": [2, "ü"]}) == digests.of_data({"b": [2, "ü"], "a": 1})
    assert digests.of_data({"a": 1}) != digests.of_data({"a": 2})
    assert digests.of_data([1, 2]) != digests.of_data([2, 1])


def test_digest_of_bytes_is_sha256() -> None:
    assert digests.of_bytes(b"picture") == hashlib.sha256(b"picture").hexdigest()


def test_renaming_a_file_changes_the_content_digest() -> None:
    assert digests.of_files({"a": "1"}) != digests.of_files({"b": "1"})


def test_unit_interval_is_even_and_keeps_its_parts_apart() -> None:
    numbers = [digests.unit_interval("seed", str(i)) for i in range(2000)]
    assert all(0 <= n < 1 for n in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.03
    assert digests.unit_interval("ab", "c") != digests.unit_interval("a", "bc")


def test_differing_fields_names_each_leaf_with_both_values() -> None:
    old = {"training": {"steps": 320, "seed": 0}, "inputs": {"base": "a" * 64}}
    new = {"training": {"steps": 400, "seed": 0}, "inputs": {"base": "b" * 64}, "more": 1}
    assert digests.differing_fields(old, new) == [
        f"inputs.base: {'a' * 12} -> {'b' * 12}",
        "more: nothing -> 1",
        "training.steps: 320 -> 400",
    ]
    assert digests.differing_fields(old, old) == []


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tcat \n on  red ", "a cat on red"),
        ("a\x00c\x07at", "acat"),
        ("cafe\u0301", "café"),
        ("ein Fuchs 🦊 und 犬", "ein Fuchs 🦊 und 犬"),
        ("family 👨\u200d👩\u200d👧", "family 👨\u200d👩\u200d👧"),
        ("half \ud83d pair", "half pair"),
        ("two\u2028lines\u00a0here", "two lines here"),
        (" \n\t ", ""),
    ],
)
def test_captions_are_cleaned_of_what_is_no_text(raw: str, clean: str) -> None:
    assert captions.cleaned(raw) == clean
    assert captions.cleaned(clean) == clean


def test_a_caption_is_refused_when_empty_or_too_long_and_taken_at_the_limit() -> None:
    assert captions.fault("", 10) and captions.fault("", 10)[0] == "no caption"  # type: ignore[index]
    assert captions.fault("x" * 10, 10) is None
    assert "11 characters" in captions.fault("x" * 11, 10)[1]  # type: ignore[index]


def test_learning_rate_warms_up_reaches_the_peak_and_falls_to_nearly_zero() -> None:
    rates = [schedules.learning_rate(s, 100, 2.0, 10, "cosine") for s in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0) and max(rates) == pytest.approx(2.0)
    assert all(a >= b for a, b in pairwise(rates[9:])) and 0 < rates[-1] < 0.01
    assert schedules.learning_rate(55, 100, 2.0, 10, "cosine") == pytest.approx(1.0)


def test_linear_falls_straight_and_constant_stays() -> None:
    assert schedules.learning_rate(55, 100, 2.0, 10, "linear") == pytest.approx(1.0)
    assert schedules.learning_rate(99, 100, 2.0, 0, "constant") == 2.0
    held = [schedules.learning_rate(s, 100, 2.0, 0, "warmup_stable_decay") for s in (0, 80, 90, 99)]
    assert held == pytest.approx([2.0, 2.0, 1.0, 0.1])


@pytest.mark.parametrize("warmup", [0, 5, 50])
def test_a_warm_up_as_long_as_the_training_or_longer_gives_finite_rates(warmup: int) -> None:
    rates = [schedules.learning_rate(s, 5, 1.0, warmup, "cosine") for s in range(5)]
    assert all(0 < r <= 1 for r in rates)


def test_average_forgets_the_start_soon_and_then_keeps_its_decay() -> None:
    assert schedules.ema_decay(0, 0.99) == pytest.approx(0.1)
    assert schedules.ema_decay(10_000, 0.99) == 0.99
    assert schedules.ema_decay(5, 0.0) == 0.0
