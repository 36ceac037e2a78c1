"""The launch command of the diffusers example `train_text_to_image.py`: its flags, names, defaults and meaning (0.40 to 0.42).

What the flags ask for is done by the parts that the ten stages use: the encoder, the learner, the painter.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dovetail import bases
from dovetail import flags as asked
from dovetail.core import digests
from dovetail.edges import compiler
from dovetail.engines.fused import SOURCES
from dovetail.errors import BadConfigError, BadInputError, StoppedError
from dovetail.records import Precision

if TYPE_CHECKING:
    from dovetail.edges.models import Models
    from dovetail.edges.tables import Table
    from dovetail.engines.material import Material

SAMPLE_STEPS, SAMPLE_SEED = 20, 0


def resume(flags: argparse.Namespace, out: Path) -> Path | None:
    """The checkpoint to start from, where one is named; checks that none is overwritten unasked."""
    from dovetail.engines import checkpoints

    wanted, there = flags.resume_from_checkpoint, checkpoints.every(out)
    if wanted is None:
        if there:
            raise BadConfigError(
                f"{out} holds {there[-1].name} of an earlier training",
                do="give --resume_from_checkpoint=latest to go on with it, or another --output_dir",
            )
        return None
    if wanted == "latest":
        return None  # the learner finds the newest that is whole
    named = next((p for p in (Path(wanted), out / Path(wanted).name) if p.is_dir()), None)
    if named is None:
        raise BadConfigError(
            f"there is no checkpoint {wanted}", do=f"give latest, or one of {', '.join(p.name for p in there) or 'none yet'}"
        )
    return named


def material(flags: argparse.Namespace, table: "Table", models: "Models", out: Path, show: Any) -> "Material":
    """Pictures and captions, encoded once: latents on disk, text states in memory."""
    from accelerate import PartialState

    from dovetail.edges.folders import write_rows
    from dovetail.edges.registry import default_root
    from dovetail.engines import encoder
    from dovetail.engines.material import Item, Material

    state = PartialState()
    captions = list(table.captions())
    keys = [digests.of_bytes(row.data) for row in show.track(table, "pictures", len(table))]
    recipe = encoder.Recipe(
        side=flags.resolution, centre=flags.center_crop, flip=flags.random_flip, resample=flags.image_interpolation_mode,
        vae=bases.part_digest(models.folder, "vae"),
    )  # fmt: skip
    kept = encoder.Latents(default_root().parent, recipe)
    mine = {i: keys[i] for i in range(state.process_index, len(keys), state.num_processes)}
    faults = kept.fill(models, lambda i: table[i].data, mine, flags.dataloader_num_workers, show)
    state.wait_for_everyone()
    lost = {i: faults.get(i, "another process could not read it") for i, key in enumerate(keys) if not kept.file(key).exists()}
    if lost and state.is_main_process:
        rows = [{"row": i, "name": table[i].name, "reason": reason} for i, reason in lost.items()]
        write_rows(out / "rejected.jsonl", rows)
        show.say(f"{len(lost)} of {len(table)} pictures cannot be read and are left out: {out / 'rejected.jsonl'}")
    good = [i for i in range(len(keys)) if i not in lost]
    if not good:
        raise BadInputError("none of the pictures can be read", do=f"see {out / 'rejected.jsonl'}")
    states = encoder.States(models)
    states.fill([c for i in good for c in captions[i]], show)
    items = encoder.Stored(
        kept, [Item(name=keys[i], caption=captions[i][0], other_captions=captions[i][1:], moments=None) for i in good]
    )
    key = digests.of_data([[keys[i], list(captions[i])] for i in good] + [recipe.digest])
    return Material(
        train=items,
        rehearsal=[],
        validation=[],
        test=[],
        states=states,
        pooled=states.pooled if models.is_xl else None,
        key=key,
    )


def finish(models: "Models", weights: dict[str, Any], variant: str | None, out: Path) -> None:
    """The pipeline in `out`: the U-Net with the trained weights, all else byte for byte the base's; read back and compared."""
    from dovetail.edges import adapters
    from dovetail.edges import models as edge
    from dovetail.edges.folders import write_bytes

    base = models.folder
    for file in sorted(f for part in bases.KEPT for f in (base / part).rglob("*") if f.is_file()):
        name = file.relative_to(base).as_posix()
        plain = name.replace(f".{variant}.", ".") if variant else name
        if plain == name and variant and list(file.parent.glob(f"*.{variant}.safetensors")) and name.endswith(".safetensors"):
            continue  # the variant that was trained on takes its place
        write_bytes(out / plain, file.read_bytes())
    if models.prediction:
        models.scheduler().save_pretrained(out / "scheduler")
    adapters.put(models.unet, weights, "full", 0, 0)
    edge.save_unet(models.unet, out / "unet", "float32")
    edge.same_unet(models.unet, out, "float32")
    write_bytes(out / "model_index.json", (base / "model_index.json").read_bytes())


