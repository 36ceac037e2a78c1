"""An endpoint's queue as arithmetic."""

import pytest

from dovetail.core import shares


def test_a_picture_costs_its_rows_over_its_steps_in_usual_pictures() -> None:
    assert shares.row_steps(20, 5.0, 1.0, 64 * 64, 64 * 64) == 40
    assert shares.row_steps(20, 1.0, 0.5, 64 * 128, 64 * 64) == 20
    assert shares.row_steps(20, 1.0, 0.01, 64 * 64, 64 * 64) == 1


@pytest.mark.parametrize(("waiting", "seconds"), [(110.0, 1.0), (400.0, 30.0), (10_000.0, 120.0)])
def test_when_to_come_again_is_when_there_is_room_but_never_too_late_for_a_client(waiting: float, seconds: float) -> None:
    assert shares.retry_after(waiting, 10.0, 100.0) == seconds


def test_the_key_that_had_least_comes_next_then_the_one_that_waits_longest() -> None:
    assert shares.next_key({"a": 1.0, "b": 2.0}, {"a": 40.0, "b": 8.0}) == "b"
    assert shares.next_key({"a": 3.0, "b": 2.0}, {"a": 8.0, "b": 8.0}) == "b"
    assert shares.next_key({"a": 1.0, "new": 9.0}, {"a": 8.0}) == "new"


def test_groups_take_turns_by_rows_had() -> None:
    assert shares.next_group([(4.0, 1.0), (2.0, 5.0), (2.0, 3.0)]) == 2


def test_steps_are_lowered_by_the_backlog_and_never_below_what_was_allowed() -> None:
    assert shares.fewer_steps(20, 0, 100.0, 5.0) == 20
    assert shares.fewer_steps(20, 4, 4.0, 5.0) == 20
    assert shares.fewer_steps(20, 4, 10.0, 5.0) == 10
    assert shares.fewer_steps(20, 4, 1000.0, 5.0) == 4


def test_previews_are_spread_and_never_the_first_or_last_step() -> None:
    assert shares.preview_steps(9, 2) == {3, 6}
    assert shares.preview_steps(1, 3) == set() and shares.preview_steps(20, 0) == set()


def test_what_it_is_able_to_do_is_what_was_finished_where_that_is_less() -> None:
    done = [(float(t), 10.0) for t in range(10)]
    assert shares.able(100.0, done, 10.0) == 9.0
    assert shares.able(5.0, done, 10.0) == 5.0
    assert shares.able(100.0, done, 900.0) == 100.0 and shares.able(100.0, done[:3], 10.0) == 100.0
