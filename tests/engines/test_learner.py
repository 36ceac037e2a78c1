"""The learner on a tiny U-Net: it learns, it resumes bit for bit, it says when it cannot go on."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from schooling import CPU, config, held_out, states, teach
from tiny import TOKENS, WIDTH
from torch import Tensor

from dovetail.config import Training
from dovetail.edges import shapes, tensors
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import checkpoints, learner, objective, stopwatch
from dovetail.engines import material as lessons
from dovetail.engines.material import Item, Material
from dovetail.errors import TrainingError

WEIGHTS, AVERAGED = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "unet_ema"))


@pytest.mark.parametrize(("method", "rate"), [("full", 3e-3), ("lora", 2e-2), ("dora", 2e-2), ("lokr", 2e-2)])
def test_a_few_pictures_are_learnt(tiny_base: Path, tmp_path: Path, material: Material, method: str, rate: float) -> None:
    settings = config(
        method=method, steps=40, held_out_every=40, sample_every=40, checkpoint_every=40, ema_decay=0.5, rehearsal_share=0
    )
    weights, curve = teach(tiny_base, tmp_path, material, settings, rate)
    before, after = held_out(curve, "train")
    assert after < 0.8 * before
    assert all(("lora" in name or "lokr" in name) == (method != "full") for name in weights)
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_the_published_weights_are_averaged_ones_and_differ_from_the_last(
    tiny_base: Path, tmp_path: Path, material: Material
) -> None:
    averaged, _ = teach(tiny_base, tmp_path / "a", material, config(ema_decay=0.9))
    found = checkpoints.latest(tmp_path / "a")
    assert found and all(torch.equal(found.files[AVERAGED][n], w) for n, w in averaged.items())
    assert any(not torch.equal(found.files[WEIGHTS][n], w) for n, w in averaged.items())
    plain, _ = teach(tiny_base, tmp_path / "b", material, config(ema_decay=0.0))
    last = checkpoints.latest(tmp_path / "b")
    assert last and AVERAGED not in last.files and all(torch.equal(last.files[WEIGHTS][n], w) for n, w in plain.items())
    assert all(torch.equal(last.files[WEIGHTS][n], found.files[WEIGHTS][n]) for n in plain)


def test_samples_are_painted_with_the_averaged_weights_in_place(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    models = Models(tiny_base, CPU)
    seen: list[Tensor] = []
    weights = learner.teach(
        models,
        material,
        config(),
        2e-3,
        tmp_path,
        Show(quiet=True),
        lambda step: seen.append(models.unet.conv_out.weight.clone()),
    ).weights
    assert torch.equal(seen[-1], weights["conv_out.weight"]) and not torch.equal(seen[0], seen[-1])


def test_accumulating_gives_the_steps_of_one_large_batch(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    start = {name: p.detach() for name, p in Models(tiny_base, CPU).unet.named_parameters()}
    large, _ = teach(tiny_base, tmp_path / "a", material, config(batch_size=4))
    small, _ = teach(
        tiny_base, tmp_path / "b", material, config(batch_size=1, gradient_accumulation_steps=4, merge_micro_batches=False)
    )
    moved = torch.cat([(large[n] - start[n]).flatten().abs() for n in large]).mean()
    apart = torch.cat([(large[n] - small[n]).flatten().abs() for n in large]).mean()
    assert moved > 1e-4 and apart < 0.01 * moved


def test_gradient_checkpointing_saves_memory_and_changes_nothing(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner.machine, "memory_bytes", lambda device: 0)  # as if there were little
    for method in ("full", "lora"):
        plain, _ = teach(tiny_base, tmp_path / method / "a", material, config(method=method, steps=2))
        thrifty, _ = teach(
            tiny_base, tmp_path / method / "b", material, config(method=method, steps=2, gradient_checkpointing=True)
        )
        for name, weight in plain.items():
            torch.testing.assert_close(thrifty[name], weight, atol=1e-5, rtol=1e-4)


def test_precisions_may_follow_one_another_in_one_process_and_half_still_learns(
    tiny_base: Path, tmp_path: Path, material: Material
) -> None:
    settings: dict[str, Any] = {
        "steps": 30,
        "held_out_every": 30,
        "checkpoint_every": 30,
        "sample_every": 30,
        "rehearsal_share": 0,
    }
    for precision in ("no", "bf16", "no"):
        weights, curve = teach(
            tiny_base,
            tmp_path / f"{precision}{len(list(tmp_path.iterdir()))}",
            material,
            config(mixed_precision=precision, **settings),
            3e-3,
        )
        before, after = held_out(curve, "train")
        assert after < before and all(w.dtype == torch.float32 for w in weights.values())


def test_rehearsal_takes_its_share_of_every_batch_and_none_where_there_is_none(material: Material) -> None:
    names = [item.name for item, _ in lessons.batch(material, config(batch_size=8, rehearsal_share=0.25), 0)]
    assert sum(n.startswith("rehearsal") for n in names) == 2 and len(names) == 8
    alone = Material(train=material.train, rehearsal=[], validation=[], test=[], states=states)
    assert all(item.name.startswith("train") for item, _ in lessons.batch(alone, config(batch_size=8), 0))


def test_held_out_losses_are_the_same_each_time_and_need_no_validation_pictures_to_train(
    tiny_base: Path, tmp_path: Path, material: Material
) -> None:
    models = Models(tiny_base, CPU)
    first, again = (
        objective.held_out_losses(models.unet, objective.Objective.of(models), material.validation, material) for _ in range(2)
    )
    assert first == again and all(len(v) == objective.BANDS for v in first.values())
    bare = Material(train=material.train, rehearsal=[], validation=[], test=[], states=states)
    _, curve = teach(tiny_base, tmp_path, bare, config(steps=2))
    assert [row for row in curve if "set" in row] == [] and curve[-1]["step"] == 2


def test_the_curve_is_plain_data_that_survives_json(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    _, curve = teach(tiny_base, tmp_path, material, config())
    assert json.loads(json.dumps(curve)) == curve
    assert [row["step"] for row in curve if row.get("set") == "validation"] == [0, 3, 6]


@pytest.mark.parametrize("more", [{"snr_gamma": 5.0}, {"noise_offset": 0.5}, {"input_perturbation": 0.5}])
def test_weighting_offset_and_perturbation_each_change_what_is_learnt(
    tiny_base: Path, tmp_path: Path, material: Material, more: dict[str, float]
) -> None:
    plain, _ = teach(tiny_base, tmp_path / "plain", material, config(steps=2))
    other, curve = teach(tiny_base, tmp_path / "other", material, config(steps=2, **more))
    assert any(not torch.equal(plain[name], other[name]) for name in plain)
    assert all(torch.isfinite(w).all() for w in other.values()) and all(r["loss"] > 0 for r in curve if "loss" in r)


def test_the_held_out_loss_knows_no_weighting_offset_or_perturbation(
    tiny_base: Path, tmp_path: Path, material: Material
) -> None:
    told = [
        teach(tiny_base, tmp_path / str(n), material, config(steps=1, held_out_every=1, **more))[1]
        for n, more in enumerate([{}, {"snr_gamma": 5.0, "noise_offset": 0.5, "input_perturbation": 0.5}])
    ]
    first = [next(row["losses"] for row in curve if row.get("set") == "validation") for curve in told]
    assert first[0] == first[1]


def test_micro_batches_that_are_merged_give_the_same_steps(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    keys: dict[str, Any] = {"batch_size": 1, "gradient_accumulation_steps": 4}
    start = {name: p.detach() for name, p in Models(tiny_base, CPU).unet.named_parameters()}
    apart, _ = teach(tiny_base, tmp_path / "a", material, config(merge_micro_batches=False, **keys))
    merged, _ = teach(tiny_base, tmp_path / "b", material, config(**keys))
    moved = torch.cat([(apart[n] - start[n]).flatten().abs() for n in start]).mean()
    assert moved > 1e-4 and torch.cat([(apart[n] - merged[n]).flatten().abs() for n in start]).mean() < 0.01 * moved


def test_when_memory_runs_out_the_same_batch_goes_through_in_smaller_parts(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(most: int) -> None:
        losses = learner.training_losses

        def fall_over(goal: Any, unet: Any, rows: Any, settings: Training) -> Tensor:
            if len(rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return losses(goal, unet, rows, settings)

        monkeypatch.setattr(learner, "training_losses", fall_over)

    keys: dict[str, Any] = {"batch_size": 4, "gradient_accumulation_steps": 2}
    small, _ = teach(
        tiny_base, tmp_path / "two", material, config(batch_size=2, gradient_accumulation_steps=4, merge_micro_batches=False)
    )
    narrow(2)
    halved, curve = teach(tiny_base, tmp_path / "halved", material, config(**keys))
    told = [row["event"] for row in curve if "event" in row]
    assert told == [f"out of memory: {n // 2} pictures a forward pass instead of {n}" for n in (8, 4)]
    assert tensors.digest(halved) == tensors.digest(small)
    narrow(0)
    with pytest.raises(TrainingError, match="out of memory at step 1 with 1 pictures a forward pass; turn on gradient_check"):
        teach(tiny_base, tmp_path / "none", material, config(**keys))


def test_pictures_of_several_shapes_share_a_step(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    tall = [Item(name=f"tall {n}", caption="tall", moments=torch.randn(1, 8, 12, 8)) for n in range(2)]
    mixed = Material(train=[*material.train, *tall], rehearsal=[], validation=[], test=[], states=states)
    weights, curve = teach(tiny_base, tmp_path, mixed, config(steps=4, rehearsal_share=0))
    assert all(torch.isfinite(w).all() for w in weights.values()) and curve[-1]["step"] == 4


def test_captions_of_any_length_share_a_step(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    def longer(caption: str) -> Tensor:
        return torch.cat([states(caption)] * (2 if caption.endswith(("1", "3")) else 1))

    mixed = Material(train=material.train, rehearsal=[], validation=material.validation, test=[], states=longer)
    weights, curve = teach(tiny_base, tmp_path, mixed, config(steps=3))
    assert all(torch.isfinite(w).all() for w in weights.values()) and curve[-1]["step"] == 3


def test_dream_moves_the_target_by_the_models_own_error(tiny_base: Path) -> None:
    models = Models(tiny_base, CPU)
    goal = objective.Objective.of(models)
    clean, noise = torch.randn(4, 8, 8), torch.randn(4, 8, 8)
    rows = [lessons.Row(latents=clean, noise=noise, mixed_in=noise, states=states("x"), timestep=t) for t in (50, 600)]

    class Knowing(torch.nn.Module):
        """Says the true v of what it sees, so there is no error to move by."""

        def forward(self, seen: Tensor, timesteps: Tensor, **_: Any) -> tuple[Tensor]:
            a = goal.alphas[timesteps].view(-1, 1, 1, 1)
            heard = (seen - a.sqrt() * clean) / (1 - a).sqrt()
            return (a.sqrt() * heard - (1 - a).sqrt() * clean,)

    torch.testing.assert_close(goal.losses(Knowing(), rows, dream=1.0), torch.zeros(2), atol=1e-4, rtol=0)
    plain = goal.losses(models.unet, rows)
    assert torch.allclose(goal.losses(models.unet, rows, dream=1e6), plain, rtol=1e-3), "a huge p moves nothing"
    assert not torch.allclose(goal.losses(models.unet, rows, dream=1.0), plain, rtol=1e-3)


def test_what_a_pass_keeps_is_told_from_shapes_and_recomputed_only_where_it_is_much(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(tiny_base, CPU)
    small, large = (
        shapes.activation_bytes(models.unet, torch.Size((n, 4, 8, 8)), torch.Size((n, TOKENS, WIDTH)), torch.float32)
        for n in (2, 4)
    )
    kept: dict[int, Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in models.unet.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    models.unet.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        models.unet(torch.randn(4, 4, 8, 8), torch.zeros(4).long(), torch.randn(4, TOKENS, WIDTH))
    assert large == pytest.approx(sum(t.untyped_storage().nbytes() for t in kept.values()), rel=0.1)
    assert small == pytest.approx(large / 2, rel=0.1)
    for memory, told in ((10**12, True), (0, False)):
        monkeypatch.setattr(learner.machine, "memory_bytes", lambda device, memory=memory: memory)
        _, curve = teach(
            tiny_base, tmp_path / str(memory), material, config(steps=1, lr_scheduler="constant", gradient_checkpointing=True)
        )
        assert any("not recomputed" in row.get("event", "") for row in curve) == told
        seen: list[bool] = []
        again = Models(tiny_base, CPU)
        settings = config(steps=2, lr_scheduler="constant", gradient_checkpointing=True)
        on_sample = lambda step, model=again.unet, seen=seen: seen.append(model.is_gradient_checkpointing)  # noqa: E731
        learner.teach(again, material, settings, 2e-3, tmp_path / str(memory), Show(quiet=True), on_sample)
        assert seen == [not told], "what was found out before a kill is found out again after it"


def test_the_seconds_of_a_step_are_told_apart(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What others do on this machine meanwhile does not count.
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=time.thread_time))
    settings = config(steps=3, batch_size=2, gradient_accumulation_steps=3)
    pace = learner.teach(Models(tiny_base, CPU), material, settings, 1e-3, tmp_path, Show(quiet=True), lambda step: None).pace
    assert set(pace.shares) == {"data", "forward", "backward", "optimizer", "sync"}
    assert sum(pace.shares.values()) == pytest.approx(1) and pace.shares["backward"] > pace.shares["data"]
    assert (pace.steps, pace.pictures) == (3, 18) and pace.seconds > 0 and pace.peak_bytes > 2**20


def test_attention_by_matrix_products_is_that_of_diffusers(tiny_base: Path) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    models = Models(tiny_base, CPU)
    seen = torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, TOKENS, WIDTH)
    ours = models.unet(*seen).sample
    models.unet.set_attn_processor(AttnProcessor2_0())
    torch.testing.assert_close(models.unet(*seen).sample, ours, atol=1e-5, rtol=1e-5)
