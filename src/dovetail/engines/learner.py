"""The learner: one loop for full fine-tuning and LoRA, on cached latents, through accelerate; resumes bit for bit."""

import json
import math
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from dovetail.config import Training
from dovetail.core import diffusion, randomness, schedules
from dovetail.edges import folders, tensors
from dovetail.edges import models as model_edge
from dovetail.edges.models import Models
from dovetail.engines import checkpoints
from dovetail.errors import TrainingError
from dovetail.records import LatentRow

BANDS = 8  # fixed timesteps of a held-out loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A picture to learn from or to be tested on."""

    name: str  # what its noise, timestep, view and dropout are keyed by
    caption: str
    moments: Tensor | None  # (views, 2c, h, w); None where `latents` are given
    latents: Tensor | None = None  # (c, h, w), scaled
    noise: Tensor | None = None  # (c, h, w), where it is given and not drawn, as in a distillation
    timestep: int | None = None  # likewise

    def still(self, scaling: float) -> Tensor:
        """Scaled latents (c, h, w) with no chance in them: the mean of the first view."""
        if self.latents is not None:
            return self.latents
        assert self.moments is not None
        return self.moments[0].chunk(2)[0] * scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is learnt from, and what never is."""

    train: Sequence[Item]
    rehearsal: Sequence[Item]
    validation: Sequence[Item]
    test: Sequence[Item]
    states: Callable[[str], Tensor]  # caption -> (tokens, width)


def read_material(latents: folders.Artifact) -> Material:
    """What the processing stage left."""
    rows = latents.records(LatentRow)
    moments = tensors.read(latents.folder / "latents.safetensors")
    states = tensors.read(latents.folder / "captions.safetensors")["states"]
    numbers = {caption: i for i, caption in enumerate(json.loads((latents.folder / "captions.json").read_text()))}
    split = {
        name: [Item(name=r.item, caption=r.caption, moments=moments[r.item]) for r in rows if r.split == name]
        for name in ("train", "validation", "test")
    }
    rehearsal = []
    if (latents.folder / "rehearsal.json").exists():
        captions = json.loads((latents.folder / "rehearsal.json").read_text())["captions"]
        painted = tensors.read(latents.folder / "rehearsal.safetensors")["latents"]
        rehearsal = [
            Item(name=f"rehearsal {i}", caption=c, moments=None, latents=p)
            for i, (c, p) in enumerate(zip(captions, painted, strict=True))
        ]
    return Material(rehearsal=rehearsal, states=lambda caption: states[numbers[caption]], **split)


@dataclass(frozen=True, slots=True)
class Objective:
    """What the U-Net of one model is asked for."""

    alphas: Tensor
    prediction: diffusion.Prediction
    scaling: float
    device: torch.device

    @classmethod
    def of(cls, models: Models) -> "Objective":
        """Read from the model's own scheduler and VAE."""
        scheduler = models.scheduler()
        alphas, prediction = scheduler.alphas_cumprod.to(models.device), scheduler.config.prediction_type
        return cls(alphas, prediction, float(models.vae.config.scaling_factor), models.device)

    def losses(
        self, unet: torch.nn.Module, latents: Tensor, noise: Tensor, states: Tensor, timesteps: Tensor, mixed_in: Tensor
    ) -> Tensor:
        """Loss of each row, float32 (b,): the U-Net sees the noise `mixed_in` and is asked for `noise`, mostly the same."""
        latents, noise, states, timesteps, mixed_in = (x.to(self.device) for x in (latents, noise, states, timesteps, mixed_in))
        seen = diffusion.noisy(latents, mixed_in, timesteps, self.alphas)
        wanted = diffusion.target(latents, noise, timesteps, self.alphas, self.prediction)
        return diffusion.loss_per_sample(unet(seen, timesteps, encoder_hidden_states=states, return_dict=False)[0], wanted)


@dataclass(slots=True)
class Lessons:
    """The state of a training under way."""

    models: Models
    material: Material
    config: Training
    accelerator: Accelerator
    unet: torch.nn.Module
    optimizer: Any
    parameters: list[torch.nn.Parameter]
    names: list[str]
    average: list[Tensor]
    objective: Objective
    curve: list[dict[str, Any]] = field(default_factory=list)


