"""What is learnt from: pictures in latent space with their captions, and the chance that each step plays with them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from dovetail.config import Training
from dovetail.core import buckets, diffusion, randomness
from dovetail.edges import folders, tensors
from dovetail.records import LatentRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A picture to learn from or to be tested on."""

    name: str  # what its noise, timestep, view and dropout are keyed by
    caption: str
    moments: Tensor | None  # (views, 2c, h, w); None where `latents` are given
    other_captions: tuple[str, ...] = ()  # each epoch takes one of all
    latents: Tensor | None = None  # (c, h, w), scaled
    noise: Tensor | None = None  # (c, h, w), where it is given and not drawn, as in a distillation
    timestep: int | None = None  # likewise
    sizes: Tensor | None = None  # (views, 6): what a Stable Diffusion XL is told of each view

    def still(self, scaling: float) -> Tensor:
        """Scaled latents (c, h, w) with no chance in them: the mean of the first view."""
        if self.latents is not None:
            return self.latents
        assert self.moments is not None
        return self.moments[0].chunk(2)[0] * scaling


class Items(Sequence[Item]):
    """Items that are made when asked for: a subclass says how many there are and makes one."""

    def item(self, index: int) -> Item:
        """The item at `index`, 0 to `len(self)` - 1."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """One item, or a list of them."""
        places = range(len(self))[index]
        return self.item(places) if isinstance(places, int) else [self.item(i) for i in places]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is learnt from, and what never is."""

    train: Sequence[Item]
    rehearsal: Sequence[Item]
    validation: Sequence[Item]
    test: Sequence[Item]
    states: Callable[[str], Tensor]  # caption -> (tokens, width)
    pooled: Callable[[str], Tensor] | None = None  # caption -> (width,), for a Stable Diffusion XL
    kinds: tuple[int, ...] = ()  # bucket of each item of `train`, where there are several
    key: str = ""  # digest of all that, where it is known: a checkpoint of other material is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A picture as one step sees it, all chance decided."""

    latents: Tensor  # (c, h, w), scaled
    noise: Tensor  # what the U-Net is asked for
    mixed_in: Tensor  # what it sees, mostly the same
    states: Tensor  # (tokens, width)
    timestep: int
    caption: str = ""
    added: Tensor | None = None  # (width + 6,): what a Stable Diffusion XL is told beside the states


def read_material(latents: folders.Artifact) -> Material:
    """What the processing stage left."""
    rows = latents.records(LatentRow)
    moments = tensors.read(latents.folder / "latents.safetensors")
    states, pooled, sizes = (_tensors(latents, name) for name in ("captions", "pooled", "sizes"))
    numbers = {caption: str(i) for i, caption in enumerate(json.loads((latents.folder / "captions.json").read_text()))}
    split = {
        name: [
            Item(name=r.item, caption=r.caption, moments=_views(moments, r), sizes=sizes.get(r.item))
            for r in rows
            if r.split == name
        ]
        for name in ("train", "validation", "test")
    }
    rehearsal = []
    if (latents.folder / "rehearsal.json").exists():
        captions = json.loads((latents.folder / "rehearsal.json").read_text())["captions"]
        painted = tensors.read(latents.folder / "rehearsal.safetensors")["latents"]
        rehearsal = [
            Item(name=f"rehearsal {i}", caption=c, moments=None, latents=p, sizes=sizes.get("rehearsal"))
            for i, (c, p) in enumerate(zip(captions, painted, strict=True))
        ]
    whole = (lambda caption: pooled[numbers[caption]]) if pooled else None
    known = sorted({item.moments.shape[2:] for item in split["train"] if item.moments is not None})
    kinds = tuple(known.index(item.moments.shape[2:]) for item in split["train"] if item.moments is not None)
    return Material(
        rehearsal=rehearsal, states=lambda caption: states[numbers[caption]], pooled=whole, key=latents.content,
        kinds=kinds if len(known) > 1 else (), **split,
    )  # fmt: skip


