"""Stage 6, training: teach the U-Net; step loss, held-out loss, samples."""

import shutil
from dataclasses import asdict

from torch import Tensor

from dovetail.config import Training
from dovetail.core import trends
from dovetail.edges import machine, pixels, plots, shapes, tensors
from dovetail.edges.folders import Artifact, Desk, write_bytes, write_json, write_rows
from dovetail.edges.models import Models
from dovetail.engines import learner, material, painter
from dovetail.errors import BadInputError
from dovetail.records import Hints, LatentRow

SAMPLES, SAMPLE_STEPS, SAMPLE_SEED = 6, 20, 300


def train(latents: Artifact, models: Models, hints: Hints, config: Training, desk: Desk) -> None:
    """Latents -> `weights.safetensors` (averaged), the curve, sample grids at fixed seeds, a loss plot."""
    rate = _rate(config, hints)
    rows = latents.records(LatentRow)
    pictures = material.read_material(latents)
    if not pictures.train:
        raise BadInputError(
            "no picture is left to learn from", do="add pictures, or lower [buildout] test_share and validation_share"
        )
    prompts, side = _sample_prompts(rows), _side(pictures)

    def sample(step: int) -> None:
        orders = [painter.Order(prompt=p, seed=SAMPLE_SEED + i) for i, p in enumerate(prompts)]
        painted = painter.paint(models, orders, steps=SAMPLE_STEPS, guidance_scale=hints.guidance_scale, side=side)
        write_bytes(desk.folder / "samples" / f"step-{step:07d}.png", pixels.png(pixels.grid(painted, len(painted))))
        models.forget("vae", *(() if models.text_taught else models.encoders))  # until the next grid: they are read again

    if not (desk.folder / "samples" / f"step-{0:07d}.png").exists():
        sample(0)
    taught = learner.teach(models, pictures, config, rate, desk.folder / "checkpoints", desk.show, sample)
    step, weights = _published(taught, config, desk)
    trend, gain = trends.trend(taught.curve), trends.change(taught.curve, step)
    outcome = trends.outcome(taught.curve, taught.steps, taught.planned, step, config.early_stop)
    desk.show.say(outcome)
    if trend:
        desk.show.say(f"After the last step: {trend.sentence[0].lower()}{trend.sentence[1:]}")
    write_rows(desk.folder / "curve.jsonl", taught.curve)
    write_bytes(desk.folder / "loss.png", plots.loss_curves(taught.curve, trends.lines(taught.curve)))
    write_json(
        desk.folder / "training.json",
        {
            "method": config.method, "learning_rate": rate, "steps": taught.steps, "weights_digest": tensors.digest(weights),
            "placeholder": config.placeholder if config.method == "textual_inversion" else None,
            "planned_steps": taught.planned, "best_step": taught.best[0] if taught.best else None, "published_step": step,
            "ended": "early" if taught.steps < taught.planned else "as planned", "outcome": outcome,
            "change": asdict(gain) if gain else None, "trend": asdict(trend) if trend else None,
            "events": [f"step {row['step']}: {row['event']}" for row in taught.curve if "event" in row],
            "pictures_seen": taught.steps * config.batch_size * config.gradient_accumulation_steps,
            "train_pictures": len(pictures.train), "validation_pictures": len(pictures.validation),
            "rehearsal_pictures": len(pictures.rehearsal), "sample_prompts": prompts,
        },
    )  # fmt: skip
    write_json(desk.run.root / "pace.json", _told(taught.pace, models, pictures, config))
    shutil.rmtree(desk.folder / "checkpoints")


def _told(pace: learner.Pace, models: Models, pictures: material.Material, config: Training) -> dict[str, object]:
    """How fast it went, beside the artifact: the same training on another day is the same artifact."""
    item = pictures.train[0]
    latents, states = item.still(1.0), pictures.states(item.caption)
    tflop = shapes.arithmetic(models.unet, (1, *latents.shape), (1, *states.shape)).tflop
    if config.method != "full":
        tflop *= 2 / 3  # no gradients of the frozen weights
    speed = pace.pictures / max(pace.seconds, 1e-9)
    return {
        "pictures_a_second": speed, "share_of_peak": speed * tflop / machine.peak_tflops(models.device),
        "device": machine.name(models.device), **asdict(pace),
    }  # fmt: skip


def _published(taught: learner.Taught, config: Training, desk: Desk) -> tuple[int, dict[str, Tensor]]:
    """Write the weights that were asked for and, where they differ, the others beside them; returns step and weights."""
    kinds = {"last": (taught.steps, taught.weights)} | ({"best": taught.best} if taught.best else {})
    chosen = config.published if config.published in kinds else "last"
    for kind, (step, weights) in kinds.items():
        if kind == chosen or step != kinds[chosen][0]:
            name = "weights" if kind == chosen else kind
            write_bytes(desk.folder / f"{name}.safetensors", tensors.to_bytes(weights))
    return kinds[chosen]


def _rate(config: Training, hints: Hints) -> float:
    """The learning rate asked for, else the one that came with the base."""
    return config.learning_rate or (hints.learning_rate_full if config.method == "full" else hints.learning_rate_lora)


def _side(pictures: material.Material) -> int | None:
    """Of the latents, where all that is learnt from are squares of one size: samples then have it too."""
    shapes = {item.moments.shape[2:] for item in pictures.train if item.moments is not None}
    height, width = next(iter(shapes)) if len(shapes) == 1 else (0, 1)
    return height if height == width else None


def _sample_prompts(rows: list[LatentRow]) -> list[str]:
    """Captions of the validation split, else of the training split: different ones, in a fixed order."""
    chosen = [r for r in rows if r.split == "validation"] or [r for r in rows if r.split == "train"]
    return sorted({r.caption for r in chosen})[:SAMPLES]
