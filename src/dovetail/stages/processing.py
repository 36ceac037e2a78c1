"""Stage 5, data processing: pictures and words to latents and embeddings, cached by what they depend on."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dovetail import training_plan
from dovetail.config import Processing
from dovetail.core import buckets, digests
from dovetail.edges import adapters, pixels, tensors
from dovetail.edges.folders import Artifact, Desk, write_bytes, write_json, write_records
from dovetail.edges.models import Models
from dovetail.engines import encoder, painter
from dovetail.records import Example, Hints, LatentRow

BATCH = training_plan.REHEARSAL_BATCH
REHEARSAL_SEED = 50_000


def process(dataset: Artifact, base: Artifact, models: Models, config: Processing, hints: Hints, desk: Desk) -> None:
    """Dataset -> `latents.safetensors` (moments of every view), `captions.safetensors` (text states) and `records.jsonl`.

    What the base paints of the prompts of other things that came with it (`hints.rehearsal`) is learned along;
    `config.rehearsal_pictures` and `moved_views` are numbers here (`Processing.planned`).
    """
    assert config.rehearsal_pictures is not None and config.moved_views is not None
    examples = dataset.records(Example)
    side = config.resolution or models.resolution
    seen = encoder.Recipe(
        side=side, centre=config.centre_crop, flip=config.random_flip, resample="lanczos", vae=_part_digest(base, "vae/"),
        buckets=buckets.shapes(side, models.pixels_per_step) if config.buckets else (), moved=config.moved_views,
    )  # fmt: skip
    rows = [_row(example, replace(seen, moved=0)) for example in examples]
    moments = _moments(rows, examples, dataset.folder / "dataset", models, seen, desk)
    prompts = list(config.rehearsal_prompts) or hints.rehearsal
    rehearsed = [prompts[i % len(prompts)] for i in range(config.rehearsal_pictures)] if prompts else []
    captions = sorted({"", *(e.caption for e in examples), *rehearsed})
    write_bytes(desk.folder / "latents.safetensors", tensors.to_bytes(moments))
    states = _states(captions, models, desk)
    write_bytes(desk.folder / "captions.safetensors", tensors.to_bytes({str(i): states[c] for i, c in enumerate(captions)}))
    write_json(desk.folder / "captions.json", captions)
    if models.is_xl:
        _tell_xl(rows, examples, captions, models, seen, desk)
    write_json(desk.folder / "resolution.json", {"side": side, "long_captions": [c for c in captions if models.pieces(c) > 1]})
    if rehearsed:
        asked = digests.of_data([base.content, prompts, hints.guidance_scale, REHEARSAL_SEED, side])
        painted = _rehearsal(rehearsed, asked, side, hints.guidance_scale, models, desk)
        write_bytes(desk.folder / "rehearsal.safetensors", tensors.to_bytes({"latents": painted}))
        write_json(desk.folder / "rehearsal.json", {"asked": asked, "captions": rehearsed})
    write_records(desk.folder / "records.jsonl", rows)


def _row(example: Example, recipe: encoder.Recipe) -> LatentRow:
    item = digests.of_data([example.file.split("/")[1], recipe.digest])
    return LatentRow(
        item=item,
        key=example.key,
        split=example.split,
        caption=example.caption,
        name=example.name,
        file=example.file,
        row=0,
    )


def _part_digest(base: Artifact, prefix: str) -> str:
    return digests.of_files({k: v for k, v in base.manifest.files.items() if k.startswith(prefix)})


def _moments(
    rows: list[LatentRow],
    examples: list[Example],
    root: Path,
    models: Models,
    recipe: encoder.Recipe,
    desk: Desk,
) -> dict[str, Tensor]:
    """Item digest -> moments (views, 2c, h, w), and of training pictures `DIGEST.N` -> those of the moved view N.

    Each is encoded by itself and taken from an earlier artifact that holds it: more views or pictures change no other one.
    """
    moved = {row.item: recipe.moved if row.split == "train" else 0 for row in rows}
    wanted = {name for item, count in moved.items() for name in _names(item, count)}
    known: dict[str, Tensor] = {}
    for artifact in desk.before:
        known |= {k: v for k, v in tensors.read(artifact.folder / "latents.safetensors").items() if k in wanted}
    todo = [
        (row, example)
        for row, example in zip(rows, examples, strict=True)
        if not known.keys() >= set(_names(row.item, moved[row.item]))
    ]
    for row, example in desk.show.track(todo, "pictures to latents", len(todo)):
        cuts = encoder.as_pixels(
            encoder.cut_outs(pixels.read(root / row.file), replace(recipe, moved=moved[row.item]), example.key)
        )
        names, each = _names(row.item, moved[row.item]), 2 if recipe.flip else 1
        plain = len(cuts) - each * (len(names) - 1)
        for name, views in zip(names, torch.split(cuts, [plain, *(each for _ in names[1:])]), strict=True):
            if name not in known:
                known[name] = models.moments(views).cpu()
    return known


def _names(item: str, moved: int) -> list[str]:
    """Under which names the latents of a picture and of its moved views lie."""
    return [item, *(f"{item}.{n}" for n in range(moved))]


def _states(captions: list[str], models: Models, desk: Desk) -> dict[str, Tensor]:
    """Caption -> text states (tokens, width)."""
    batches = [captions[i : i + BATCH] for i in range(0, len(captions), BATCH)]
    found: dict[str, Tensor] = {}
    for part in desk.show.track(batches, "captions to embeddings", len(batches)):
        found |= encoder.embedded(models, part)
    return found


def _tell_xl(
    rows: list[LatentRow], examples: list[Example], captions: list[str], models: Models, recipe: encoder.Recipe, desk: Desk
) -> None:
    """What a Stable Diffusion XL is told beside the states: captions as wholes, sizes and crops of the cached views."""
    whole = {str(i): models.pooled([c])[0].cpu() for i, c in enumerate(captions)}
    write_bytes(desk.folder / "pooled.safetensors", tensors.to_bytes(whole))
    plain = replace(recipe, moved=0)
    sizes = {
        r.item: encoder.told(e.width, e.height, recipe if r.split == "train" else plain, e.key)
        for r, e in zip(rows, examples, strict=True)
    }
    sizes["rehearsal"] = torch.tensor([[recipe.side, recipe.side, 0, 0, recipe.side, recipe.side]], dtype=torch.float32)
    write_bytes(desk.folder / "sizes.safetensors", tensors.to_bytes(sizes))


def _rehearsal(prompts: list[str], asked: str, side: int, guidance_scale: float, models: Models, desk: Desk) -> Tensor:
    """Scaled latents (prompts, c, h, w) that the base paints, in four steps where it has a few-step version.

    Whole batches of an earlier artifact are used again: more or fewer pictures change no other one.
    """
    known = torch.zeros(0)
    for artifact in desk.before:
        file = artifact.folder / "rehearsal.json"
        if file.exists() and json.loads(file.read_text())["asked"] == asked:
            found = tensors.read(artifact.folder / "rehearsal.safetensors")["latents"]
            known = max(known, found, key=len)
    if len(known) < len(prompts):
        known = known[: len(known) // BATCH * BATCH]
    orders = [painter.Order(prompt=p, seed=REHEARSAL_SEED + i) for i, p in enumerate(prompts)][len(known) :]
    if not orders:
        return known[: len(prompts)]
    steps = training_plan.GUIDED_STEPS
    if adapters.has_few_steps(models.folder):
        # The models are this stage's own: nothing else asks the U-Net.
        adapters.take(models.unet, models.folder / adapters.FEW_STEP)
        steps, guidance_scale = training_plan.FEW_STEPS, 1.0
    with desk.show.bar("rehearsal pictures", len(orders)) as advance:
        painted = painter.paint_latents(
            models, orders, side=side // models.pixels_per_latent, steps=steps, guidance_scale=guidance_scale,
            batch_size=BATCH, on_batch=lambda n: advance(n, ""),
        )  # fmt: skip
    return torch.cat([known, painted]) if len(known) else painted
