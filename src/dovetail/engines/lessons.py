"""Where a training stands: what it works on, how that is written down, and how it is taken up again."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dovetail.config import PlannedTraining, Training
from dovetail.core import digests, schedules, trends
from dovetail.edges.models import Models
from dovetail.engines import checkpoints, compiling, sharding
from dovetail.engines.checkpoints import Checkpoint, Writer
from dovetail.engines.material import Material, Row
from dovetail.engines.objective import Objective
from dovetail.engines.optimizers import Descent, Packed, Within
from dovetail.engines.stopwatch import Stopwatch
from dovetail.errors import BadConfigError

FREE = {
    "steps", "checkpoint_every", "checkpoints_kept", "held_out_every", "sample_every", "merge_micro_batches", "published",
    "early_stop", "on_nan", "time_limit_minutes",
}  # fmt: skip


@dataclass(slots=True)
class Lessons:
    """The state of a training under way."""

    models: Models
    material: Material
    config: PlannedTraining
    learning_rate: float
    accelerator: Accelerator
    unet: torch.nn.Module
    optimizer: Any
    descent: Descent
    parameters: list[torch.nn.Parameter]
    names: list[str]
    average: list[Tensor]  # this process' parts of it; the parameters themselves where no average is kept
    objective: Objective
    watch: Stopwatch
    within: Within | None  # where weights are updated within the backward pass
    packed: Packed | None  # where gradients wait as bf16
    unet_config: str  # as diffusers writes it
    sharded: bool  # whether the U-Net's weights are cut in parts, one a process
    late: bool  # whether a step's numbers are read when all of its work is given to the device, and not before the update
    micro: int | None  # pictures a forward pass at most; None until the first step
    writer: Writer = field(default_factory=Writer)
    curve: list[dict[str, Any]] = field(default_factory=list)
    factor: float = 1.0  # of the learning rate, halved each time that the training was rolled back
    skipped: int = 0
    known_best: int | None = None  # step of the best weights that the last checkpoint knows of
    measured: bool = False  # whether it is known what activations take
    ahead: tuple[int, list[Row], int] | None = None  # a step, and its rows, that are ready before their time


@contextmanager
def averaged(lessons: Lessons) -> Iterator[None]:
    """The averaged weights in the model's place; of a sharded one, a U-Net in one piece in the main process alone."""
    if lessons.sharded:
        with _in_one_piece(lessons):
            yield
        return
    kept = [p.data for p in lessons.parameters]
    for parameter, average in zip(lessons.parameters, lessons.average, strict=True):
        parameter.data = average.to(parameter.device)
    was = lessons.unet.training
    lessons.unet.eval()
    try:
        with compiling.aside():
            yield
    finally:
        for parameter, data in zip(lessons.parameters, kept, strict=True):
            parameter.data = data
        lessons.unet.train(was)


@contextmanager
def _in_one_piece(lessons: Lessons) -> Iterator[None]:
    weights, cut = wholes(lessons, lessons.average), lessons.unet
    if lessons.accelerator.is_main_process:
        precision = lessons.accelerator.mixed_precision
        lessons.unet = lessons.models.unet = sharding.whole(cut, weights, lessons.models.device, precision)
    try:
        yield
    finally:
        lessons.unet = lessons.models.unet = cut


def wholes(lessons: Lessons, parts: Sequence[Tensor], everywhere: bool = False) -> dict[str, Tensor]:
    """Weights or averages by name, each in one piece.

    All processes of a sharded training must ask at once; unless they shall have them `everywhere`, the main one alone does.
    """
    return _in_whole(lessons, lessons.names, parts, lessons.parameters, everywhere)


def _in_whole(
    lessons: Lessons, names: Sequence[str], parts: Sequence[Tensor], likes: Sequence[Any], everywhere: bool = False
) -> dict[str, Tensor]:
    if not lessons.sharded:
        return dict(zip(names, parts, strict=True))
    keep = everywhere or lessons.accelerator.is_main_process
    return {n: whole.cpu() for n, whole in zip(names, sharding.gathered(parts, likes), strict=True) if keep}


def save(lessons: Lessons, step: int, folder: Path) -> None:
    """Have `folder/checkpoint-N` written, then older ones and former best weights deleted, while the training goes on."""
    with lessons.watch.pause():
        whole, kept, best = _whole(lessons, step), lessons.config.checkpoints_kept, trends.best_step(lessons.curve)
        lessons.known_best = best
        _write(lessons, whole, lambda one: checkpoints.save(folder, one, kept, best))


def save_best(lessons: Lessons, step: int, folder: Path) -> None:
    """Have `folder/best-N` written, the averaged weights alone; of older ones that stays which the last checkpoint knows."""
    with lessons.watch.pause():
        files, known = {_files(lessons.config)[1]: wholes(lessons, lessons.average)}, lessons.known_best
        weights = Checkpoint(step, files, {}, _texts(lessons, files))
        _write(lessons, weights, lambda one: checkpoints.save_best(folder, one, known))