def teach(
    models: Models,
    material: Material,
    config: Training,
    learning_rate: float,
    folder: Path,
    show: folders.Showing,
    on_sample: Callable[[int], None],
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train for `config.steps` optimizer steps; returns the averaged weights by name and the curve.

    `folder` holds the checkpoints; called again on the same folder after a kill, it goes on from the newest whole one
    and ends with the same weights. `on_sample(step)` is called with the averaged weights in place.
    Raises TrainingError where the loss is no number.
    """
    lessons = _prepare(models, material, config)
    first = _resume(lessons, folder)
    if first == 0:
        _hold_out(lessons, 0)
    times: deque[float] = deque([time.perf_counter()], maxlen=50)
    with show.bar("training", config.steps, done=first) as advance, _stop_flag() as stopped:
        for step in range(first, config.steps):
            rate = schedules.learning_rate(step, config.steps, learning_rate, config.warmup_steps, config.lr_scheduler)
            loss, norm = _step(lessons, step, rate)
            done = step + 1
            if done % 10 == 0 or done == config.steps:
                lessons.curve.append({"step": done, "loss": loss, "gradient_norm": norm, "learning_rate": rate})
            if done % config.held_out_every == 0 or done == config.steps:
                _hold_out(lessons, done)
            if (done % config.sample_every == 0 or done == config.steps) and lessons.accelerator.is_main_process:
                with averaged(lessons):
                    on_sample(done)
            if done % config.checkpoint_every == 0 or done == config.steps or stopped.is_set():
                _checkpoint(lessons, done, folder)
            times.append(time.perf_counter())
            advance(1, f"loss {loss:.3f}  {_speed(config, times)}")
            if stopped.is_set() and done < config.steps:
                raise KeyboardInterrupt
    return dict(zip(lessons.names, (a.cpu() for a in lessons.average), strict=True)), lessons.curve


def _speed(config: Training, times: Sequence[float]) -> str:
    """Pictures a second over the latest steps; a pause long ago does not count."""
    pictures = (len(times) - 1) * config.batch_size * config.gradient_accumulation_steps
    return f"{pictures / (times[-1] - times[0]):.0f} pictures/s"


def _prepare(models: Models, material: Material, config: Training) -> Lessons:
    unet = models.unet
    unet.requires_grad_(config.method == "full")
    if config.method == "lora":
        model_edge.add_lora(unet, config.lora_rank, config.lora_alpha, config.seed)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    named = [(n, p) for n, p in unet.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    precision = config.mixed_precision
    if precision == "fp16" and models.device.type == "cpu":
        warnings.warn("the CPU has no fp16 training: bf16 is used", stacklevel=2)
        precision = "bf16"
    # One process may train several times, each time in another precision; accelerate would keep the first.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision, cpu=models.device.type == "cpu")
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True)
    prepared, optimizer = accelerator.prepare(unet, optimizer)
    return Lessons(
        models=models, material=material, config=config, accelerator=accelerator, unet=prepared, optimizer=optimizer,
        parameters=parameters, names=[n for n, _ in named], average=[p.detach().clone() for p in parameters],
        objective=Objective.of(models),
    )  # fmt: skip


def _step(lessons: Lessons, step: int, rate: float) -> tuple[float, float]:
    """One optimizer step; returns the mean loss of its pictures and the gradient norm before clipping."""
    config, accelerator = lessons.config, lessons.accelerator
    batch = _batch(lessons.material, config, step)
    world, rank = accelerator.num_processes, accelerator.process_index
    mine = list(range(rank, len(batch), world))
    offsets = torch.rand(len(batch), generator=randomness.generator(config.seed, "timestep", step))
    order = torch.randperm(len(batch), generator=randomness.generator(config.seed, "bands", step))
    timesteps = diffusion.stratified_timesteps(offsets, len(lessons.objective.alphas))[order]
    lessons.unet.train()
    total = torch.zeros(())
    for first in range(0, len(mine), config.batch_size):
        rows = mine[first : first + config.batch_size]
        losses = _losses(lessons, [batch[i] for i in rows], timesteps[rows])
        accelerator.backward(losses.sum() * world / len(batch))
        total = total + losses.detach().sum().cpu()
    norm = accelerator.clip_grad_norm_(lessons.parameters, config.max_grad_norm)
    value, size = float(accelerator.reduce(total.to(lessons.models.device), "sum")) / len(batch), float(norm)
    if not math.isfinite(value) or not math.isfinite(size):
        raise TrainingError(f"the loss is not a number at step {step + 1}", do="lower [training] learning_rate and run again")
    for group in lessons.optimizer.param_groups:
        group["lr"] = rate
    lessons.optimizer.step()
    lessons.optimizer.zero_grad(set_to_none=True)
    decay = schedules.ema_decay(step, config.ema_decay)
    torch._foreach_lerp_(lessons.average, [p.detach() for p in lessons.parameters], 1 - decay)
    return value, size


def _batch(material: Material, config: Training, step: int) -> list[tuple[Item, int]]:
    """The (item, epoch) pairs of one optimizer step: its share of rehearsal, the rest from the training pictures."""
    size = config.batch_size * config.gradient_accumulation_steps
    rehearsed = round(size * config.rehearsal_share) if material.rehearsal else 0
    places = randomness.position(step, size - rehearsed, len(material.train), config.seed)
    chosen = [(material.train[i], epoch) for i, epoch in places]
    if rehearsed:
        again = randomness.position(step, rehearsed, len(material.rehearsal), config.seed + 1)
        chosen += [(material.rehearsal[i], epoch) for i, epoch in again]
    return chosen


def _losses(lessons: Lessons, rows: list[tuple[Item, int]], timesteps: Tensor) -> Tensor:
    """Loss of each row, float32 (b,); view, noise and caption dropout follow from (seed, picture, epoch)."""
    config, objective = lessons.config, lessons.objective
    latents, noise, seen, states = [], [], [], []
    pairs = zip(rows, timesteps.tolist(), strict=True)
    timesteps = torch.tensor([t if item.timestep is None else item.timestep for (item, _), t in pairs])
    for item, epoch in rows:
        chance = randomness.generator(config.seed, item.name, epoch)
        view, dropped = torch.rand(2, generator=chance).tolist()
        latents.append(_latents(item, view, chance, objective.scaling))
        drawn = torch.randn(latents[-1].shape, generator=chance) if item.noise is None else item.noise
        if config.noise_offset:
            drawn = drawn + config.noise_offset * torch.randn((len(drawn), 1, 1), generator=chance)
        noise.append(drawn)
        if config.input_perturbation:
            drawn = drawn + config.input_perturbation * torch.randn(drawn.shape, generator=chance)
        seen.append(drawn)
        states.append(lessons.material.states("" if dropped < config.caption_dropout else item.caption))
    clean, wanted, words, mixed_in = (torch.stack(x) for x in (latents, noise, states, seen))
    losses = objective.losses(lessons.unet, clean, wanted, words, timesteps, mixed_in)
    if config.snr_gamma is None:
        return losses
    return losses * diffusion.min_snr_weights(
        timesteps.to(losses.device), objective.alphas, objective.prediction, config.snr_gamma
    )


def _latents(item: Item, view: float, chance: torch.Generator, scaling: float) -> Tensor:
    if item.moments is None:
        return item.still(scaling)
    moments = item.moments[int(view * len(item.moments))][None]
    spread = torch.randn(moments[:, : moments.shape[1] // 2].shape, generator=chance)
    return diffusion.sampled_latents(moments, spread, scaling)[0]


def _hold_out(lessons: Lessons, step: int) -> None:
    """Append the losses of the averaged weights on validation pictures and on as many training pictures to the curve."""
    for name, items in (
        ("validation", lessons.material.validation),
        ("train", lessons.material.train[: len(lessons.material.validation)]),
    ):
        if items:
            with averaged(lessons):
                losses = held_out_losses(lessons.unet, lessons.objective, items, lessons.material.states)
            lessons.curve.append({"step": step, "set": name, "losses": losses})


@torch.no_grad()
def held_out_losses(
    unet: torch.nn.Module, objective: Objective, items: Sequence[Item], states: Callable[[str], Tensor]
) -> dict[str, list[float]]:
    """Item name -> loss at each of `BANDS` fixed timesteps, on noise = f(picture, timestep): no draw is left to chance."""
    probes = diffusion.probe_timesteps(BANDS, len(objective.alphas))
    unet.eval()
    found = {}
    for item in items:
        clean = item.still(objective.scaling)
        noise = torch.stack(
            [torch.randn(clean.shape, generator=randomness.generator(0, "held out", item.name, b)) for b in range(BANDS)]
        )
        losses = objective.losses(
            unet, clean.expand_as(noise), noise, states(item.caption).expand(BANDS, -1, -1), probes, noise
        )
        found[item.name] = [round(x, 6) for x in losses.tolist()]
    return found


@contextmanager
def averaged(lessons: Lessons) -> Iterator[None]:
    """The averaged weights in the model's place."""
    kept = [p.data for p in lessons.parameters]
    for parameter, average in zip(lessons.parameters, lessons.average, strict=True):
        parameter.data = average
    was = lessons.unet.training
    lessons.unet.eval()
    try:
        yield
    finally:
        for parameter, data in zip(lessons.parameters, kept, strict=True):
            parameter.data = data
        lessons.unet.train(was)


def _checkpoint(lessons: Lessons, step: int, folder: Path) -> None:
    if not lessons.accelerator.is_main_process:
        return
    state = lessons.optimizer.state_dict()["state"]
    kept = {f"weights.{n}": p.data for n, p in zip(lessons.names, lessons.parameters, strict=True)}
    kept |= {f"average.{n}": a for n, a in zip(lessons.names, lessons.average, strict=True)}
    kept |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}
    scaler = lessons.accelerator.scaler.state_dict() if lessons.accelerator.scaler else {}
    checkpoints.save(folder, checkpoints.Checkpoint(step, kept, {"curve": lessons.curve, "scaler": scaler}))


def _resume(lessons: Lessons, folder: Path) -> int:
    """Put the newest whole checkpoint in place; returns the optimizer steps done."""
    found = checkpoints.latest(folder)
    if found is None:
        return 0
    for name, parameter, average in zip(lessons.names, lessons.parameters, lessons.average, strict=True):
        parameter.data.copy_(found.tensors[f"weights.{name}"])
        average.copy_(found.tensors[f"average.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    whole = lessons.optimizer.state_dict()
    lessons.optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    if lessons.accelerator.scaler and found.state["scaler"]:
        lessons.accelerator.scaler.load_state_dict(found.state["scaler"])
    lessons.curve = json.loads(json.dumps(found.state["curve"]))
    return found.step


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, so that the step under way ends and a checkpoint is written first."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {s: signal.signal(s, lambda *_: flag.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
