"""The flags of the diffusers example `train_text_to_image.py` (0.40 to 0.42): names, defaults, meaning, and what is wrong."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dovetail.config import Training
from dovetail.errors import BadConfigError
from dovetail.records import Precision, Schedule

FLAGS: dict[str, tuple[Any, Any, str]] = {  # name: kind, default, meaning
    "pretrained_model_name_or_path": (str, None, "diffusers folder, hub id, .safetensors file, or embedded"),
    "revision": (str, None, "branch, tag or commit of a hub model"),
    "variant": (str, None, "which weight files of the model: fp16, say"),
    "non_ema_revision": (str, None, "revision of the U-Net to start from, of a hub model"),
    "dataset_name": (str, None, "data set of the hub, or a local folder that datasets.load_dataset opens"),
    "dataset_config_name": (str, None, "configuration of that data set"),
    "train_data_dir": (str, None, "folder of pictures with a metadata.jsonl of file_name and text"),
    "image_column": (str, None, "column of the pictures [default: the first]"),
    "caption_column": (str, None, "column of a caption or a list of captions [default: the second]"),
    "max_train_samples": (int, None, "learn from so many of the pictures"),
    "validation_prompts": ([str], None, "prompts painted every --validation_epochs"),
    "validation_epochs": (int, 5, "epochs from one painting to the next"),
    "output_dir": (str, "sd-model-finetuned", "where the model and the checkpoints go"),
    "cache_dir": (str, None, "where downloads are kept"),
    "seed": (int, None, "of all chance [default: 0]"),
    "resolution": (int, 512, "pixels of a side"),
    "center_crop": (bool, False, "cut the middle out, else a random place"),
    "random_flip": (bool, False, "mirror half of the time"),
    "train_batch_size": (int, 16, "pictures a forward pass and process"),
    "num_train_epochs": (int, 100, "epochs, where --max_train_steps is not given"),
    "max_train_steps": (int, None, "optimizer steps"),
    "gradient_accumulation_steps": (int, 1, "forward passes an optimizer step"),
    "gradient_checkpointing": (bool, False, "less memory, more time"),
    "learning_rate": (float, 1e-4, "after the warm-up"),
    "scale_lr": (bool, False, "times accumulation, batch size and processes"),
    "lr_scheduler": (str, "constant", "linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup"),
    "lr_warmup_steps": (int, 500, "optimizer steps of the warm-up"),
    "snr_gamma": (float, None, "min-SNR weighting, 5 is usual"),
    "dream_training": (bool, False, "DREAM: one more forward pass"),
    "dream_detail_preservation": (float, 1.0, "its p"),
    "use_8bit_adam": (bool, False, "bitsandbytes' 8-bit AdamW"),
    "allow_tf32": (bool, False, "TF32 on Ampere GPUs and later"),
    "use_ema": (bool, False, "average the weights and give the average"),
    "offload_ema": (bool, False, "keep the average in main memory"),
    "foreach_ema": (bool, False, "average all weights in one call (always so here)"),
    "dataloader_num_workers": (int, 0, "threads that decode pictures ahead of the VAE"),
    "adam_beta1": (float, 0.9, ""),
    "adam_beta2": (float, 0.999, ""),
    "adam_weight_decay": (float, 1e-2, ""),
    "adam_epsilon": (float, 1e-08, ""),
    "max_grad_norm": (float, 1.0, ""),
    "push_to_hub": (bool, False, "upload the result"),
    "hub_token": (str, None, "for the upload"),
    "hub_model_id": (str, None, "repository of the upload [default: name of --output_dir]"),
    "prediction_type": (str, None, "epsilon, v_prediction or sample [default: what the model predicts]"),
    "logging_dir": (str, "logs", "below --output_dir"),
    "mixed_precision": (("no", "fp16", "bf16"), None, "[default: accelerate's own]"),
    "report_to": (str, "tensorboard", "tensorboard, wandb, comet_ml, ..., all or none; a local file always"),
    "local_rank": (int, -1, "set by the launcher"),
    "checkpointing_steps": (int, 500, "optimizer steps from one checkpoint to the next"),
    "checkpoints_total_limit": (int, None, "older ones are deleted"),
    "resume_from_checkpoint": (str, None, "latest, or the path of a checkpoint"),
    "enable_xformers_memory_efficient_attention": (bool, False, "xformers' attention, on a GPU"),
    "noise_offset": (float, 0.0, "0.1 is usual"),
    "input_perturbation": (float, 0.0, "0.1 is usual"),
    "tracker_project_name": (str, "text2image-fine-tune", "of the trackers"),
    "image_interpolation_mode": (("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"), "lanczos", "to resize by"),
}  # fmt: skip
OWN: dict[str, tuple[Any, Any, str]] = {  # flags that the example does not have
    "shard": (bool, False, "a part of weights, gradients, moments and averages in each process, as accelerate's --use_fsdp"),
    "ray_workers": (int, 0, "processes that Ray starts, on the cluster of RAY_ADDRESS or here; 0 means no Ray"),
}
SCHEDULES: dict[str, Schedule] = {  # names of diffusers -> ours
    "linear": "linear", "cosine": "cosine", "cosine_with_restarts": "cosine", "polynomial": "polynomial",
    "constant": "constant", "constant_with_warmup": "constant",
}  # fmt: skip
ABOUT = "Tune a Stable Diffusion model on captioned pictures: the flags of the diffusers example, on Dovetail's learner."
EMA_DECAY = 0.9999  # diffusers' EMAModel


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadConfigError(message, do="see --help")


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, set[str]]:
    """The flags, and the names of those that were given."""
    parser = _Parser(prog="train_text_to_image.py", description=ABOUT, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    every = FLAGS | OWN
    for name, (kind, default, meaning) in every.items():
        told = meaning + ("" if default is None or kind is bool or "default:" in meaning else f" [default: {default}]")
        told = told.replace("%", "%%")
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", help=told)
        elif isinstance(kind, list):
            parser.add_argument(f"--{name}", nargs="+", type=kind[0], help=told)
        elif isinstance(kind, tuple):
            parser.add_argument(f"--{name}", choices=kind, help=told)
        else:
            parser.add_argument(f"--{name}", type=kind, help=told, metavar=kind.__name__.upper())
    given = vars(parser.parse_args(words))
    return argparse.Namespace(**{n: d for n, (_, d, _) in every.items()} | given), set(given)


def faults(flags: argparse.Namespace, given: set[str], device: str) -> list[str]:
    """What is wrong with the flags, each a line that says what to do: what contradicts, and what would have no effect."""
    hub = flags.pretrained_model_name_or_path and not Path(flags.pretrained_model_name_or_path).exists()
    rules = [
        (not flags.pretrained_model_name_or_path, "no model is named; give --pretrained_model_name_or_path"),
        (not (flags.dataset_name or flags.train_data_dir), "no pictures are named; give --train_data_dir or --dataset_name"),
        (flags.resolution % 8 or flags.resolution <= 0, f"a side of {flags.resolution} is no multiple of 8; round it"),
        (flags.lr_scheduler not in SCHEDULES, f"no schedule {flags.lr_scheduler}; give one of {', '.join(SCHEDULES)}"),
        (flags.lr_scheduler == "constant" and "lr_warmup_steps" in given and flags.lr_warmup_steps,
         "a constant schedule has no warm-up; give --lr_scheduler=constant_with_warmup, or leave --lr_warmup_steps"),
        ("dream_detail_preservation" in given and not flags.dream_training,
         "--dream_detail_preservation has no effect without --dream_training; give both or neither"),
        (flags.offload_ema and not flags.use_ema, "--offload_ema has no effect without --use_ema; give both or neither"),
        (flags.foreach_ema and not flags.use_ema, "--foreach_ema has no effect without --use_ema; give both or neither"),
        (flags.offload_ema and device == "cpu", "--offload_ema has no effect on the CPU; leave it out"),
        (flags.allow_tf32 and device == "cpu", "--allow_tf32 has no effect on the CPU; leave it out"),
        (flags.use_8bit_adam and device == "cpu", "--use_8bit_adam needs a GPU; leave it out"),
        (flags.enable_xformers_memory_efficient_attention and device == "cpu", "xformers needs a GPU; leave it out"),
        ("validation_epochs" in given and not flags.validation_prompts,
         "--validation_epochs has no effect without --validation_prompts; give both or neither"),
        (not flags.push_to_hub and (flags.hub_token or flags.hub_model_id),
         "--hub_token and --hub_model_id have no effect without --push_to_hub; add it, or leave them out"),
        (flags.dataset_config_name and not flags.dataset_name,
         "--dataset_config_name has no effect without --dataset_name; give both or neither"),
        (not hub and (flags.revision or flags.non_ema_revision),
         "--revision and --non_ema_revision are of hub models, and the model is a folder; leave them out"),
        ("num_train_epochs" in given and flags.max_train_steps,
         "--max_train_steps overrides --num_train_epochs; give one of them"),
        (flags.report_to == "wandb" and flags.hub_token, "--hub_token would be shown to wandb; log in with `hf auth login`"),
        (flags.prediction_type not in (None, "epsilon", "v_prediction", "sample"),
         f"no prediction type {flags.prediction_type}; give epsilon, v_prediction or sample"),
        (flags.ray_workers < 0, "--ray_workers must be 0 or above; leave it out for none"),
        (flags.snr_gamma is not None and flags.snr_gamma <= 0, "--snr_gamma must be above 0; 5 is usual"),
    ]  # fmt: skip
    counts = (
        "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps", "num_train_epochs", "validation_epochs",
        "max_train_steps", "max_train_samples", "checkpoints_total_limit",
    )  # fmt: skip
    numbers = {name: getattr(flags, name) for name in counts}
    rules += [
        (n is not None and n <= 0, f"--{name} must be above 0; give a number or leave it out") for name, n in numbers.items()
    ]
    return [line for wrong, line in rules if wrong]


def training(flags: argparse.Namespace, pictures: int, world: int, precision: Precision) -> tuple[Training, float]:
    """The learner's configuration and learning rate."""
    size = flags.train_batch_size * flags.gradient_accumulation_steps * world
    epoch = math.ceil(pictures / size)
    steps = flags.max_train_steps or flags.num_train_epochs * epoch
    config = Training(
        method="full", steps=steps, batch_size=flags.train_batch_size,
        gradient_accumulation_steps=flags.gradient_accumulation_steps * world, lr_scheduler=SCHEDULES[flags.lr_scheduler],
        warmup_steps=0 if flags.lr_scheduler == "constant" else flags.lr_warmup_steps, max_grad_norm=flags.max_grad_norm,
        weight_decay=flags.adam_weight_decay, adam_beta1=flags.adam_beta1, adam_beta2=flags.adam_beta2,
        adam_epsilon=flags.adam_epsilon, ema_decay=EMA_DECAY if flags.use_ema else 0.0, ema_on_cpu=flags.offload_ema,
        rehearsal_share=0.0, caption_dropout=0.0, snr_gamma=flags.snr_gamma, noise_offset=flags.noise_offset,
        input_perturbation=flags.input_perturbation, prediction_type=flags.prediction_type,
        dream=flags.dream_detail_preservation if flags.dream_training else None, mixed_precision=precision,
        gradient_checkpointing=flags.gradient_checkpointing, use_8bit_adam=flags.use_8bit_adam,
        checkpoint_every=flags.checkpointing_steps, checkpoints_kept=flags.checkpoints_total_limit,
        held_out_every=steps, published="last", early_stop=0,
        sample_every=flags.validation_epochs * epoch if flags.validation_prompts else steps,
        seed=flags.seed or 0,
    )  # fmt: skip
    return config, flags.learning_rate * (size if flags.scale_lr else 1)