def _views(moments: dict[str, Tensor], row: LatentRow) -> Tensor:
    """Moments (views, 2c, h, w) of a picture, those of a training picture's moved views after those of the whole."""
    found = [moments[row.item]]
    while row.split == "train" and (more := moments.get(f"{row.item}.{len(found) - 1}")) is not None:
        found.append(more)
    return torch.cat(found)


def _tensors(latents: folders.Artifact, name: str) -> dict[str, Tensor]:
    file = latents.folder / f"{name}.safetensors"
    return tensors.read(file) if file.exists() else {}


def batch(material: Material, config: Training, step: int) -> list[tuple[Item, int]]:
    """The (item, epoch) pairs of one optimizer step: its share of rehearsal, the rest from the training pictures."""
    size = config.batch_size * config.gradient_accumulation_steps
    rehearsed = round(size * config.rehearsal_share) if material.rehearsal else 0
    if material.kinds:
        places = buckets.position(step, size - rehearsed, material.kinds, config.seed)
    else:
        places = randomness.position(step, size - rehearsed, len(material.train), config.seed)
    chosen = [(material.train[i], epoch) for i, epoch in places]
    if rehearsed:
        again = randomness.position(step, rehearsed, len(material.rehearsal), config.seed + 1)
        chosen += [(material.rehearsal[i], epoch) for i, epoch in again]
    return chosen


def timesteps(config: Training, step: int, size: int, count: int) -> list[int]:
    """One from each of `size` equal bands of 0..count-1, dealt at random to the rows of the global batch."""
    offsets = torch.rand(size, generator=randomness.generator(config.seed, "timestep", step))
    order = torch.randperm(size, generator=randomness.generator(config.seed, "bands", step))
    return diffusion.stratified_timesteps(offsets, count)[order].tolist()


def row(item: Item, epoch: int, timestep: int, config: Training, material: Material, scaling: float) -> Row:
    """View, noise, caption and caption dropout follow from (seed, picture, epoch)."""
    chance = randomness.generator(config.seed, item.name, epoch)
    view, dropped = torch.rand(2, generator=chance).tolist()
    latents, sizes = _latents(item, view, chance, scaling)
    noise = torch.randn(latents.shape, generator=chance) if item.noise is None else item.noise
    if config.noise_offset:
        noise = noise + config.noise_offset * torch.randn((len(noise), 1, 1), generator=chance)
    mixed_in = noise
    if config.input_perturbation:
        mixed_in = noise + config.input_perturbation * torch.randn(noise.shape, generator=chance)
    caption = "" if dropped < config.caption_dropout else _caption(item, epoch, config.seed)
    return Row(
        latents=latents, noise=noise, mixed_in=mixed_in, states=material.states(caption),
        timestep=timestep if item.timestep is None else item.timestep, caption=caption, added=added(caption, sizes, material),
    )  # fmt: skip


def added(caption: str, sizes: Tensor | None, material: Material) -> Tensor | None:
    """What a Stable Diffusion XL is told beside the states (width + 6,): the caption as a whole, and sizes (6,)."""
    if material.pooled is None or sizes is None:
        return None
    return torch.cat([material.pooled(caption), sizes])


def _caption(item: Item, epoch: int, seed: int) -> str:
    if not item.other_captions:
        return item.caption
    every = (item.caption, *item.other_captions)
    return every[int(torch.randint(len(every), (), generator=randomness.generator(seed, "caption", item.name, epoch)))]


def _latents(item: Item, view: float, chance: torch.Generator, scaling: float) -> tuple[Tensor, Tensor | None]:
    """Scaled latents of a view drawn at random, and what is told of that view."""
    if item.moments is None:
        return item.still(scaling), None if item.sizes is None else item.sizes[0]
    number = int(view * len(item.moments))
    moments = item.moments[number][None]
    spread = torch.randn(moments[:, : moments.shape[1] // 2].shape, generator=chance)
    return diffusion.sampled_latents(moments, spread, scaling)[0], None if item.sizes is None else item.sizes[number]