def _write(lessons: Lessons, whole: Checkpoint, work: Callable[[Checkpoint], None]) -> None:
    if lessons.accelerator.is_main_process:
        lessons.writer.add(whole, work, live=not lessons.sharded)


def settle(lessons: Lessons) -> None:
    """Wait until all that was saved is on the disk; all processes must ask at once."""
    with lessons.watch.pause():
        lessons.writer.wait()
        lessons.accelerator.wait_for_everyone()


def best(lessons: Lessons, folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Step and averaged weights of the best held-out loss; None where none was measured."""
    step = trends.best_step(lessons.curve)
    if step is None:
        return None
    return step, checkpoints.read(folder / f"best-{step}").files[_files(lessons.config)[1]]


def resume(lessons: Lessons, folder: Path, start: Path | None) -> int:
    """Put the newest whole checkpoint in place, or that of `start`; returns the optimizer steps done."""
    if lessons.accelerator.is_main_process:
        checkpoints.sweep(folder)
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
    put(lessons, found)
    return found.step


def put(lessons: Lessons, found: Checkpoint) -> None:
    """Put a checkpoint in place of where the training stands."""
    weights, averages = (found.files.get(name) for name in _files(lessons.config))
    for name, parameter, average in zip(lessons.names, lessons.parameters, lessons.average, strict=True):
        sharding.local(parameter).copy_(sharding.local(sharding.cut((weights or {})[name], parameter)))
        if averages:
            sharding.local(average).copy_(sharding.local(sharding.cut(averages[name], parameter)))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.files["optimizer.safetensors"].items():
        number, key = name.split(".")
        like = lessons.parameters[int(number)]
        state.setdefault(int(number), {})[key] = tensor if tensor.ndim == 0 else _lying(sharding.cut(tensor, like), like)
    whole = lessons.optimizer.state_dict()
    lessons.optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    if lessons.accelerator.scaler and found.state["scaler"]:
        lessons.accelerator.scaler.load_state_dict(found.state["scaler"])
    lessons.curve, lessons.micro = json.loads(json.dumps(found.state["curve"])), found.state["micro"]
    lessons.factor, lessons.known_best = found.state.get("factor", 1.0), trends.best_step(lessons.curve)


def _lying(tensor: Tensor, like: Tensor) -> Tensor:
    """In the layout of a weight: an optimizer takes weight and moments number by number."""
    if sharding.local(tensor).stride() == sharding.local(like).stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor).detach()


def _files(config: Training) -> tuple[str, str]:
    """Where weights and averaged weights lie below a checkpoint."""
    if config.method == "full":
        return "unet/diffusion_pytorch_model.safetensors", "unet_ema/diffusion_pytorch_model.safetensors"
    return "lora/weights.safetensors", "lora_ema/weights.safetensors"


def _whole(lessons: Lessons, step: int) -> Checkpoint:
    weights, averages = _files(lessons.config)
    files = {weights: wholes(lessons, [p.data for p in lessons.parameters]), "optimizer.safetensors": _moments(lessons)}
    if lessons.config.ema_decay:
        files[averages] = wholes(lessons, lessons.average)
    state = {
        "asked": _asked(lessons), "steps": lessons.config.steps, "micro": lessons.micro, "factor": lessons.factor,
        "curve": list(lessons.curve), "scaler": lessons.accelerator.scaler.state_dict() if lessons.accelerator.scaler else {},
    }  # fmt: skip
    return Checkpoint(step, files, state, _texts(lessons, files))


def _moments(lessons: Lessons) -> dict[str, Tensor]:
    """What the optimizer knows of each weight; gathered as `wholes` does."""
    state = lessons.optimizer.state_dict()["state"]
    told = {(number, key): torch.as_tensor(value) for number, entry in state.items() for key, value in entry.items()}
    counts = {f"{n}.{key}": tensor.clone() for (n, key), tensor in told.items() if tensor.ndim == 0}
    cut = {f"{n}.{key}": (tensor, lessons.parameters[n]) for (n, key), tensor in told.items() if tensor.ndim}
    return counts | _in_whole(lessons, list(cut), [tensor for tensor, _ in cut.values()], [like for _, like in cut.values()])


def _texts(lessons: Lessons, files: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """What diffusers wants beside the weights."""
    if lessons.config.method != "full":
        return {}
    return {f"{Path(name).parent}/config.json": lessons.unet_config for name in files if "/" in name}


def _asked(lessons: Lessons) -> dict[str, Any]:
    """What the weights after some steps depend on, but for the number of steps to come."""
    told = {"learning_rate": lessons.learning_rate, "pictures": len(lessons.material.train), "data": lessons.material.key}
    return lessons.config.model_dump(mode="json", exclude=FREE) | told


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
