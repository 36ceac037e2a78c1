"""`dovetail plan`: what a run takes on this machine, by a probe of two steps, and on GPUs that can be had, by arithmetic."""

import itertools
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail import bases, training_plan
from dovetail.config import Config, PlannedTraining
from dovetail.core import costs
from dovetail.core.costs import Load, Thrift
from dovetail.errors import TrainingError
from dovetail.records import Gpu

if TYPE_CHECKING:
    from dovetail.edges.folders import Run, Showing
    from dovetail.edges.models import Models

LONGEST = 12  # steps of a probe at most
LEAST_SECONDS = 2.0  # a probe of small steps goes on for so long
GPUS = Path(__file__).parent / "gpus.toml"
SD_2 = dict(
    sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)  # fmt: skip


class _EnoughError(Exception):
    """The probe has seen enough."""


def gpus(file: str | None) -> list[Gpu]:
    """The table that is named, else the user's own, else the one that came along."""
    from dovetail.edges import settings
    from dovetail.edges.registry import default_root

    own = default_root().parent / "gpus.toml"
    return settings.gpus(Path(file) if file else own if own.exists() else GPUS)


def lines(config: Config, run: "Run", offers: list[Gpu], show: "Showing") -> list[str]:
    """The plan, ready to be printed. Raises TrainingError where not even one picture fits into this machine's memory."""
    from dovetail.edges import machine

    models = bases.load(bases.find(config.base))
    side = config.processing.resolution or models.resolution
    load, thrift = _load(models, config, side), _thrift(config)
    pictures = _pictures(config)
    validation = round(pictures * config.buildout.validation_share)
    learned = pictures - validation - round(pictures * config.buildout.test_share)
    training = config.training.planned(learned, validation)
    steps = training.steps
    most = "" if config.training.steps else "at most "
    what = "full fine-tune" if config.training.method == "full" else config.training.method
    told = [
        f"{what} of {config.base}: {most}{steps:,} steps of {load.pictures} at {side} x {side} pixels, "
        f"{load.trained / 1e6:.1f} M weights learn"
    ]
    seconds = probe(models, config, side, show)
    used, whole = machine.peak_bytes(models.device), machine.memory_bytes(models.device)
    told += [
        f"here, on {machine.name(models.device)} (probed):",
        f"  time    {costs.span(steps * seconds)}: {seconds:.3g} s a step, {load.pictures / seconds:.3g} pictures a second",
        f"  memory  {costs.size(used)} of {costs.size(whole)}",
        _disk(config, training, run, models, load, side, pictures),
        f"  work    {load.tflop * load.pictures * steps / 1000:.3g} PFLOP, {load.tflop / seconds * load.pictures:.3g} TFLOP/s",
        "on GPUs for hire (arithmetic; a trainer as good as the best published one, prices from a table you can edit):",
    ]
    return told + [_offer(load, thrift, steps, gpu) for gpu in offers]


def _offer(load: Load, asked: Thrift, steps: int, gpu: Gpu) -> str:
    way = costs.thrifty_enough(load, asked, gpu)
    needed = f"{costs.size(costs.memory(load, way or asked)):>9} of {gpu.memory_gib:g} GiB"
    if way is None:
        return f'  {gpu.name:<12} {needed}  does not fit: take method = "lora", or a lower resolution'
    hours, dollars = costs.on_gpu(load, way, steps, gpu)
    change = "" if way == asked else f"  with {way.words()}"
    return f"  {gpu.name:<12} {needed}  {costs.span(hours * 3600):>8}  ${dollars:,.2f}{change}"


