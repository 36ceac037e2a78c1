"""Drawings of things that the embedded base has no word for, made by code: headphones, chairs, teapots and others.

    python -m benchmarks.drawings --out build/drawings

writes one folder a thing (an imagefolder with captions) and one contact sheet a thing at 64 pixels. Parts, proportions and
ways of drawing are chosen by chance, so that no two drawings are alike and a held-out one was never seen.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyvips
from PIL import Image

from benchmarks.things import THINGS, Ink, Way
from dovetail.core.digests import unit_interval
from dovetail.edges import pixels
from recipes.embedded_base.scenes import COLOURS

SIDE = 128
BODIES = ("red", "orange", "yellow", "green", "blue", "purple", "black")
BACKGROUNDS = ("white", "gray", "yellow", "pink", "teal", "black", "blue", "green", "orange")
CONTRAST = 190  # least distance of body and background, sum of the three channels' differences
SHARES = {"test": 0.2, "validation": 0.15}  # Dovetail's defaults
LICENSE = {"author": "benchmarks/drawings.py", "license": "Apache-2.0"}

Split = Literal["train", "validation", "test"]
Row = tuple[np.ndarray, str, str]  # picture, caption, group


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture, uint8 (side, side, 3), with what is true of it."""

    thing: str
    color: str
    background: str
    picture: np.ndarray

    @property
    def caption(self) -> str:
        """'a red chair on a white background'."""
        return f"{named(self.thing, self.color)} on {article(self.background)} background"


def article(words: str) -> str:
    """'an orange', 'a red'."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def named(thing: str, color: str) -> str:
    """'a red chair', 'red headphones'."""
    return f"{color} {thing}" if thing == "headphones" else article(f"{color} {thing}")


def pairs(bodies: Sequence[str] = BODIES, backgrounds: Sequence[str] = BACKGROUNDS) -> list[tuple[str, str]]:
    """(body, background) colors that are well told apart."""
    return [(a, b) for a in bodies for b in backgrounds if a != b and _distance(a, b) >= CONTRAST]


def _distance(a: str, b: str) -> int:
    return sum(abs(x - y) for x, y in zip(COLOURS[a], COLOURS[b], strict=True))


def draw(thing: str, number: int, seed: int, color: str, background: str, side: int = SIDE) -> np.ndarray:
    """Picture of drawing `number` of a thing, uint8 (side, side, 3); its shape does not depend on the colors."""
    rng = np.random.default_rng([seed, number, *thing.encode()])
    way: Way = rng.choice(["solid", "outlined", "line"], p=[0.45, 0.45, 0.1])
    jitter = rng.uniform(-9, 9, (2, 3))
    body, ground = (np.array(COLOURS[c]) + j for c, j in zip((color, background), jitter, strict=True))
    lift = 70 if color == "black" else 0
    ink = Ink(
        body=_hex(body),
        dark=_hex(np.array((88, 90, 98)) if lift and background != "gray" else body * rng.uniform(0.45, 0.65)),
        light=_hex(body + lift + (255 - body) * rng.uniform(0.45, 0.65)),
        ground=_hex(ground),
        way=way,
        width=float(rng.uniform(2, 3.5)),
    )
    tilt, scale = rng.normal(0, 4), rng.uniform(0.86, 1.02)
    x, y = rng.uniform(-3, 3, 2)
    place = f"translate({50 + x:.2f} {50 + y:.2f}) rotate({tilt:.2f}) scale({scale:.3f}) translate(-50 -50)"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="{side}" height="{side}">'
    svg += f'<rect width="100" height="100" fill="{ink.ground}"/><g transform="{place}">{THINGS[thing](rng, ink)}</g></svg>'
    pyvips.operation_block_set("VipsForeignLoadSvg", False)  # Dovetail refuses SVG from users; this is our own
    return np.ascontiguousarray(pyvips.Image.svgload_buffer(svg.encode()).numpy()[..., :3])


def _hex(color: np.ndarray) -> str:
    return "#" + "".join(f"{int(v):02x}" for v in np.clip(color, 0, 255))


def drawings(thing: str, count: int, seed: int = 0, combinations: Sequence[tuple[str, str]] = ()) -> list[Drawing]:
    """`count` different drawings of a thing; the (body, background) colors go round, shuffled."""
    order = list(combinations) or pairs()
    turn = np.random.default_rng([seed, count]).permutation(len(order))
    found = []
    for number in range(count):
        color, background = order[turn[number % len(order)]]
        found.append(
            Drawing(thing=thing, color=color, background=background, picture=draw(thing, number, seed, color, background))
        )
    return found


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """An imagefolder of (picture, caption, group) rows; an empty group is none."""
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (picture, caption, group) in enumerate(rows):
        Image.fromarray(picture).save(out / f"{number:03d}.png")
        row = {"file_name": f"{number:03d}.png", "text": caption} | ({"group": group} if group else {}) | LICENSE
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (out / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def write_folder(thing: str, count: int, out: Path, seed: int = 0) -> None:
    """An imagefolder of `count` drawings of a thing, each with a true caption and a group of its own."""
    write_rows(out, [(d.picture, d.caption, f"{thing}-{seed}-{i}") for i, d in enumerate(drawings(thing, count, seed))])


def group_in(split: Split, number: int, seed: int = 0) -> str:
    """The `number`th group name that Dovetail's default shares put into a split: how a fault is planted on one side."""
    found, k = -1, -1
    while found < number:
        k += 1
        u = unit_interval("split", str(seed), f"drawing-{k}")
        mine = "test" if u < SHARES["test"] else "validation" if u < SHARES["test"] + SHARES["validation"] else "train"
        found += mine == split
    return f"drawing-{k}"


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 10, side: int = 64) -> np.ndarray:
    """Pictures side by side at the base's own size, uint8."""
    return pixels.grid([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BOX)) for p in pictures], columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/drawings"))
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for thing in THINGS:
        write_folder(thing, args.count, args.out / thing, args.seed)
        pictures = [d.picture for d in drawings(thing, args.count, args.seed)]
        (args.out / f"{thing}.png").write_bytes(pixels.png(contact_sheet(pictures)))


if __name__ == "__main__":
    main()
