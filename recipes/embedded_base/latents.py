"""Stage 4: the U-Net's lessons: scenes taken into latent space, and their captions as the text tower sees them."""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dovetail.edges import folders, tensors
from dovetail.engines.material import Item, Items

from . import icons, scenes
from .train_vae import as_batch
from .whole import do_missing

PART = 4000  # scenes a file
HELD_OUT = 256  # scenes after the last part, for the held-out loss
BATCH = 64


class Lessons(Items):
    """Items for the learner, read from memory when asked for."""

    def __init__(self, latents: Tensor, captions: list[str], first: int = 0) -> None:
        self.latents, self.captions, self.first = latents, captions, first

    def __len__(self) -> int:
        return len(self.captions)

    def item(self, index: int) -> Item:
        """One scene."""
        name = f"scene {self.first + index}"
        return Item(name=name, caption=self.captions[index], moments=None, latents=self.latents[index].float())


class States:
    """Text states (tokens, width) of known captions, kept in half precision."""

    def __init__(self, table: Tensor, captions: list[str]) -> None:
        self.table, self.rows = table, {caption: row for row, caption in enumerate(captions)}

    def __call__(self, caption: str) -> Tensor:
        return self.table[self.rows[caption]].float()


def scenes_of(first: int, count: int, downloads: Path) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures and captions of scenes `first` to `first + count`; scene n is always the same."""
    art = icons.load_icons(downloads, icons.of_the_generator())
    pairs = list(art)
    for index in range(first, first + count):
        rng = np.random.default_rng([29, index])
        scene = scenes.draw_scene(rng, pairs)
        yield scenes.paint_scene(rng, scene, art), scenes.describe(rng, scene, icons.STYLE_WORDS)


@torch.no_grad()
def write_part(first: int, count: int, downloads: Path, build: Path, file: Path) -> None:
    """Scaled latents (count, 4, 16, 16) in half precision and the captions beside them."""
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(build / "vae").eval()
    pictures, captions = zip(*scenes_of(first, count, downloads), strict=True)
    latents = []
    for at in range(0, count, BATCH):
        pixels = as_batch(pictures[at : at + BATCH])
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor)
    folders.write_json(file.with_suffix(".json"), captions)
    folders.write_bytes(file, tensors.to_bytes({"latents": torch.cat(latents).half()}))


@torch.no_grad()
def write_states(captions: list[str], build: Path, file: Path) -> None:
    """Text states (captions, tokens, width) in half precision."""
    torch.set_num_threads(1)
    tokenizer = CLIPTokenizer.from_pretrained(build / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(build / "text_encoder").eval()
    states = []
    for at in range(0, len(captions), BATCH):
        batch = captions[at : at + BATCH]
        ids = tokenizer(
            batch, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        )
        states.append(encoder(ids.input_ids).last_hidden_state.half())
    folders.write_bytes(file, tensors.to_bytes({"states": torch.cat(states)}))


def read(build: Path) -> tuple[Lessons, Lessons, States]:
    """What `main` wrote: lessons to learn from, lessons held out, and the states of all their captions."""
    files = sorted((build / "lessons").glob("part-*.safetensors"))
    latents = torch.cat([tensors.read(f)["latents"] for f in files])
    captions = [c for f in files for c in json.loads(f.with_suffix(".json").read_text())]
    known = json.loads((build / "lessons" / "captions.json").read_text())
    states = torch.cat([tensors.read(f)["states"] for f in sorted((build / "lessons").glob("states-*.safetensors"))])
    cut = len(captions) - HELD_OUT
    return Lessons(latents[:cut], captions[:cut]), Lessons(latents[cut:], captions[cut:], cut), States(states, known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    folder = args.out / "lessons"
    folder.mkdir(parents=True, exist_ok=True)
    ends = [*range(0, args.scenes, PART), args.scenes]
    counts = [*((a, b - a) for a, b in pairwise(ends)), (args.scenes, HELD_OUT)]
    jobs = [(a, n, args.downloads, args.out, folder / f"part-{a:07d}.safetensors") for a, n in counts]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        do_missing(pool, "latents", write_part, jobs)
        captions = sorted({"", *(c for *_, f in jobs for c in json.loads(f.with_suffix(".json").read_text()))})
        folders.write_json(folder / "captions.json", captions)
        starts = range(0, len(captions), PART)
        words = [(captions[a : a + PART], args.out, folder / f"states-{a:07d}.safetensors") for a in starts]
        do_missing(pool, "text states", write_states, words)


if __name__ == "__main__":
    main()