def from_scratch(offers: list[Gpu]) -> list[str]:
    """What it takes to teach a Stable Diffusion anew, beside what others say they spent."""
    from dovetail.edges import shapes

    unet = shapes.on_meta(SD_2)
    flops = [shapes.arithmetic(unet, (1, 4, side // 8, side // 8), (1, 77, 1024)).tflop for side, _ in costs.MOSAIC_PICTURES]
    told = ["Published:", *(f"  {name}: {spent}" for name, spent in costs.PUBLISHED)]
    told += [
        "MosaicML, Stable Diffusion 2 base on cached latents, A100s at $2 an hour (ours beside it):",
        f"  {'GPUs':>4}  {'256 px, pictures/s':>20}  {'512 px, pictures/s':>20}  {'days':>16}  {'dollars':>20}",
    ]
    for count, row in costs.MOSAIC.items():
        ours = costs.mosaic_estimate(flops, count)
        pairs = [f"{a:,.0f} ({b:,.0f})" if b > 100 else f"{a:.1f} ({b:.1f})" for a, b in zip(row, ours, strict=True)]
        told.append(f"  {count:>4}  {pairs[0]:>20}  {pairs[1]:>20}  {pairs[2]:>16}  {pairs[3]:>20}")
    told.append("The same schedule on 64 of the GPUs in the table:")
    for gpu in offers:
        hours, dollars = costs.from_scratch(flops, gpu, 64)
        told.append(f"  {gpu.name:<12} {hours:>9,.0f} GPU-hours  {costs.span(hours / 64 * 3600):>9}  ${dollars:,.0f}")
    return told


def probe(models: "Models", config: Config, side: int, show: "Showing") -> float:
    """Seconds of a step, the first one left out: real steps of the learner on made-up latents."""
    from dovetail.engines import learner

    times = [time.perf_counter()]

    def enough(step: int, numbers: dict[str, float]) -> None:
        times.append(time.perf_counter())
        if step >= 2 and (times[-1] - times[1] > LEAST_SECONDS or step >= LONGEST):
            raise _EnoughError

    training = config.training.model_copy(update={"steps": LONGEST + 1, "rehearsal_share": 0.0, "warmup_steps": 0})
    with tempfile.TemporaryDirectory() as folder:
        try:
            learner.teach(models, _made_up(models, config, side), training, 1e-6, Path(folder), show, lambda step: None, enough)
        except _EnoughError:
            pass
        except TrainingError as error:
            raise TrainingError(f"it does not fit here: {error}") from error
    return statistics.median(b - a for a, b in itertools.pairwise(times[1:]))


def _made_up(models: "Models", config: Config, side: int) -> Any:
    """Latents and text states of the right shape, as many as a step takes."""
    import torch

    from dovetail.engines.material import Item, Material

    small = side // models.pixels_per_latent
    moments = torch.zeros(1, 2 * models.vae_shape["latent_channels"], small, small)
    count = config.training.batch_size * config.training.gradient_accumulation_steps
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
    items = [Item(name=str(i), caption="", moments=moments, sizes=sizes) for i in range(count)]
    words = models.embed([""])[0].cpu()
    pooled = (lambda caption: models.pooled([""])[0].cpu()) if models.is_xl else None
    return Material(train=items, rehearsal=[], validation=[], test=[], states=lambda caption: words, pooled=pooled)


def _load(models: "Models", config: Config, side: int) -> Load:
    """What a step takes, from the shapes of the U-Net alone."""
    from dovetail.edges import adapters, shapes

    training, small = config.training, side // models.pixels_per_latent
    words = models.embed([""]).shape
    told = shapes.arithmetic(models.unet, (1, models.unet.config.in_channels, small, small), tuple(words))
    own = sum(p.numel() for p in models.unet.parameters())
    others = sum(p.numel() for part in _frozen(models) for p in part.parameters())
    load = Load(
        tflop=told.tflop, pictures=training.batch_size * training.gradient_accumulation_steps, micro=training.batch_size,
        trained=own, frozen=others, kept=told.kept, recomputed=told.recomputed,
    )  # fmt: skip
    if training.method == "full":
        return load
    # No gradients of the frozen weights: two of the three products of each layer.
    if training.method == "textual_inversion":
        small_ones = training.placeholder_vectors * sum(int(e.config.hidden_size) for e in _encoders(models))
    else:
        small_ones = adapters.count(models.unet.config, training.method, training.lora_rank, training.lora_alpha)
    return replace(load, trained=small_ones, frozen=own + others, tflop=told.tflop * 2 / 3)


def _frozen(models: "Models") -> list[Any]:
    return [models.vae, *_encoders(models)]


def _encoders(models: "Models") -> list[Any]:
    return [getattr(models, part) for part in models.encoders]


def _thrift(config: Config) -> Thrift:
    training = config.training
    return Thrift(
        gradient_checkpointing=training.gradient_checkpointing, use_8bit_adam=training.use_8bit_adam,
        ema_on_cpu=training.ema_on_cpu, ema=training.ema_decay > 0, fused_backward=training.fused_backward,
        one_at_a_time=training.batch_size == 1,
    )  # fmt: skip


def _pictures(config: Config) -> int:
    """Pictures in the folder, 0 where none is named."""
    from dovetail.edges import listings, pixels

    folder = config.sourcing.folder
    return len(listings.picture_files(Path(folder), frozenset(pixels.SUFFIXES))) if folder else 0


def _disk(config: Config, training: PlannedTraining, run: "Run", models: "Models", load: Load, side: int, pictures: int) -> str:
    """Bytes that the run will leave, beside what is free."""
    processing = config.processing
    moved = training_plan.moved_views(pictures) if processing.moved_views is None else processing.moved_views
    views = ((1 if processing.centre_crop else 4) + moved) * (2 if processing.random_flip else 1)
    latents = pictures * views * 2 * models.vae_shape["latent_channels"] * (side // models.pixels_per_latent) ** 2 * 4
    checkpoint = load.trained * (16 if training.ema_decay else 12)
    kept = training.checkpoints_kept or -(-training.steps // training.checkpoint_every)
    weights = 4 * sum(p.numel() for p in models.unet.parameters()) + 4 * load.frozen
    needed = latents + checkpoint * (kept + 1) + 2 * 4 * load.trained + weights
    there = next(p for p in (run.root.resolve(), *run.root.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    short = "; that is too little: keep fewer checkpoints (checkpoints_kept)" if needed > free else ""
    of = f" for {pictures:,} pictures" if pictures else ", without pictures"
    return f"  disk    {costs.size(needed)}{of}; {costs.size(free)} free{short}"
