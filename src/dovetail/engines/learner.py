"""The learner: one loop for full fine-tuning and LoRA, on cached latents, through accelerate; resumes bit for bit."""

import json
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from dovetail.config import Training
from dovetail.core import digests, schedules
from dovetail.edges import folders
from dovetail.edges import models as model_edge
from dovetail.edges.models import Models
from dovetail.engines import checkpoints, material
from dovetail.engines.material import Material, Row
from dovetail.engines.objective import Objective, held_out_losses, training_losses
from dovetail.errors import BadConfigError, TrainingError

MERGED_AREA = {"cpu": 32 * 16 * 16, "cuda": 16 * 64 * 64}  # latent pixels of the micro-batches that are merged into one
CHEAP = 16  # activations that take less than this part of the device's memory are not worth recomputing
SKIPS = 20  # steps in a row that a loss scaler may skip while it looks for its scale
FREE = {"steps", "checkpoint_every", "checkpoints_kept", "held_out_every", "sample_every", "merge_micro_batches"}


@dataclass(slots=True)
class Lessons:
    """The state of a training under way."""

    models: Models
    material: Material
    config: Training
    learning_rate: float
    accelerator: Accelerator
    unet: torch.nn.Module
    optimizer: Any
    parameters: list[torch.nn.Parameter]
    names: list[str]
    average: list[Tensor]  # the parameters themselves where no average is kept
    objective: Objective
    micro: int | None  # pictures a forward pass at most; None until the first step
    curve: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    measured: bool = False  # whether it is known what activations take


