"""The learner: one loop for full fine-tuning and LoRA, on cached latents, through accelerate; resumes bit for bit."""

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dovetail import training_plan
from dovetail.config import PlannedTraining, Training
from dovetail.core import schedules, trends
from dovetail.edges import folders, machine
from dovetail.edges.models import Models
from dovetail.engines import checkpoints, compiling, material, processes, sharding
from dovetail.engines.fused import unets
from dovetail.engines.lessons import Lessons, averaged, best, put, resume, save, save_best, settle, wholes
from dovetail.engines.material import Material, Row
from dovetail.engines.objective import held_out_losses, training_losses
from dovetail.engines.preparation import TEXT_ENCODER, prepare, suit
from dovetail.errors import BadConfigError, StoppedError, TrainingError

MERGED_AREA = {"cpu": 64 * 16 * 16, "cuda": 16 * 64 * 64}  # latent pixels of the micro-batches that are merged into one
SKIPS = 20  # steps in a row that a loss scaler may skip while it looks for its scale
TRAIN_MEASURED = 4  # held-out losses for one on training pictures
BACKS = 3  # times that a training may be rolled back


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it went here, this time: no part of the result."""

    steps: int  # that were done this time
    seconds: float  # of them, without held-out losses, samples and checkpoints
    pictures: int  # learnt from in them
    shares: dict[str, float]  # of the seconds, by what was done
    peak_bytes: int
    checkpoint_seconds: float  # not among `seconds`: the training stood still


@dataclass(frozen=True, slots=True)
class Taught:
    """What a training gave."""

    steps: int  # done
    planned: int
    weights: dict[str, Tensor]  # averaged, by name, after the last step
    curve: list[dict[str, Any]]
    best: tuple[int, dict[str, Tensor]] | None  # step and averaged weights of the lowest held-out loss
    pace: Pace


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
    shard: bool = False,
) -> Taught:
    """Train for the planned optimizer steps, or until `config.early_stop` held-out losses in a row are no longer good.

    `folder` holds the checkpoints; called again on the same folder after a kill, it goes on from the newest whole one
    and ends with the same weights; `start` is another one to go on from, and newer ones are put aside. `on_sample(step)` is
    called with the averaged weights in place, `on_step(step, numbers)` with loss, gradient norm and learning rate. `shard` cuts
    weights, gradients, moments and averages of a U-Net in parts, one a process, as accelerate's `--use_fsdp` does.
    Raises TrainingError where the loss is no number or memory does not do, BadConfigError where the checkpoints are of a
    training that was asked for otherwise, StoppedError where the time is up, KeyboardInterrupt where it was stopped: both after
    a checkpoint.
    """
    distinct = 0 if config.steps else len({item.name for item in material.train})  # a large set is not gone through unasked
    config = config.planned(distinct, len(material.validation))
    lessons = prepare(models, material, config, learning_rate, show, shard)
    step = resume(lessons, folder, start)
    if step == 0:
        _hold_out(lessons, 0, folder)
    times: deque[float] = deque([time.perf_counter()], maxlen=50)
    bar, stopping = show.bar("training", config.steps, done=step), _stopping(config.time_limit_minutes)
    with lessons.writer, bar as advance, stopping as stop:
        while not _ended(lessons, step):
            rate = schedules.learning_rate(step, config.steps, learning_rate, config.warmup_steps, config.lr_scheduler)
            rate *= lessons.factor
            for group in lessons.optimizer.param_groups:
                group["lr"] = rate
            loss, norm, last, sound = _learn(lessons, step, stop())
            if not sound:
                back = _roll_back(lessons, step, folder, show)
                advance(back - step, "")
                step = back
                continue
            step += 1
            told = {"loss": loss, "gradient_norm": norm, "learning_rate": rate}
            on_step(step, told)
            _look(lessons, step, told, folder, on_sample)
            _keep(lessons, step, folder, bool(last))
            times.append(time.perf_counter())
            advance(1, f"loss {loss:.3f}  gradient {norm:.2f}  {_speed(config, times)}")
            if last and not _ended(lessons, step):
                raise _stopped(last, step, config)
    lessons.optimizer.state.clear()  # a large model is written and read back where its averages lay
    unets.forget(models.unet)
    machine.give_memory_back()
    weights = {n: a.cpu() for n, a in wholes(lessons, lessons.average, everywhere=True).items()}
    if lessons.sharded:
        models.unet = sharding.whole(lessons.unet, weights, models.device, "no")
    return Taught(step, config.steps, weights, lessons.curve, best(lessons, folder), _pace(lessons))


def _pace(lessons: Lessons) -> Pace:
    config, watch = lessons.config, lessons.watch
    pictures = watch.steps * config.batch_size * config.gradient_accumulation_steps
    shares = watch.shares()  # first, as it reads what a GPU has not told yet
    peak = machine.peak_bytes(lessons.models.device)
    return Pace(watch.steps, sum(watch.seconds.values()), pictures, shares, peak, watch.saving)


def _ended(lessons: Lessons, step: int) -> bool:
    config = lessons.config
    if step >= config.steps:
        return True
    return (
        bool(config.early_stop) and step % config.held_out_every == 0 and trends.since_best(lessons.curve) >= config.early_stop
    )


def _look(lessons: Lessons, step: int, told: dict[str, float], folder: Path, on_sample: Callable[[int], None]) -> None:
    """What is noted, measured and painted after a step."""
    config = lessons.config
    if step % config.held_out_every == 0 or step == config.steps:
        _hold_out(lessons, step, folder)
    if step % 10 == 0 or _ended(lessons, step):
        lessons.curve.append({"step": step, **told})
    if step % config.sample_every == 0 or _ended(lessons, step):
        with averaged(lessons):
            if lessons.accelerator.is_main_process:
                on_sample(step)


def _keep(lessons: Lessons, step: int, folder: Path, last: bool) -> None:
    """Checkpoints, written while the next steps are done; after the last one they are on the disk. Raises what went wrong."""
    last = last or _ended(lessons, step)
    if last or step % lessons.config.checkpoint_every == 0:
        save(lessons, step, folder)
    settle(lessons) if last else lessons.writer.look()


def _speed(config: Training, times: Sequence[float]) -> str:
    """Pictures a second over the latest steps; a pause long ago does not count."""
    pictures = (len(times) - 1) * config.batch_size * config.gradient_accumulation_steps
    return f"{pictures / (times[-1] - times[0]):.0f} pictures/s"


def _learn(lessons: Lessons, step: int, stop: int) -> tuple[float, float, int, bool]:
    """Mean loss and gradient norm of a step, why it is to be the last if it is, and whether the first two are numbers."""
    numbers = _gradients(lessons, step, stop)
    if lessons.late:  # the device is given all its work before anything is asked of it
        _update(lessons, step)
        lessons.ahead = (step + 1, *_rows(lessons, step + 1))
    loss, norm, last = numbers.tolist()
    sound = _sound(lessons, loss, norm)
    if sound and not lessons.late:
        _update(lessons, step)
    return loss, norm, int(last), sound


def _gradients(lessons: Lessons, step: int, stop: int) -> Tensor:
    """Mean loss of the step's pictures, gradient norm before clipping, why any process wants to stop: float64 (3,)."""
    lessons.watch.start()
    ahead, lessons.ahead = lessons.ahead, None
    mine, size = ahead[1:] if ahead and ahead[0] == step else _rows(lessons, step)
    lessons.watch.lap("data")
    if not lessons.measured:
        most = max(micro_batches(mine, lessons.micro or 1), key=lambda part: len(part) * part[0].latents.numel())
        suit(lessons, *(torch.Size((len(most), *x.shape)) for x in (most[0].latents, most[0].states)))
    while True:
        try:
            value, last = _backward(lessons, mine, size, stop)
            break
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if compiling.undo(lessons.models.unet, error):
                _forget(lessons)
                why = " ".join(str(error).splitlines()[:2])
                lessons.curve.append({"step": step + 1, "event": f"blocks run uncompiled: {why}"})
            else:
                _smaller(lessons, mine, step, error)
    norm = _clipped(lessons, lessons.config.max_grad_norm or math.inf)
    lessons.watch.lap("sync")
    return torch.stack([torch.as_tensor(x, dtype=torch.float64, device=value.device) for x in (value, norm, last)])


