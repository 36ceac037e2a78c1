"""What a training needs before its first step: weights that learn, their optimizer, and processes that know of each other."""

import os
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs

from dovetail.config import PlannedTraining, Training
from dovetail.edges import adapters, folders, machine, shapes, words
from dovetail.edges.models import Models
from dovetail.engines import attention, compiling, feedforward, optimizers, recomputing, sharding
from dovetail.engines.fused import blocks, copies
from dovetail.engines.lessons import Lessons
from dovetail.engines.material import Material
from dovetail.engines.objective import Objective
from dovetail.engines.stopwatch import Stopwatch
from dovetail.errors import BadConfigError

SPARE = 0.75  # of the room for all gradients: what the last blocks may keep before there are any
LATE = {"cpu": False, "cuda": True}  # see `Lessons.late`
ADAPTERS = ("lora", "dora", "lokr")
TEXT_ENCODER = "text_encoder"  # how the names of its weights begin, and of those of a second one


def prepare(
    models: Models, material: Material, config: PlannedTraining, learning_rate: float, show: folders.Showing, shard: bool
) -> Lessons:
    """A training before its first step; `shard` cuts the U-Net in parts, as `accelerate launch --use_fsdp` does.

    Raises BadConfigError where the settings do not go together, or not with so many processes.
    """
    if models.device.type == "cpu":
        held = 16 * sum(p.numel() for p in models.unet.parameters())  # weights, their average, and two moments of theirs
        machine.hold_memory(large=held < machine.little_bytes(models.device))
        models.unet.set_attn_processor(attention.CacheAttention())
        feedforward.in_pieces(models.unet)
    models.prediction = config.prediction_type
    shard = sharding.asked(os.environ) or shard
    if models.device.type == "cuda" and not shard:  # FSDP wants weights that are plain
        models.unet.to(memory_format=torch.channels_last)  # as a GPU's matrix units want pictures
    accelerator = _accelerator(models, config, show)
    if config.fused_backward and (accelerator.num_processes > 1 or accelerator.scaler is not None):
        raise BadConfigError("fused_backward wants one process and no fp16", do="leave it, or take mixed_precision bf16")
    if shard and (fault := sharding.fault(config, accelerator.num_processes, accelerator.scaler is not None)):
        raise BadConfigError(fault[0], do=fault[1])
    unet = models.unet
    unet.requires_grad_(config.method == "full")
    if config.method in ADAPTERS:
        adapters.add(unet, config.method, config.lora_rank, config.lora_alpha, config.seed)
    if models.device.type == "cpu" and not shard and not config.compile:
        blocks.fuse(unet)
    if config.gradient_checkpointing:
        recomputing.turn_on(unet)
    unet_config = unet.to_json_string()
    if shard:
        sharding.shard(unet, models.device, accelerator.num_processes, accelerator.mixed_precision)
    named = [(n, p) for n, p in unet.named_parameters() if p.requires_grad]
    objective = Objective.of(models)
    if config.text_encoder or config.method == "textual_inversion":
        objective = _with_text(models, objective, material, config)
        for part in models.encoders:
            named += [(f"{part}.{n}", p) for n, p in getattr(models, part).named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    optimizer = optimizers.adamw(parameters, config)
    prepared = unet
    if not shard:
        alone = not any(p.requires_grad for p in unet.parameters())  # a new word is learnt: nothing in it for DDP
        prepared, optimizer = accelerator.prepare_model(unet, evaluation_mode=alone), accelerator.prepare(optimizer)
    place = "cpu" if config.ema_on_cpu else models.device
    average = [sharding.local(p).to(place, copy=True) if config.ema_decay else (p if shard else p.detach()) for p in parameters]
    descent = optimizers.Descent(optimizer, parameters, average if config.ema_decay else None)
    little = machine.little_bytes(models.device)
    if descent.walks and not config.fused_backward and 2 * sum(p.numel() for p in parameters) < little:
        copies.allow(parameters)
    return Lessons(
        models=models, material=material, config=config, learning_rate=learning_rate, accelerator=accelerator,
        unet=prepared, optimizer=optimizer, descent=descent, parameters=parameters,
        names=[n for n, _ in named], average=average,
        objective=objective, watch=Stopwatch(models.device), micro=None, unet_config=unet_config, sharded=shard,
        late=LATE[models.device.type],
        within=optimizers.Within(parameters, descent) if config.fused_backward else None,
        packed=optimizers.packed(unet, descent, config, accelerator, little),
    )  # fmt: skip


def suit(lessons: Lessons, latents: torch.Size, states: torch.Size) -> None:
    """Decide on recomputing and compiling by what goes through at once: latents (b, c, h, w), states (b, tokens, width)."""
    lessons.measured = True
    recomputed = _recompute(lessons, latents, states) if lessons.config.gradient_checkpointing else ""
    for event in (recomputed, _compile(lessons, latents, states)):
        if event and {"step": 0, "event": event} not in lessons.curve:  # it may come from a checkpoint
            lessons.curve.append({"step": 0, "event": event})


def _recompute(lessons: Lessons, latents: torch.Size, states: torch.Size) -> str:
    """Gradient checkpointing for what it is there for: where activations take little, they are kept, and that is said."""
    dtype = torch.float32 if lessons.accelerator.mixed_precision == "no" else torch.bfloat16
    needed = shapes.activation_bytes(lessons.models.unet, latents, states, dtype)
    if needed < machine.little_bytes(lessons.models.device):
        lessons.models.unet.disable_gradient_checkpointing()
        return f"activations of {needed / 2**20:.0f} MiB a pass are kept, not recomputed"
    if not (lessons.packed and lessons.descent.walks):
        return ""
    lessons.packed.thrift()
    recomputing.one_by_one(lessons.models.unet, latents, lessons.packed.parts)
    gradients = 2 * sum(p.numel() for p in lessons.parameters)
    kept = recomputing.spare(lessons.models.unet, latents, int(SPARE * gradients))
    return f"activations of the last blocks, {kept / 2**20:.0f} MiB, are kept, not recomputed" if kept else ""


def _compile(lessons: Lessons, latents: torch.Size, states: torch.Size) -> str:
    """Compiled blocks, if they are asked for or will pay."""
    config, device, unet = lessons.config, lessons.models.device, lessons.models.unet
    wanted = config.compile
    if wanted is None and device.type == "cuda" and not lessons.sharded:
        one = shapes.arithmetic(unet, (1, *latents[1:]), (1, *states[1:])).tflop
        pictures = config.steps * config.batch_size * config.gradient_accumulation_steps
        wanted = compiling.pays(one, pictures // lessons.accelerator.num_processes, machine.peak_tflops(device))
    if not wanted:
        return ""
    compiling.turn_on(unet)
    return "residual and transformer blocks are compiled"


def _accelerator(models: Models, config: Training, show: folders.Showing) -> Accelerator:
    precision = config.mixed_precision
    if precision == "fp16" and models.device.type == "cpu":
        show.say("warning: the CPU has no fp16 training: bf16 is used")
        precision = "bf16"
    # One process may train several times, each time in another precision; accelerate would keep the first.
    AcceleratorState._reset_state()
    uncached = AutocastKwargs(cache_enabled=False)  # each weight is used once a pass: a cache would only hold its copy
    with sharding.unasked():
        accelerator = Accelerator(mixed_precision=precision, cpu=models.device.type == "cpu", kwargs_handlers=[uncached])
    accelerator.gradient_accumulation_steps = 1  # whatever the launcher says: the loss is weighed here
    return accelerator


def _with_text(models: Models, objective: Objective, material: Material, config: Training) -> Objective:
    """Text encoders that learn: adapters, or a new word. Captions are read anew in each step, as their states change."""
    if config.method == "textual_inversion" and not any(config.placeholder in item.caption for item in material.train):
        raise BadConfigError(f"no caption has the word {config.placeholder}", do="write it into the captions")
    for part, reader in models.encoders.items():
        encoder, tokenizer = getattr(models, part), getattr(models, reader)
        encoder.requires_grad_(False)
        if config.method == "textual_inversion":
            words.add(tokenizer, encoder, config.placeholder, config.placeholder_vectors, config.initializer)
        else:
            adapters.add(encoder, config.method, config.lora_rank, config.lora_alpha, config.seed)
    models.text_taught = True
    return replace(objective, read=models.read, tokens=int(models.tokenizer.model_max_length))