def teach(
    models: Models,
    material: Material,
    config: Training,
    learning_rate: float,
    folder: Path,
    show: folders.Showing,
    on_sample: Callable[[int], None],
    on_step: Callable[[int, dict[str, float]], None] = lambda step, numbers: None,
    start: Path | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train for `config.steps` optimizer steps; returns the averaged weights by name and the curve.

    `folder` holds the checkpoints; called again on the same folder after a kill, it goes on from the newest whole one
    and ends with the same weights; `start` is another one to go on from, and newer ones are put aside. `on_sample(step)` is
    called with the averaged weights in place, `on_step(step, numbers)` with loss, gradient norm and learning rate.
    Raises TrainingError where the loss is no number or memory does not do, BadConfigError where the checkpoints are of a
    training that was asked for otherwise.
    """
    lessons = _prepare(models, material, config, learning_rate, show)
    first = _resume(lessons, folder, start)
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
            on_step(done, {"loss": loss, "gradient_norm": norm, "learning_rate": rate})
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


def _prepare(models: Models, material: Material, config: Training, learning_rate: float, show: folders.Showing) -> Lessons:
    if models.device.type == "cpu":
        model_edge.hold_memory()
    models.prediction = config.prediction_type
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
        show.say("warning: the CPU has no fp16 training: bf16 is used")
        precision = "bf16"
    # One process may train several times, each time in another precision; accelerate would keep the first.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision, cpu=models.device.type == "cpu")
    accelerator.gradient_accumulation_steps = 1  # whatever the launcher says: the loss is weighed here
    prepared, optimizer = accelerator.prepare(unet, _optimizer(parameters, config))
    place = "cpu" if config.ema_on_cpu else models.device
    average = [p.detach().to(place, copy=True) if config.ema_decay else p.detach() for p in parameters]
    return Lessons(
        models=models, material=material, config=config, learning_rate=learning_rate, accelerator=accelerator,
        unet=prepared, optimizer=optimizer, parameters=parameters, names=[n for n, _ in named], average=average,
        objective=Objective.of(models), micro=None,
    )  # fmt: skip


def _optimizer(parameters: list[torch.nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """AdamW; the learning rate is set anew at each step."""
    told: dict[str, Any] = {
        "lr": 1.0, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }  # fmt: skip
    if not config.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=True, **told)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise BadConfigError("8-bit Adam needs bitsandbytes", do="pip install bitsandbytes, or leave use_8bit_adam") from error
    return AdamW8bit(parameters, **told)


def _step(lessons: Lessons, step: int, rate: float) -> tuple[float, float]:
    """One optimizer step; returns the mean loss of its pictures and the gradient norm before clipping."""
    mine, size = _rows(lessons, step)
    if lessons.config.gradient_checkpointing and not lessons.measured:
        _recompute(lessons, mine)
    while True:
        try:
            value = _backward(lessons, mine, size)
            break
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            _smaller(lessons, mine, step, error)
    norm = float(lessons.accelerator.clip_grad_norm_(lessons.parameters, lessons.config.max_grad_norm))
    _finite(lessons, value, norm, step)
    for group in lessons.optimizer.param_groups:
        group["lr"] = rate
    lessons.optimizer.step()
    lessons.optimizer.zero_grad(set_to_none=True)
    if lessons.config.ema_decay:
        decay = schedules.ema_decay(step, lessons.config.ema_decay)
        weights = [p.detach().to(a.device) for p, a in zip(lessons.parameters, lessons.average, strict=True)]
        torch._foreach_lerp_(lessons.average, weights, 1 - decay)
    return value, norm


def _rows(lessons: Lessons, step: int) -> tuple[list[Row], int]:
    """This process' rows of the step, and how many all processes have together."""
    config, objective, world = lessons.config, lessons.objective, lessons.accelerator.num_processes
    chosen = material.batch(lessons.material, config, step)
    times = material.timesteps(config, step, len(chosen), len(objective.alphas))
    if len(chosen) < world:
        raise BadConfigError(
            f"a batch of {len(chosen)} does not go round {world} processes", do="raise batch_size, or start fewer"
        )
    mine = [
        material.row(item, epoch, t, config, lessons.material.states, objective.scaling)
        for (item, epoch), t in list(zip(chosen, times, strict=True))[lessons.accelerator.process_index :: world]
    ]
    if lessons.micro is None:
        merged = MERGED_AREA[lessons.models.device.type] // mine[0].latents[0].numel() if config.merge_micro_batches else 0
        lessons.micro = max(config.batch_size, merged)
    return mine, len(chosen)


def _recompute(lessons: Lessons, rows: list[Row]) -> None:
    """Gradient checkpointing for what it is there for: where activations take little, they are kept, and that is said."""
    lessons.measured = True
    most = max(micro_batches(rows, lessons.micro or 1), key=lambda part: len(part) * part[0].latents.numel())
    latents, states = (torch.Size((len(most), *x.shape)) for x in (most[0].latents, most[0].states))
    dtype = torch.float32 if lessons.accelerator.mixed_precision == "no" else torch.bfloat16
    needed = model_edge.activation_bytes(lessons.models.unet, latents, states, dtype)
    if needed * CHEAP < model_edge.memory_bytes(lessons.models.device):
        lessons.models.unet.disable_gradient_checkpointing()
        told = f"activations of {needed / 2**20:.0f} MiB a pass are kept, not recomputed"
        if {"step": 0, "event": told} not in lessons.curve:  # it may come from a checkpoint
            lessons.curve.append({"step": 0, "event": told})


def _backward(lessons: Lessons, mine: list[Row], size: int) -> float:
    """Gradients of the mean loss over all processes' rows, each row weighing the same; returns that mean."""
    accelerator, unet = lessons.accelerator, lessons.unet
    unet.train()
    total = torch.zeros((), device=lessons.models.device)
    parts = list(micro_batches(mine, lessons.micro or 1))
    for number, rows in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else accelerator.no_sync(unet):
            losses = training_losses(lessons.objective, unet, rows, lessons.config)
            accelerator.backward(losses.sum() * accelerator.num_processes / size)
        total += losses.detach().sum()
    return float(accelerator.reduce(total, "sum")) / size


def micro_batches(rows: Sequence[Row], most: int) -> Iterator[list[Row]]:
    """The rows in parts of one shape and of `most` at most: what goes through the U-Net at once."""
    shapes: dict[torch.Size, list[Row]] = {}
    for row in rows:
        shapes.setdefault(row.latents.shape, []).append(row)
    for alike in shapes.values():
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


def _smaller(lessons: Lessons, mine: list[Row], step: int, error: BaseException) -> None:
    """Halve the micro-batch after memory ran out: the same mathematics in more passes. Raises where that is no way out."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        raise error
    now = min(lessons.micro or 1, max(len(part) for part in micro_batches(mine, len(mine))))
    lessons.optimizer.zero_grad(set_to_none=True)
    if now == 1 or lessons.accelerator.num_processes > 1:
        raise TrainingError(
            f"out of memory at step {step + 1} with {now} pictures a forward pass",
            do="turn on gradient_checkpointing or use_8bit_adam, take method lora, or lower batch_size or the resolution",
        ) from error
    lessons.micro = now // 2
    lessons.curve.append({"step": step + 1, "event": f"out of memory: {now // 2} pictures a forward pass instead of {now}"})
    if lessons.models.device.type == "cuda":
        torch.cuda.empty_cache()


def _finite(lessons: Lessons, value: float, norm: float, step: int) -> None:
    """A loss scaler may skip some steps at the start; anything else that is no number is the end."""
    if math.isfinite(value) and math.isfinite(norm):
        lessons.skipped = 0
        return
    lessons.skipped += 1
    if not math.isfinite(value) or lessons.accelerator.scaler is None or lessons.skipped > SKIPS:
        raise TrainingError(f"the loss is not a number at step {step + 1}", do="lower [training] learning_rate and run again")


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


@contextmanager
def averaged(lessons: Lessons) -> Iterator[None]:
    """The averaged weights in the model's place."""
    kept = [p.data for p in lessons.parameters]
    for parameter, average in zip(lessons.parameters, lessons.average, strict=True):
        parameter.data = average.to(parameter.device)
    was = lessons.unet.training
    lessons.unet.eval()
    try:
        yield
    finally:
        for parameter, data in zip(lessons.parameters, kept, strict=True):
            parameter.data = data
        lessons.unet.train(was)


def _checkpoint(lessons: Lessons, step: int, folder: Path) -> None:
    lessons.accelerator.wait_for_everyone()
    if lessons.accelerator.is_main_process:
        checkpoints.save(folder, _state(lessons, step), lessons.config.checkpoints_kept)
    lessons.accelerator.wait_for_everyone()


def _files(config: Training) -> tuple[str, str]:
    """Where weights and averaged weights lie below a checkpoint."""
    if config.method == "full":
        return "unet/diffusion_pytorch_model.safetensors", "unet_ema/diffusion_pytorch_model.safetensors"
    return "lora/weights.safetensors", "lora_ema/weights.safetensors"


def _state(lessons: Lessons, step: int) -> checkpoints.Checkpoint:
    adam = lessons.optimizer.state_dict()["state"]
    weights, averages = _files(lessons.config)
    files = {
        weights: {n: p.data for n, p in zip(lessons.names, lessons.parameters, strict=True)},
        "optimizer.safetensors": {f"{i}.{k}": torch.as_tensor(v) for i, entry in adam.items() for k, v in entry.items()},
    }
    texts = {}
    if lessons.config.ema_decay:
        files[averages] = dict(zip(lessons.names, lessons.average, strict=True))
    if lessons.config.method == "full":
        texts = {f"{Path(name).parent}/config.json": lessons.models.unet.to_json_string() for name in files if "/" in name}
    state = {
        "asked": _asked(lessons), "steps": lessons.config.steps, "micro": lessons.micro, "curve": lessons.curve,
        "scaler": lessons.accelerator.scaler.state_dict() if lessons.accelerator.scaler else {},
    }  # fmt: skip
    return checkpoints.Checkpoint(step, files, state, texts)


def _asked(lessons: Lessons) -> dict[str, Any]:
    """What the weights after some steps depend on, but for the number of steps to come."""
    told = {"learning_rate": lessons.learning_rate, "pictures": len(lessons.material.train), "data": lessons.material.key}
    return lessons.config.model_dump(mode="json", exclude=FREE) | told


def _resume(lessons: Lessons, folder: Path, start: Path | None) -> int:
    """Put the newest whole checkpoint in place, or that of `start`; returns the optimizer steps done."""
    found = checkpoints.read(start) if start else checkpoints.latest(folder)
    if found is None:
        return 0
    if found.state["asked"] != _asked(lessons):
        differing = ", ".join(digests.differing_fields(found.state["asked"], _asked(lessons)))
        raise BadConfigError(
            f"the checkpoints in {folder} are of another training ({differing})", do="ask for the same, or take another folder"
        )
    _same_rates(lessons, found.step, found.state["steps"])
    if start and lessons.accelerator.is_main_process:
        checkpoints.put_aside(folder, found.step)
    weights, averages = (found.files.get(name) for name in _files(lessons.config))
    for name, parameter, average in zip(lessons.names, lessons.parameters, lessons.average, strict=True):
        parameter.data.copy_((weights or {})[name])
        if averages:
            average.copy_(averages[name])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.files["optimizer.safetensors"].items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = tensor
    whole = lessons.optimizer.state_dict()
    lessons.optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    if lessons.accelerator.scaler and found.state["scaler"]:
        lessons.accelerator.scaler.load_state_dict(found.state["scaler"])
    lessons.curve, lessons.micro = json.loads(json.dumps(found.state["curve"])), found.state["micro"]
    return found.step


def _same_rates(lessons: Lessons, done: int, steps: int) -> None:
    """A training may be made longer or shorter where its learning rates so far would have been the same."""
    config = lessons.config
    then, now = (
        [schedules.learning_rate(s, n, 1.0, config.warmup_steps, config.lr_scheduler) for s in range(done)]
        for n in (steps, config.steps)
    )
    if then != now or done > config.steps:
        raise BadConfigError(
            f"{done} steps of {steps} are done, and {config.steps} are asked for now",
            do="ask for the same number, or take another folder",
        )


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