def _clipped(lessons: Lessons, most: float) -> Tensor | float:
    """The norm of all gradients, which are then no longer than `most`, or will be so in the next step."""
    if lessons.within:
        return lessons.within.norm()
    if lessons.packed:
        return lessons.packed.clip(most)
    if lessons.sharded:
        return sharding.norm(lessons.parameters, most)
    if lessons.descent.walks:
        return lessons.descent.clip(most)
    return lessons.accelerator.clip_grad_norm_(lessons.parameters, most)


def _update(lessons: Lessons, step: int) -> None:
    """Weights, where they are not updated yet, and averaged weights after the gradients of `step`."""
    decay = lessons.config.ema_decay
    share = 1 - schedules.ema_decay(step, decay) if decay else None
    if not lessons.within:
        (lessons.packed or lessons.descent).step(share)
    elif share is not None:
        lessons.descent.average(share)
    _forget(lessons)
    lessons.watch.lap("optimizer")


def _forget(lessons: Lessons) -> None:
    """The gradients."""
    for parameter in lessons.parameters:
        parameter.grad = None
    if lessons.packed:
        lessons.packed.forget()


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
        material.row(item, epoch, t, config, lessons.material, objective.scaling)
        for (item, epoch), t in list(zip(chosen, times, strict=True))[lessons.accelerator.process_index :: world]
    ]
    if lessons.micro is None:
        merged = MERGED_AREA[lessons.models.device.type] // mine[0].latents[0].numel() if config.merge_micro_batches else 0
        lessons.micro = max(config.batch_size, merged)
    return mine, len(chosen)


