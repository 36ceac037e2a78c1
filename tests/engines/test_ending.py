"""A training ends when it has learned: real small trainings that overfit, and what is left of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schooling
import torch
from schooling import CPU, config, states
from tiny import TOKENS, WIDTH

from dovetail import training_plan as plans
from dovetail.core import trends
from dovetail.edges import adapters, tensors
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import learner, objective
from dovetail.engines.material import Item, Material

RATE = 1e-2
KEYS: dict[str, Any] = {
    "steps": 24, "held_out_every": 2, "checkpoint_every": 3, "sample_every": 100, "early_stop": 2, "lr_scheduler": "constant",
    "warmup_steps": 0, "rehearsal_share": 0.0, "caption_dropout": 0.0, "ema_decay": 0.5,
}  # fmt: skip


def _teach(base: Path, folder: Path, material: Material, **more: Any) -> learner.Taught:
    settings = config(**KEYS | more)
    return learner.teach(Models(base, CPU), material, settings, RATE, folder, Show(quiet=True), lambda step: None)


Measure = Callable[..., dict[str, list[float]]]


@pytest.fixture
def drift(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Held-out losses that grow with what training has changed: none is below the base's."""
    seen = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([5, 900]),
        torch.zeros(2, TOKENS, WIDTH),
    )
    with torch.no_grad():
        before = Models(tiny_base, CPU).unet(*seen).sample

    @torch.no_grad()
    def losses(unet: Any, goal: Any, items: list[Item], material: Any) -> dict[str, list[float]]:
        moved = float((unet(*seen).sample - before).square().mean())
        return {item.name: [1 + moved + 0.001 * n] * objective.BANDS for n, item in enumerate(items)}

    monkeypatch.setattr(learner, "held_out_losses", losses)
    return losses


def test_it_ends_early_and_keeps_the_weights_that_were_measured_as_the_best(
    tiny_base: Path, tmp_path: Path, material: Material, drift: Measure
) -> None:
    taught = _teach(tiny_base, tmp_path, material)
    rows = {row["step"]: row["losses"] for row in taught.curve if row.get("set") == "validation"}
    assert taught.best and taught.best[0] == trends.best_step(taught.curve)
    assert taught.steps == taught.best[0] + 2 * 2 == max(rows) < taught.planned == 24
    models = Models(tiny_base, CPU)
    models.unet.load_state_dict(models.unet.state_dict() | taught.best[1])
    again = drift(models.unet, None, material.validation, None)
    assert again == {name: pytest.approx(losses, abs=1e-5) for name, losses in rows[taught.best[0]].items()}
    learned = [row["step"] for row in taught.curve if row.get("set") == "train"]
    assert learned[0] == 0 and learned[-1] == taught.steps and len(learned) < len(rows)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_cut_off_just_before_it_ends_it_ends_at_the_same_step_with_the_same_bits(
    tiny_base: Path, tmp_path: Path, material: Material, drift: Measure, method: str
) -> None:
    whole = _teach(tiny_base, tmp_path / "whole", material, method=method)
    assert whole.best and whole.steps < whole.planned

    def fall_over(step: int, numbers: dict[str, float]) -> None:
        if step == whole.steps - 1:
            raise RuntimeError("the power went")

    settings = config(**KEYS | {"method": method})
    with pytest.raises(RuntimeError, match="the power went"):
        learner.teach(
            Models(tiny_base, CPU), material, settings, RATE, tmp_path / "cut", Show(quiet=True), lambda step: None, fall_over
        )
    again = _teach(tiny_base, tmp_path / "cut", material, method=method)
    assert again.steps == whole.steps and again.best and again.best[0] == whole.best[0]
    assert tensors.digest(again.best[1]) == tensors.digest(whole.best[1]) and again.curve == whole.curve
    once_more = _teach(tiny_base, tmp_path / "cut", material, method=method)
    assert once_more.steps == whole.steps and once_more.pace.steps == 0, "what has ended is not gone on with"


def test_where_early_stop_is_off_all_steps_are_done(
    tiny_base: Path, tmp_path: Path, material: Material, drift: Measure
) -> None:
    taught = _teach(tiny_base, tmp_path, material, early_stop=0)
    assert taught.steps == 24 and taught.best and 0 < taught.best[0] < 24


def test_without_validation_pictures_the_plan_is_followed(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    alone = Material(train=material.train, rehearsal=[], validation=[], test=[], states=states)
    taught = _teach(tiny_base, tmp_path, alone, steps=None, held_out_every=None, batch_size=192)
    assert taught.steps == taught.planned == plans.steps(5, 192) and taught.best is None


def test_one_picture_is_enough_and_is_counted_once(tiny_base: Path, tmp_path: Path) -> None:
    one = schooling.items("train", 1)
    twice = Material(train=[*one, *one], rehearsal=[], validation=[], test=[], states=states)
    taught = _teach(tiny_base, tmp_path, twice, steps=None, batch_size=192)
    assert taught.steps == plans.steps(1, 192) and all(torch.isfinite(w).all() for w in taught.weights.values())


def test_the_few_step_version_is_found_where_there_is_one(tiny_base: Path, tmp_path: Path) -> None:
    from dovetail import bases

    assert adapters.has_few_steps(bases.EMBEDDED) and not adapters.has_few_steps(tiny_base)
    assert (bases.EMBEDDED / bases.FEW_STEP_FILE).is_file()
