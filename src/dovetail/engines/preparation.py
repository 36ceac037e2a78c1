"""What a training needs before its first step: weights that learn, their optimizer, and processes that know of each other."""

import os
from dataclasses import replace

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs

from dovetail.config import Training
from dovetail.edges import adapters, folders, machine, words
from dovetail.edges.models import Models
from dovetail.engines import attention, feedforward, optimizers, recomputing, sharding
from dovetail.engines.fused import blocks
from dovetail.engines.lessons import Lessons
from dovetail.engines.material import Material
from dovetail.engines.objective import Objective
from dovetail.engines.stopwatch import Stopwatch
from dovetail.errors import BadConfigError

CHEAP = 16  # what takes less than this part of the device's memory is not worth saving
ADAPTERS = ("lora", "dora", "lokr")
TEXT_ENCODER = "text_encoder"  # how the names of its weights begin, and of those of a second one


def prepare(
    models: Models, material: Material, config: Training, learning_rate: float, show: folders.Showing, shard: bool
) -> Lessons:
    """A training before its first step; `shard` cuts the U-Net in parts, as `accelerate launch --use_fsdp` does.

    Raises BadConfigError where the settings do not go together, or not with so many processes.
    """
    if models.device.type == "cpu":
        machine.hold_memory()
        models.unet.set_attn_processor(attention.CacheAttention())
        feedforward.in_pieces(models.unet)
    models.prediction = config.prediction_type
    shard = sharding.asked(os.environ) or shard
    accelerator = _accelerator(models, config, show)
    if config.fused_backward and (accelerator.num_processes > 1 or accelerator.scaler is not None):
        raise BadConfigError("fused_backward wants one process and no fp16", do="leave it, or take mixed_precision bf16")
    if shard and (fault := sharding.fault(config, accelerator.num_processes, accelerator.scaler is not None)):
        raise BadConfigError(fault[0], do=fault[1])
    unet = models.unet
    unet.requires_grad_(config.method == "full")
    if config.method in ADAPTERS:
        adapters.add(unet, config.method, config.lora_rank, config.lora_alpha, config.seed)
    if models.device.type == "cpu" and not shard:
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
    return Lessons(
        models=models, material=material, config=config, learning_rate=learning_rate, accelerator=accelerator,
        unet=prepared, optimizer=optimizer, descent=descent, parameters=parameters,
        names=[n for n, _ in named], average=average,
        objective=objective, watch=Stopwatch(models.device), micro=None, unet_config=unet_config, sharded=shard,
        within=optimizers.Within(parameters, descent) if config.fused_backward else None,
        packed=optimizers.packed(unet, descent, config, accelerator, machine.memory_bytes(models.device) // CHEAP),
    )  # fmt: skip


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