def _backward(lessons: Lessons, mine: list[Row], size: int, stop: int) -> tuple[Tensor, Tensor | int]:
    """Gradients of the mean loss over all processes' rows, each row weighing the same; returns that mean, float64.

    And the highest `stop`: all processes hear of one in the same step, so that none waits for another that has left.
    """
    accelerator, unet = lessons.accelerator, lessons.unet
    unet.train()
    total = torch.zeros((), device=lessons.models.device)
    parts = list(micro_batches(mine, lessons.micro or 1))
    # A sharded U-Net wants all processes at each pass: one that has fewer goes along, learning nothing.
    idle = processes.most(len(parts), total.device) - len(parts) if lessons.sharded else 0
    for number, rows in enumerate(parts + parts[-1:] * idle, 1):
        counts = number <= len(parts)
        with nullcontext() if lessons.sharded or number == len(parts) else accelerator.no_sync(unet):
            losses = training_losses(lessons.objective, unet, rows, lessons.config)
            lessons.watch.lap("forward")
            if lessons.within:
                lessons.within.on = number == len(parts)
                if not bool(losses.isfinite().all()):
                    return total.double() * math.nan, stop  # before a weight is spoilt by it
            accelerator.backward(counts * losses.sum() * accelerator.num_processes / size)
            lessons.watch.lap("backward")
        total += counts * losses.detach().sum()
    if accelerator.num_processes == 1:
        return total.double() / size, stop
    if lessons.objective.read:
        named = zip(lessons.names, lessons.parameters, strict=True)
        processes.average_gradients([p for name, p in named if name.startswith(TEXT_ENCODER)])
    heard = accelerator.gather(torch.stack([total, torch.full_like(total, stop)])[None])
    return heard[:, 0].sum().double() / size, heard[:, 1].max()


def micro_batches(rows: Sequence[Row], most: int) -> Iterator[list[Row]]:
    """The rows in parts of one shape and of `most` at most: what goes through the U-Net at once."""
    groups: dict[tuple[torch.Size, torch.Size], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.latents.shape, row.states.shape), []).append(row)
    for alike in groups.values():
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


