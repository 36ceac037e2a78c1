"""A step within the backward pass: the same weights, never two gradients at once, and nothing spoilt by a bad loss."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from schooling import CPU, config, material, teach
from torch import Tensor

from dovetail.config import Training
from dovetail.edges import tensors
from dovetail.edges.models import Models
from dovetail.engines import learner, optimizers, preparation, recomputing
from dovetail.engines.fused import kernels
from dovetail.errors import TrainingError

FUSED: dict[str, Any] = {"fused_backward": True, "max_grad_norm": None}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("more", [{}, {"batch_size": 2, "gradient_accumulation_steps": 2, "merge_micro_batches": False}])
def test_the_weights_are_those_of_a_step_after_the_backward_pass(tiny_base: Path, tmp_path: Path, method, more) -> None:
    plain, curve = teach(tiny_base, tmp_path / "plain", material(), config(method=method, max_grad_norm=None, **more))
    fused, same = teach(tiny_base, tmp_path / "fused", material(), config(method=method, **FUSED, **more))
    assert tensors.digest(fused) == tensors.digest(plain)
    norms, others = ([row["gradient_norm"] for row in rows if "gradient_norm" in row] for rows in (curve, same))
    assert norms == pytest.approx(others, rel=1e-4) and all(n > 0 for n in norms)


def test_no_two_gradients_are_there_at_once(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[int] = []
    update = optimizers.Within._update
    every: list[torch.nn.Parameter] = []
    begin = optimizers.Within.__init__

    def watched(self: Any, parameters: list[torch.nn.Parameter], optimizer: Any) -> None:
        every.extend(parameters)
        begin(self, parameters, optimizer)

    def counted(self: Any, parameter: Tensor) -> None:
        there.append(sum(p.grad is not None for p in every))
        update(self, parameter)

    monkeypatch.setattr(optimizers.Within, "__init__", watched)
    monkeypatch.setattr(optimizers.Within, "_update", counted)
    teach(tiny_base, tmp_path, material(), config(steps=2, **FUSED))
    assert len(there) == 2 * len(every) > 100 and set(there) == {1}


def test_a_loss_that_is_no_number_spoils_no_weight(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, models = learner.training_losses, Models(tiny_base, CPU)
    seen: list[dict[str, Tensor]] = []

    def poisoned(goal: Any, unet: Any, rows: Any, settings: Training) -> Tensor:
        seen.append({n: p.detach().clone() for n, p in models.unet.named_parameters()})
        return losses(goal, unet, rows, settings) * (math.nan if len(seen) == 3 else 1.0)

    monkeypatch.setattr(learner, "training_losses", poisoned)
    with pytest.raises(TrainingError, match="the loss is not a number at step 3"):
        learner.teach(models, material(), config(**FUSED), 2e-3, tmp_path, _quiet(), lambda step: None)
    now = dict(models.unet.named_parameters())
    assert all(torch.equal(now[n], before) for n, before in seen[2].items())
    assert any(not torch.equal(seen[2][n], before) for n, before in seen[0].items())


def _quiet() -> Any:
    from dovetail.edges.console import Show

    return Show(quiet=True)


def test_it_goes_without_clipping_only() -> None:
    with pytest.raises(ValueError, match="fused_backward cannot clip"):
        Training(fused_backward=True)
    assert Training(max_grad_norm=None).max_grad_norm is None


@pytest.mark.parametrize("more", [{}, {"batch_size": 2, "gradient_accumulation_steps": 2, "merge_micro_batches": False}])
@pytest.mark.parametrize("most", [0.5, None])
@pytest.mark.parametrize("compiler", [True, False], ids=["C", "no C"])
def test_gradients_that_wait_as_bf16_are_the_same_numbers(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], most: float | None, compiler: bool
) -> None:
    if not compiler:
        monkeypatch.setattr(optimizers.kernels, "there", lambda: False)
    asked = config(mixed_precision="bf16", max_grad_norm=most, **more)
    with monkeypatch.context() as patch:
        patch.setattr(optimizers, "packed", lambda *_: None)
        plain, curve = teach(tiny_base, tmp_path / "plain", material(), asked)
    waited: list[int] = []
    step = optimizers.Packed.step

    def watched(self: optimizers.Packed, share: float | None) -> None:
        assert all(p.grad is None for p in self.kept)
        waited.append(sum(g.nbytes for g in self.kept.values()))
        step(self, share)

    monkeypatch.setattr(optimizers.Packed, "step", watched)
    monkeypatch.setattr(optimizers.Packed, "CHUNK", 5_000)
    monkeypatch.setattr(preparation.machine, "little_bytes", lambda device: 0)
    packed, same = teach(tiny_base, tmp_path / "packed", material(), asked)
    assert tensors.digest(packed) == tensors.digest(plain) and same == curve
    weights = 4 * sum(p.numel() for p in Models(tiny_base, CPU).unet.parameters())
    assert len(waited) == 6 and all(0.5 * weights < n < 0.55 * weights or (more and n == weights) for n in waited)


@pytest.mark.parametrize("held, given_back", [(2**50, True), (0, False)])
def test_memory_goes_back_only_where_more_is_held_than_gradients_want(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, given_back: bool
) -> None:
    back, told = list[int](), iter(range(10**9))
    monkeypatch.setattr(preparation.machine, "little_bytes", lambda device: 0)
    monkeypatch.setattr(optimizers.machine, "held_bytes", lambda: held and 2**30 * next(told))
    monkeypatch.setattr(optimizers.machine, "give_memory_back", lambda: back.append(1))
    teach(tiny_base, tmp_path, material(), config(mixed_precision="bf16", steps=2, gradient_checkpointing=True))
    assert (len(back) > 10) == given_back


@pytest.mark.skipif(not kernels.there(), reason="no C compiler")
def test_a_training_that_goes_back_a_picture_at_a_time_learns_the_same(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's gradients then come in parts, and are one bf16 gradient before the next layer's come."""
    monkeypatch.setattr(preparation.machine, "little_bytes", lambda device: 0)
    monkeypatch.setattr(preparation, "SPARE", 0)
    asked = config(mixed_precision="bf16", gradient_checkpointing=True, max_grad_norm=0.5)
    whole, curve = teach(tiny_base, tmp_path / "whole", material(), asked)
    parts: list[torch.nn.Module] = []
    told = optimizers.Packed.parts

    def watched(self: optimizers.Packed, layer: torch.nn.Module) -> Any:
        assert all(self.kept[p].dtype == torch.bfloat16 for p in self.cast if p in self.kept)
        parts.append(layer)
        return told(self, layer)

    monkeypatch.setattr(optimizers.Packed, "parts", watched)
    monkeypatch.setattr(recomputing, "PLACES", 1)
    mine, same = teach(tiny_base, tmp_path / "parts", material(), asked)
    assert {type(layer).__name__ for layer in parts} == {"ResnetBlock2D", "Transformer2DModel"}
    apart = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(same, curve, strict=True) if "loss" in b]
    assert apart and max(apart) < 0.01
    moved = sum(float((mine[n] - w).square().sum()) for n, w in whole.items())
    size = sum(float(w.square().sum()) for w in whole.values())
    assert 0 < moved < 1e-4 * size
