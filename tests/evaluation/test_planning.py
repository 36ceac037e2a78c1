"""A time budget becomes prompts and seeds: what there is of prompts first, then seeds."""

import pytest

from dovetail.evaluation.planning import plan_within


@pytest.mark.parametrize("minutes", [0.01, 0.5, 2, 10, 60, 600])
@pytest.mark.parametrize("prompts", [0, 1, 8, 40])
def test_a_plan_fits_into_its_minutes(minutes: float, prompts: int) -> None:
    plan = plan_within(minutes, 0.5, prompts, 32)
    assert plan.samples * 0.5 <= max(minutes * 60, 2 * 0.5 * 2)
    assert plan.prompts <= prompts and plan.general <= 32 and plan.seeds >= 1


def test_more_time_buys_prompts_before_seeds() -> None:
    short, long = plan_within(0.5, 0.5, 40, 32), plan_within(4, 0.5, 40, 32)
    assert short.seeds == 1 and 1 < short.prompts < 40
    assert long.prompts == 40 and long.seeds > 1
