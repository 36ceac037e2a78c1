"""Samples of the base and of the tuned model: the same prompts at the same seeds, painted once and kept."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dovetail.config import Evaluation
from dovetail.edges import pixels
from dovetail.edges.folders import Desk, write_bytes, write_json
from dovetail.edges.models import Models
from dovetail.engines import painter
from dovetail.records import Example

Group = Literal["held-out", "general"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One picture that both models are asked for."""

    prompt: str
    seed: int
    group: Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What one model painted: a file, a picture and whether its latents were numbers, for each that was asked."""

    files: list[Path]
    images: list[NDArray[np.uint8]]
    finite: list[bool]


def held_out_prompts(examples: Sequence[Example], most: int) -> list[Example]:
    """Test pictures with different captions, evenly from all groups; first those whose captions training never read."""
    learned = {e.caption for e in examples if e.split == "train"}
    queues: dict[str, list[Example]] = {}
    for example in sorted((e for e in examples if e.split == "test"), key=lambda e: (e.caption in learned, e.key)):
        queues.setdefault(example.group, []).append(example)
    chosen: dict[str, Example] = {}
    while any(queues.values()) and len(chosen) < most:
        for queue in queues.values():
            if queue and len(chosen) < most:
                example = queue.pop(0)
                chosen.setdefault(example.caption, example)
    return list(chosen.values())


def plan_samples(prompts: Sequence[str], general: Sequence[str], seeds: int, seed: int) -> list[Asked]:
    """Every held-out prompt at `seeds` seeds, then every general prompt at one; no seed twice."""
    wanted: list[tuple[str, Group]] = [(p, "held-out") for p in prompts for _ in range(seeds)]
    wanted += [(p, "general") for p in general]
    return [Asked(prompt=prompt, seed=seed + i, group=group) for i, (prompt, group) in enumerate(wanted)]


def paint_samples(
    who: str, models: Models, asked: Sequence[Asked], guidance_scale: float, config: Evaluation, desk: Desk
) -> Samples:
    """Paint what was asked, batch by batch, into `pictures/<who>`; batches that an interrupted run left are not painted again."""
    root = desk.folder / "pictures" / who
    files = [root / f"{i:04d}.png" for i in range(len(asked))]
    orders = [painter.Order(prompt=a.prompt, seed=a.seed) for a in asked]
    finite: list[bool] = []
    with desk.show.bar(f"sampling from the {who} model", len(orders)) as advance:
        for first in range(0, len(orders), config.batch_size):
            batch = slice(first, first + config.batch_size)
            note = root / f"{first:04d}.json"  # written last: which latents were numbers
            if not note.exists():
                latents = painter.paint_latents(
                    models, orders[batch], steps=config.steps, guidance_scale=guidance_scale, batch_size=config.batch_size
                )
                good = latents.isfinite().flatten(1).all(1)
                clean = torch.where(good[:, None, None, None], latents, torch.zeros_like(latents))
                for file, picture in zip(files[batch], painter.decoded(models, clean, config.batch_size), strict=True):
                    write_bytes(file, pixels.png(picture))
                write_json(note, good.tolist())
            finite += json.loads(note.read_text())
            advance(len(files[batch]), "")
    return Samples(files=files, images=[pixels.read(f) for f in files], finite=finite)


def seconds_per_sample(models: Models, guidance_scale: float, config: Evaluation) -> float:
    """Measured on one batch, which is thrown away; the first step of a model is no guide, so that a short batch goes before."""
    orders = [painter.Order(prompt="", seed=i) for i in range(config.batch_size)]
    painter.paint(models, orders[:1], steps=1, guidance_scale=guidance_scale)
    began = time.perf_counter()
    painter.paint(models, orders, steps=config.steps, guidance_scale=guidance_scale, batch_size=config.batch_size)
    return (time.perf_counter() - began) / len(orders)


def square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle square of a picture at the model's side, as training sees it."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = np.ascontiguousarray(image[top : top + edge, left : left + edge])
    return np.array(cut if edge == side else pixels.resized(cut, side, side))


def quadrants(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Four crops of half the height and width."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return [np.ascontiguousarray(image[y : y + height, x : x + width]) for y in (0, height) for x in (0, width)]
