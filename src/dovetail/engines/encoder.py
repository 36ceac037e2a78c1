"""The encoder: pictures through the VAE and captions through the text encoder once, kept by what they depend on.

Latents lie at CACHE/latents/<recipe>/<ab>/<picture>.safetensors, so that another run of the same pictures, with whatever
other flags, finds them; a picture that changes is another picture.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dovetail.core import buckets, crops, digests
from dovetail.edges import pixels, tensors
from dovetail.edges.folders import Showing, writing
from dovetail.edges.models import Models
from dovetail.engines.material import Item, Items
from dovetail.errors import BadInputError

AHEAD = 2  # pictures a decoding thread may be ahead of the VAE
CAPTIONS = 16  # a pass of the text encoder
WHITE = (255, 255, 255)  # shows through transparent pixels
MOST_STATES = 2 * 2**30  # bytes of text states that are kept in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a picture is seen."""

    side: int
    buckets: tuple[tuple[int, int], ...] = ()  # (width, height); none means squares
    centre: bool
    flip: bool
    resample: str
    vae: str  # digest of its files
    closer: int = 0  # random views of a part of the picture, beside those of the whole

    @property
    def digest(self) -> str:
        """Of all that latents depend on but the picture."""
        shapes = [list(shape) for shape in self.buckets]
        closer = [{"closer": self.closer, "most": crops.CLOSEST}] if self.closer else []
        return digests.of_data([2, self.side, self.centre, self.flip, self.resample, self.vae, *shapes, *closer])[:24]

    def views(self, width: int, height: int, key: str) -> tuple[tuple[int, int], list[crops.View]]:
        """The shape (width, height) that a picture of that size gets, and how it is seen."""
        shape = buckets.nearest(width, height, self.buckets) if self.buckets else (self.side, self.side)
        return shape, crops.views(width, height, shape, centre=self.centre, flip=self.flip, key=key, closer=self.closer)


def cut_outs(picture: np.ndarray, recipe: Recipe, key: str) -> np.ndarray:
    """uint8 (views, its height, its width, 3): every view of a picture (height, width, 3)."""
    shape, views = recipe.views(picture.shape[1], picture.shape[0], key)
    scaled = {
        size: pixels.resized(picture, *size, recipe.resample) for size in dict.fromkeys((v.width, v.height) for v in views)
    }
    cuts = [scaled[v.width, v.height][v.top : v.top + shape[1], v.left : v.left + shape[0]] for v in views]
    return np.stack([cut[:, ::-1] if view.mirrored else cut for cut, view in zip(cuts, views, strict=True)])


def told(width: int, height: int, recipe: Recipe, key: str) -> Tensor:
    """Float (views, 6): what a Stable Diffusion XL is told of each view of a picture of that size."""
    shape, views = recipe.views(width, height, key)
    return torch.tensor([crops.told(view, width, height, shape) for view in views], dtype=torch.float32)


def as_pixels(pictures: np.ndarray) -> Tensor:
    """Float (pictures, 3, height, width) in -1..1 of uint8 (pictures, height, width, 3)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


class Latents:
    """VAE moments (views, 2c, h, w) and sizes (views, 6) on disk, by picture."""

    def __init__(self, cache: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = cache / "latents" / recipe.digest, recipe

    def file(self, key: str) -> Path:
        """Where those of the picture with this SHA-256 lie."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        return tensors.read(self.file(key))

    def fill(
        self, models: Models, read: Callable[[int], bytes], keys: Mapping[int, str], workers: int, show: Showing
    ) -> dict[int, str]:
        """Encode what is not there yet of row number -> SHA-256. Returns row -> reason for pictures that cannot be read."""
        todo = [(key, i) for key, i in {k: i for i, k in keys.items()}.items() if not self.file(key).exists()]
        far = AHEAD * max(1, workers)
        faults: dict[str, str] = {}

        # Without torch, whose threads would crowd those of the VAE.
        def decoded(key: str, i: int) -> tuple[np.ndarray, tuple[int, int]] | str:
            try:
                picture = pixels.decode(read(i), WHITE).pixels
                return cut_outs(picture, self.recipe, key), (picture.shape[1], picture.shape[0])
            except BadInputError as error:
                return str(error)

        with ThreadPoolExecutor(max(1, workers)) as pool, show.bar("pictures to latents", len(todo)) as advance:
            ahead = deque(pool.submit(decoded, *job) for job in todo[:far])
            for (key, _), later in zip_longest(todo, todo[far:]):
                seen = ahead.popleft().result()
                if later:
                    ahead.append(pool.submit(decoded, *later))
                if isinstance(seen, str):
                    faults[key] = seen
                else:
                    views, size = seen
                    self._keep(key, models.moments(as_pixels(views)).cpu(), told(*size, self.recipe, key))
                advance(1, "")
        return {i: faults[key] for i, key in keys.items() if key in faults}

    def _keep(self, key: str, moments: Tensor, sizes: Tensor) -> None:
        file = self.file(key)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        tensors.write(temporary, {"moments": moments, "sizes": sizes})
        with writing(file):
            temporary.replace(file)


class Stored(Items):
    """Items whose moments are read from disk when asked for; `name` is the SHA-256 of the picture."""

    def __init__(self, latents: Latents, items: Sequence[Item]) -> None:
        self.latents, self.items = latents, items

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        """One with its moments."""
        item = self.items[index]
        kept = self.latents[item.name]
        return replace(item, moments=kept["moments"], sizes=kept["sizes"])


class States:
    """Text states (tokens, width) of captions, those of a long one longer, each computed once and kept while memory allows."""

    def __init__(self, models: Models) -> None:
        self.models, self.known, self.whole, self.bytes = models, dict[str, Tensor](), dict[str, Tensor](), 0

    def fill(self, captions: Sequence[str], show: Showing) -> None:
        """Compute those of many captions, up to what is kept in memory."""
        todo = sorted(set(captions) - self.known.keys())
        with show.bar("captions to embeddings", len(todo)) as advance:
            for first in range(0, len(todo), CAPTIONS):
                part = todo[first : first + CAPTIONS]
                if self.bytes < MOST_STATES:
                    self._keep(part)
                advance(len(part), "")

    def _keep(self, captions: list[str]) -> dict[str, Tensor]:
        states = embedded(self.models, captions)
        if self.bytes < MOST_STATES:
            self.known |= states
            self.bytes += sum(s.numel() * s.element_size() for s in states.values())
            if self.models.is_xl:
                self.whole |= {c: self.models.pooled([c])[0].cpu() for c in captions}
        return states

    def pooled(self, caption: str) -> Tensor:
        """What the second text encoder of a Stable Diffusion XL makes of one caption as a whole, (width,)."""
        return self.whole[caption] if caption in self.whole else self.models.pooled([caption])[0].cpu()

    def __call__(self, caption: str) -> Tensor:
        """The states of one caption."""
        return self.known[caption] if caption in self.known else self._keep([caption])[caption]


def embedded(models: Models, captions: Sequence[str]) -> dict[str, Tensor]:
    """Caption -> text states (tokens, width), those of a long caption longer."""
    groups: dict[int, list[str]] = {}
    for caption in captions:
        groups.setdefault(models.pieces(caption), []).append(caption)
    return {c: s for n, group in groups.items() for c, s in zip(group, models.embed(group, n).cpu(), strict=True)}