def run(flags: argparse.Namespace, given: set[str]) -> Path:
    """What the flags ask for; returns the folder of the finished pipeline."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages; PyTorch reads it as it starts
    compiler.ahead(SOURCES)
    from accelerate import PartialState

    from dovetail.edges import hub, machine, tables
    from dovetail.edges.console import Show
    from dovetail.edges.folders import write_bytes, write_rows
    from dovetail.edges.tracker import Tracker
    from dovetail.engines import learner

    device = machine.pick_device()
    wrong = asked.faults(flags, given, device.type)
    if wrong:
        raise BadConfigError(wrong[0])
    if flags.ray_workers:
        return _on_a_cluster(flags, given, device.type == "cuda")
    state = PartialState(cpu=device.type == "cpu")
    device = state.device
    show, out = Show(quiet=not state.is_main_process), Path(flags.output_dir)
    start = resume(flags, out)
    pushed = flags.push_to_hub and state.is_main_process
    target = hub.prepare(flags.hub_model_id or out.resolve().name, flags.hub_token) if pushed else None
    table = tables.load(
        flags.dataset_name, flags.dataset_config_name, flags.train_data_dir, flags.cache_dir, flags.image_column,
        flags.caption_column,
    )  # fmt: skip
    table = tables.chosen(table, flags.max_train_samples, flags.seed or 0)
    models = _models(flags, device)
    told = material(flags, table, models, out, show)
    models.forget("vae", "text_encoder", "text_encoder_2")  # all that they had to say is kept
    config, rate = asked.training(flags, len(told.train), state.num_processes, _precision(flags))
    _set_device(flags, models)
    tracker = Tracker(
        flags.report_to if "report_to" in given else None, out / flags.logging_dir, flags.tracker_project_name,
        {k: v for k, v in vars(flags).items() if k not in ("hub_token", "local_rank")},
    )  # fmt: skip
    try:
        taught = learner.teach(
            models, told, config, rate, out, show, lambda step: _sample(flags, models, out, step), tracker.log, start,
            shard=flags.shard,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        raise StoppedError("stopped", do="add --resume_from_checkpoint=latest to go on from here") from stop
    tracker.close()
    if state.is_main_process:
        finish(models, taught.weights, flags.variant, out)
        write_rows(out / "curve.jsonl", taught.curve)
        from dovetail.edges import plots  # what it takes is room that the training wants

        write_bytes(out / "loss.png", plots.loss_curves(taught.curve, {}))
        show.say(f"the model is in {out}")
        if target:
            show.say(f"uploaded to {hub.upload(out, target, flags.hub_token, flags.logging_dir)}")
    state.wait_for_everyone()
    return out


def _on_a_cluster(flags: argparse.Namespace, given: set[str], on_gpus: bool) -> Path:
    """The same in each of Ray's processes; one that is replaced goes on from the newest checkpoint."""
    from dovetail.edges import cluster
    from dovetail.edges.console import Show

    out, same = Path(flags.output_dir).resolve(), argparse.Namespace(**vars(flags))
    resume(flags, out)
    for name in ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "cache_dir", "resume_from_checkpoint"):
        said = getattr(flags, name)
        if said and (name == "output_dir" or Path(said).exists()):
            setattr(same, name, str(Path(said).resolve()))  # the processes work in folders of their own
    same.ray_workers, same.resume_from_checkpoint = 0, same.resume_from_checkpoint or "latest"
    cluster.together(run, (same, given), flags.ray_workers, on_gpus, out, Show().say)
    return out


def _models(flags: argparse.Namespace, device: Any) -> "Models":
    from dovetail.edges import models as edge

    folder = bases.find(flags.pretrained_model_name_or_path, flags.revision, flags.cache_dir)
    unet = None
    if flags.non_ema_revision:
        unet = bases.find(flags.pretrained_model_name_or_path, flags.non_ema_revision, flags.cache_dir)
    if not (unet or folder).joinpath("unet").is_dir():
        raise BadConfigError(f"{folder} has no unet folder", do="give a whole diffusers folder")
    return edge.Models(folder, device, variant=flags.variant, unet_from=unet)


def _precision(flags: argparse.Namespace) -> Precision:
    """As the flag says, else as `accelerate launch` or its configuration does."""
    wanted = flags.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted not in ("no", "fp16", "bf16"):
        raise BadConfigError(f"no training in {wanted}", do="give --mixed_precision=bf16, fp16 or no")
    return cast(Precision, wanted)


def _set_device(flags: argparse.Namespace, models: "Models") -> None:
    """What the flags ask of a GPU."""
    import torch

    if flags.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if flags.enable_xformers_memory_efficient_attention:
        try:
            models.unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ModuleNotFoundError, ValueError) as error:
            raise BadConfigError("xformers is not installed", do="pip install xformers, or leave the flag out") from error


def _sample(flags: argparse.Namespace, models: "Models", out: Path, step: int) -> None:
    """A row of the validation prompts, each with its own seed and painted alone: a further prompt changes no other picture."""
    if not flags.validation_prompts:
        return
    from dovetail.edges import pixels
    from dovetail.edges.folders import write_bytes
    from dovetail.engines import painter

    orders = [painter.Order(prompt=p, seed=SAMPLE_SEED + i) for i, p in enumerate(flags.validation_prompts)]
    scale = bases.hints(models.folder).guidance_scale
    side = flags.resolution // models.pixels_per_latent
    latents = painter.paint_latents(models, orders, steps=SAMPLE_STEPS, guidance_scale=scale, batch_size=1, side=side)
    painted = painter.decoded(models, latents, batch_size=1)
    write_bytes(out / "samples" / f"step-{step:07d}.png", pixels.png(pixels.grid(painted, len(painted))))