def _smaller(lessons: Lessons, mine: list[Row], step: int, error: BaseException) -> None:
    """Halve the micro-batch after memory ran out: the same mathematics in more passes. Raises where that is no way out."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        raise error
    now = min(lessons.micro or 1, max(len(part) for part in micro_batches(mine, len(mine))))
    _forget(lessons)
    begun = lessons.within is not None and lessons.within.begun
    if now == 1 or lessons.accelerator.num_processes > 1 or begun:
        raise TrainingError(
            f"out of memory at step {step + 1} with {now} pictures a forward pass",
            do="turn on gradient_checkpointing or use_8bit_adam, take method lora, or lower batch_size or the resolution",
        ) from error
    lessons.micro = now // 2
    lessons.curve.append({"step": step + 1, "event": f"out of memory: {now // 2} pictures a forward pass instead of {now}"})
    if lessons.models.device.type == "cuda":
        torch.cuda.empty_cache()


def _sound(lessons: Lessons, value: float, norm: float) -> bool:
    """Whether loss and gradients are numbers; a loss scaler may overflow some gradients at the start."""
    if math.isfinite(value) and math.isfinite(norm):
        lessons.skipped = 0
        return True
    lessons.skipped += 1
    return math.isfinite(value) and lessons.accelerator.scaler is not None and lessons.skipped <= SKIPS


def _roll_back(lessons: Lessons, step: int, folder: Path, show: folders.Showing) -> int:
    """Go back to the newest checkpoint at half the learning rate, if that was asked for; returns its step."""
    what = f"the loss is not a number at step {step + 1}"
    factor = lessons.factor / 2
    settle(lessons)
    found = checkpoints.latest(folder) if lessons.config.on_nan == "roll back" else None
    if found is None or factor < 0.5**BACKS:
        raise TrainingError(what, do="lower [training] learning_rate and run again")
    _forget(lessons)
    put(lessons, found)
    lessons.factor, lessons.skipped = factor, 0
    told = f"{what}: back to step {found.step}, learning rate by {factor:g}"
    lessons.curve.append({"step": found.step, "event": told})
    show.say(told)
    return found.step


def _hold_out(lessons: Lessons, step: int, folder: Path) -> None:
    """Append the losses of the averaged weights on validation pictures; keep the best weights.

    Every so often, and at the end, also those on as many training pictures.
    """
    count = training_plan.measured_pictures(len(lessons.material.validation))
    with averaged(lessons):
        _measure(lessons, step, "validation", lessons.material.validation[:count])
        number = sum(row.get("set") == "validation" for row in lessons.curve) - 1
        if number % TRAIN_MEASURED == 0 or _ended(lessons, step):
            _measure(lessons, step, "train", lessons.material.train[:count])
    if trends.best_step(lessons.curve) == step:
        save_best(lessons, step, folder)


def _measure(lessons: Lessons, step: int, name: str, items: Sequence[material.Item]) -> None:
    """Append the losses on these pictures, where there are any."""
    measured: list[dict[str, Any]] = []
    if items and (lessons.accelerator.is_main_process or not lessons.sharded):
        losses = held_out_losses(lessons.unet, lessons.objective, items, lessons.material)
        measured.append({"step": step, "set": name, "losses": losses})
    lessons.curve += processes.from_main(measured) if lessons.sharded else measured


SIGNALLED, LATE = 1, 2  # why a training stops before its end


@contextmanager
def _stopping(minutes: float | None) -> Iterator[Callable[[], int]]:
    """Asked before each step: 0, or why that step is to be the last: Ctrl-C or SIGTERM, or the time is up."""
    flag = threading.Event()
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def stop() -> int:
        return SIGNALLED if flag.is_set() else LATE if time.monotonic() > deadline else 0

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: flag.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _stopped(why: int, step: int, config: PlannedTraining) -> BaseException:
    if why == SIGNALLED:
        return KeyboardInterrupt()
    minutes = f"{config.time_limit_minutes:g} minutes"
    return StoppedError(f"the {minutes} are up after step {step} of {config.steps}", do="the same command goes on from there")
