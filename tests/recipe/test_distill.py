"""The recipe's lessons and its few-step distillation, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from tiny import TOKENS, WIDTH

from dovetail.config import Training
from dovetail.edges.models import Models
from dovetail.engines import learner
from dovetail.engines.material import Item, Material
from recipes.embedded_base import distill, latents, train_unet

CPU = torch.device("cpu")


@pytest.fixture
def models(tiny_base: Path) -> Models:
    return Models(tiny_base, CPU)


def test_a_step_of_a_path_is_the_ddim_step_from_its_point_to_the_next(models: Models) -> None:
    points = torch.randn(2, distill.STEPS + 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler = models.scheduler()
    scheduler.set_timesteps(distill.STEPS)
    steps = distill.Steps(points, ["a cat", "a dog"], scheduler.alphas_cumprod)
    assert len(steps) == 2 * distill.STEPS and steps.timesteps == scheduler.timesteps.tolist()
    for k, item in enumerate(steps[: distill.STEPS]):
        a = scheduler.alphas_cumprod[item.timestep]
        now = a.sqrt() * item.latents + (1 - a).sqrt() * item.noise
        assert torch.allclose(now, points[0, k], atol=1e-4)
        v = a.sqrt() * item.noise - (1 - a).sqrt() * item.latents
        then = scheduler.step(v, torch.tensor(item.timestep), now, return_dict=False)[0]
        assert torch.allclose(then, points[0, k + 1], atol=1e-4)


def test_the_teachers_path_begins_in_noise_and_ends_in_what_it_paints(models: Models) -> None:
    walked = distill.walk(models, ["a cat", "a dog on red"], first=4)
    assert walked.shape == (2, distill.STEPS + 1, 4, 8, 8) and torch.isfinite(walked).all()
    orders = [distill.painter.Order(prompt=p, seed=distill.SEED + 4 + i) for i, p in enumerate(["a cat", "a dog on red"])]
    painted = distill.painter.paint_latents(models, orders, steps=distill.TEACHER_STEPS, guidance_scale=distill.GUIDANCE)
    assert (walked[:, -1].float() - painted).abs().mean() < 0.1 * painted.abs().mean()  # the teacher walks in bf16
    noise = distill.painter.start_noise(distill.SEED + 4, 4, 8, 8)[0]
    assert torch.allclose(walked[0, 0].float(), noise, atol=2e-3)


def test_the_student_comes_nearer_to_its_teacher(models: Models, tmp_path: Path) -> None:
    captions = ["a cat", "a dog", "a house", "a tree"]
    alphas = models.scheduler().alphas_cumprod
    states = {c: models.embed([c])[0] for c in captions}
    points = distill.walk(models, captions, first=0)
    steps = distill.Steps(points, captions, alphas)
    material = Material(train=steps, rehearsal=[], validation=[], test=[], states=states.__getitem__)
    settings = Training(
        steps=60, batch_size=8, caption_dropout=0, rehearsal_share=0, ema_decay=0.5, mixed_precision="no", held_out_every=60,
        sample_every=60, checkpoint_every=60, warmup_steps=2,
    )  # fmt: skip
    diary = train_unet.Diary(tmp_path / "diary.jsonl", every=20)
    curve = learner.teach(models, material, settings, 3e-3, tmp_path / "checkpoints", diary, lambda step: None).curve
    losses = [row["loss"] for row in curve if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_given_noise_and_timestep_are_used_and_not_drawn(models: Models, tmp_path: Path) -> None:
    """Two trainings that differ in the seed alone see the same when nothing is left to chance."""
    clean, noise = torch.zeros(4, 8, 8), torch.ones(4, 8, 8)
    items = [Item(name="x", caption="a cat", moments=None, latents=clean, noise=noise, timestep=749)]
    material = Material(train=items, rehearsal=[], validation=[], test=[], states=lambda caption: torch.zeros(TOKENS, WIDTH))
    found = []
    for seed in (1, 2):
        settings = Training(
            steps=1, batch_size=1, caption_dropout=0, rehearsal_share=0, mixed_precision="no", seed=seed, warmup_steps=0
        )
        fresh = Models(models.folder, CPU)
        diary = train_unet.Diary(tmp_path / f"diary-{seed}.jsonl")
        found.append(
            learner.teach(fresh, material, settings, 1e-3, tmp_path / str(seed), diary, lambda step: None).curve[0]["loss"]
        )
    assert found[0] == found[1]


def test_lessons_are_read_by_place_and_in_slices() -> None:
    lessons = latents.Lessons(torch.arange(6.0).view(3, 2, 1, 1).half(), ["a", "b", "c"], first=10)
    assert len(lessons) == 3 and [item.caption for item in lessons[1:]] == ["b", "c"]
    assert lessons[2].name == "scene 12" and lessons[2].latents.dtype == torch.float32
    with pytest.raises(IndexError):
        lessons[3]
    states = latents.States(torch.arange(4.0).view(2, 1, 2).half(), ["", "a"])
    assert states("a").tolist() == [[2.0, 3.0]] and states("").dtype == torch.float32


def test_the_diary_counts_the_minutes_of_all_sittings(tmp_path: Path) -> None:
    file = tmp_path / "unet.jsonl"
    for done in (0, 4):
        with train_unet.Diary(file, every=2).bar("training", 8, done=done) as advance:
            for _ in range(4):
                advance(1, "loss 0.5")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8] and rows[-1]["left"] == 0
    assert rows[-1]["minutes"] == pytest.approx(sum(row["seconds"] for row in rows) / 60, abs=0.01)
