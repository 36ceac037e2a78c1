"""Stage 6, training: teach the U-Net; step loss, held-out loss, samples."""

import shutil

from dovetail.config import Training
from dovetail.edges import pixels, plots, tensors
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
    prompts = _sample_prompts(rows)

    def sample(step: int) -> None:
        orders = [painter.Order(prompt=p, seed=SAMPLE_SEED + i) for i, p in enumerate(prompts)]
        painted = painter.paint(models, orders, steps=SAMPLE_STEPS, guidance_scale=hints.guidance_scale)
        write_bytes(desk.folder / "samples" / f"step-{step:07d}.png", pixels.png(pixels.grid(painted, len(painted))))

    if not (desk.folder / "samples" / f"step-{0:07d}.png").exists():
        sample(0)
    weights, curve = learner.teach(models, pictures, config, rate, desk.folder / "checkpoints", desk.show, sample)
    write_bytes(desk.folder / "weights.safetensors", tensors.to_bytes(weights))
    write_rows(desk.folder / "curve.jsonl", curve)
    write_bytes(desk.folder / "loss.png", plots.loss_curves(curve))
    write_json(
        desk.folder / "training.json",
        {
            "method": config.method, "learning_rate": rate, "steps": config.steps, "weights_digest": tensors.digest(weights),
            "pictures_seen": config.steps * config.batch_size * config.gradient_accumulation_steps,
            "train_pictures": len(pictures.train), "validation_pictures": len(pictures.validation),
            "rehearsal_pictures": len(pictures.rehearsal), "sample_prompts": prompts,
        },
    )  # fmt: skip
    shutil.rmtree(desk.folder / "checkpoints")


def _rate(config: Training, hints: Hints) -> float:
    """The learning rate asked for, else the one that came with the base."""
    return config.learning_rate or (hints.learning_rate_full if config.method == "full" else hints.learning_rate_lora)


def _sample_prompts(rows: list[LatentRow]) -> list[str]:
    """Captions of the validation split, else of the training split: different ones, in a fixed order."""
    chosen = [r for r in rows if r.split == "validation"] or [r for r in rows if r.split == "train"]
    return sorted({r.caption for r in chosen})[:SAMPLES]
