"""How long a training is planned to be, from counts alone."""

import pytest

from dovetail import training_plan as plan
from dovetail.config import Processing, Training

BATCH = Training().batch_size


def test_steps_grow_with_the_root_of_the_pictures_between_two_bounds() -> None:
    counts = [1, 2, 10, 30, 100, 1_000, 10_000, 10**7]
    planned = [plan.steps(n, BATCH) for n in counts]
    assert planned == sorted(planned) and planned[0] == plan.FEWEST_STEPS and planned[-1] == plan.MOST_STEPS
    assert plan.steps(200, BATCH) == pytest.approx(2 * plan.steps(50, BATCH), abs=1)
    passes = [steps * BATCH / n for steps, n in zip(planned, counts, strict=True)]
    assert passes == sorted(passes, reverse=True), "few pictures are each seen more often"


def test_the_pictures_learned_from_do_not_depend_on_the_batch() -> None:
    assert plan.steps(100, 4) * 4 == pytest.approx(plan.steps(100, 16) * 16, rel=0.02)
    assert plan.steps(1, 1) == BATCH * plan.FEWEST_STEPS and plan.steps(5, 10**6) == 1


@pytest.mark.parametrize("validation", [0, 1, 5, 30, 10_000])
@pytest.mark.parametrize("steps", [1, 7, 120, 900])
def test_held_out_losses_take_a_20th_of_the_work_at_most(steps: int, validation: int) -> None:
    every = plan.measuring_interval(steps, 16, validation, 8)
    assert 1 <= every <= steps
    count, passes = steps // every, plan.measured_pictures(validation) * 8
    assert count <= plan.MEASUREMENTS
    assert count == 1 or count * passes <= plan.MEASURING_SHARE * plan.TRAINING_PASSES * 16 * steps


def test_rehearsal_pictures_cost_a_quarter_of_the_training_at_most_and_come_in_whole_batches() -> None:
    for learned in (16, 2_000, 4_000, 10**6):
        count = plan.rehearsal_pictures(learned, few_steps=False)
        assert count % plan.REHEARSAL_BATCH == 0 and 0 < count <= plan.MOST_REHEARSAL
        if count > plan.REHEARSAL_BATCH:
            assert count * 2 * plan.GUIDED_STEPS <= plan.REHEARSAL_SHARE * plan.TRAINING_PASSES * learned
    assert plan.rehearsal_pictures(20_000, few_steps=True) == plan.MOST_REHEARSAL
    assert plan.rehearsal_pictures(2_000, few_steps=True) > plan.rehearsal_pictures(2_000, few_steps=False)


def test_what_is_left_empty_is_filled_in_and_what_is_asked_for_stays() -> None:
    free = Training().planned(30, 5)
    assert (free.steps, free.held_out_every) == (plan.steps(30, BATCH), plan.measuring_interval(free.steps, BATCH, 5, 8))
    fixed = Training(steps=7, held_out_every=2, method="lora").planned(30, 5)
    assert (fixed.steps, fixed.held_out_every, fixed.method) == (7, 2, "lora")
    assert Training().planned(1, 0).steps == plan.FEWEST_STEPS
    accumulated = Training(batch_size=4, gradient_accumulation_steps=BATCH // 4).planned(30, 5)
    assert accumulated.steps == free.steps


def test_rehearsal_pictures_follow_from_the_training_where_they_are_left_empty() -> None:
    few = Processing().planned(20, Training(), few_steps=False).rehearsal_pictures
    assert few == plan.rehearsal_pictures(BATCH * plan.steps(20, BATCH), few_steps=False)
    assert Processing(rehearsal_pictures=7).planned(20, Training(), few_steps=False).rehearsal_pictures == 7
    assert Processing(rehearsal_pictures=0).planned(20, Training(), few_steps=True).rehearsal_pictures == 0
    assert Processing().planned(20, Training(rehearsal_share=0), few_steps=True).rehearsal_pictures == 0
    assert Processing().planned(20, Training(steps=1), few_steps=False).rehearsal_pictures == plan.REHEARSAL_BATCH


def test_few_pictures_are_seen_in_more_ways() -> None:
    assert [plan.moved_views(n) for n in (0, 1, 40, 64, 512, 513)] == [12, 12, 12, 8, 1, 0]
    assert Processing().planned(20, Training(), few_steps=True).moved_views == 12
    assert Processing(moved_views=0).planned(20, Training(), few_steps=True).moved_views == 0
