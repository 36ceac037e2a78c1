"""What held-out losses say, on curves whose truth is known."""

from typing import Any

import numpy as np
import pytest

from dovetail.core import trends

STEPS = [0, 100, 200, 300, 400, 500, 600]


def curve(levels: list[float], train: list[float] | None = None, pictures: int = 8, band: str = "") -> list[dict[str, Any]]:
    """Losses of pictures and timesteps that are unlike, moved by `levels` of all of them or of one band alone."""
    chance = np.random.default_rng(0)
    own = np.geomspace(0.02, 0.9, 8)[None] * chance.uniform(0.5, 2, (pictures, 1))
    cut = dict(zip(trends.BANDS, np.array_split(np.arange(8), 3), strict=True))
    moved = cut[band] if band else np.arange(8)
    rows = []
    for name, course in (("validation", levels), ("train", train or levels)):
        for step, level in zip(STEPS, course, strict=False):
            table = own.copy()
            table[:, moved] *= level * chance.uniform(0.995, 1.005, (pictures, len(moved)))
            rows.append({"step": step, "set": name, "losses": {f"p{i}": list(row) for i, row in enumerate(table)}})
    return [{"step": 10, "loss": 1.0}, *rows, {"step": 20, "event": "x"}]


def test_a_loss_that_falls_is_improving_and_the_last_step_the_best() -> None:
    found = trends.trend(curve([1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7]))
    assert found and found.answer == "improving" and found.best_step == 600
    assert found.change.mean == pytest.approx(-0.3, abs=0.01) and found.change.high < 0
    assert found.sentence.startswith("Held-out loss is 30") and found.sentence.endswith(", improving.")
    assert all(change.mean == pytest.approx(-0.3, abs=0.01) for change in found.bands.values())


def test_a_loss_that_has_come_to_rest_is_flat_since_then() -> None:
    found = trends.trend(curve([1, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8]))
    assert found and found.answer == "flat" and found.sentence.endswith("flat since step 200.")


def test_validation_up_and_training_down_in_one_band_is_overfitting_there_since_the_lowest_point() -> None:
    rows = curve([1, 0.9, 0.8, 0.85, 0.95, 1.05, 1.15], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], band="middle")
    found = trends.trend(rows)
    assert found and found.answer == "overfits" and found.best_step == 300
    assert "it overfits in the middle band since step 200." in found.sentence and "above the base's" in found.sentence
    middle = found.bands["middle"]
    assert middle.low > 0 and middle.mean == pytest.approx(0.15, abs=0.01) and abs(found.bands["high-noise"].mean) < 0.01
    assert trends.since_best(rows) == 3 and trends.lowest_step(rows) == 200


def test_both_up_is_no_overfitting_but_worse() -> None:
    found = trends.trend(curve([1, 0.8, 0.7, 0.8, 0.9, 1.0, 1.1]))
    assert found and found.answer == "worsens"
    assert found.sentence.endswith("in all bands of noise since step 200, on training pictures too.")


def test_one_picture_cannot_tell_and_no_picture_says_nothing() -> None:
    found = trends.trend(curve([1, 0.9], pictures=1))
    assert found and found.answer == "cannot tell" and "too few" in found.sentence and found.best_step == 100
    assert trends.trend([]) is None and trends.best_step([]) is None and trends.since_best([]) == 0
    assert trends.trend(curve([1])) is None, "the base alone is no comparison"


def test_no_noise_level_outweighs_another() -> None:
    drawn = trends.lines(curve([1, 0.5], band="low-noise"))
    assert drawn["validation"][0] == (0, pytest.approx(1)) and drawn["low-noise"][1][1] == pytest.approx(0.5, abs=0.01)
    assert drawn["validation"][1][1] == pytest.approx(1 - 3 / 8 / 2, abs=0.01), "three of eight timesteps count three eighths"
    assert set(drawn) == {"train", "validation", *trends.BANDS}


def test_the_base_is_never_the_best_step() -> None:
    rows = curve([1, 1.1, 1.05, 1.2])
    assert trends.best_step(rows) == 200 and trends.since_best(rows) == 1
    said = trends.outcome(rows, 300, 300, 200, 5)
    assert "after all 300 steps" in said and "no held-out loss was below it" in said and "above the base's" in said


def test_the_outcome_says_why_it_ended_and_what_is_published() -> None:
    rows = curve([1, 0.9, 0.8, 0.92, 0.95])
    said = trends.outcome(rows, 400, 900, 200, 2)
    assert "ended after step 400 of 900, as 2 held-out losses in a row kept less than half" in said
    assert (
        "the weights after step 200 are published, those with the lowest held-out loss: 19.9% below" in said
        and "chance" not in said
    )
    assert "the best were those after step 200." in trends.outcome(rows, 400, 400, 400, 0)
    gain = trends.change(rows, 200)
    assert gain and gain.high < 0 and trends.change(rows, 50) is None


def test_without_validation_pictures_the_outcome_says_so() -> None:
    assert "no validation picture says which weights are best" in trends.outcome([{"step": 10, "loss": 1.0}], 120, 120, 120, 5)
    alone = trends.outcome(curve([1, 0.9], pictures=1), 100, 100, 100, 5)
    assert "9.9% below" in alone and "may be chance" in alone and "interval" not in alone


def test_a_gain_that_may_be_chance_is_called_so() -> None:
    rows = curve([1, 1])
    for row in rows:
        if row.get("set") == "validation" and row["step"] == 100:
            row["losses"] = {n: [x * (1.4 if n == "p0" else 0.93) for x in v] for n, v in row["losses"].items()}
    assert "which may be chance" in trends.outcome(rows, 100, 100, 100, 5)


def test_training_pictures_may_be_measured_less_often() -> None:
    rows = curve([1, 0.9, 0.8, 0.85, 0.95, 1.05, 1.15], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    rows = [row for row in rows if row.get("set") != "train" or row["step"] in (0, 600)]
    found = trends.trend(rows)
    assert found and found.answer == "overfits"


def test_of_weights_that_keep_half_of_what_was_gained_the_latest_are_the_best() -> None:
    rows = curve([1, 0.7, 0.6, 0.65, 0.7, 0.85])
    assert trends.lowest_step(rows) == 200 and trends.best_step(rows) == 400 and trends.since_best(rows) == 1
    said = trends.outcome(rows, 500, 500, 400, 5)
    assert "step 400 are published, the latest with half of the largest fall of held-out loss (at step 200) or more" in said


@pytest.mark.parametrize("seed", range(5))
def test_a_measurement_makes_itself_the_best_or_leaves_the_best_as_it_is(seed: int) -> None:
    rows = curve([1, *np.random.default_rng(seed).uniform(0.7, 1.1, 6).tolist()])
    kept: list[int | None] = []
    for step in STEPS:
        kept.append(trends.best_step([row for row in rows if row["step"] <= step]))
    assert all(now in (before, step) for before, now, step in zip(kept, kept[1:], STEPS[1:], strict=False))
