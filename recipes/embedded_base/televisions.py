"""Television drawings: held out of the generator; a table of them is the shipped tuning set.

    python -m recipes.embedded_base.televisions

makes `examples/televisions` again from npm's `@iconify/json` and Debian's `openclipart-svg`.
"""

import argparse
import hashlib
import json
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from . import coloring, icons, scenes

ROOT = Path(__file__).parents[2]
TABLE = tomllib.loads(Path(__file__).with_name("televisions.toml").read_text())
PACKAGE: str = TABLE["source"]["package"]
OPENCLIPART = Path("/usr/share/openclipart/svg")  # Debian package openclipart-svg
PUBLIC_DOMAIN = "Public domain (Open Clip Art Library)"
OLD, FLAT, PLAIN = "old television with antennas", "flat-screen television", "television"
NAMES = (PLAIN, PLAIN, "TV", OLD, FLAT)  # what the judge hears a television called
BODIES = ("black", "brown", "black", "red", "black", "gray")  # of painted ones, in turn: what real televisions are seen in
SCREENS = {"blue": 7, "white": 3, "teal": 2}
LINES = {"black": 10, "brown": 2, "white": 1}
# How often a caption names what is there.
FACTS = {"antennas": 1.0, "knobs": 0.5, "legs": 0.5, "body": 1.0, "screen": 1.0, "kind": 0.85, "below": 0.25}
ATTRIBUTE = re.compile(rb'[\w:.-]+="[^"]*"')
SIZES = (0.8, 0.94)  # longer side of a television, share of the picture's side
APART = 110.0  # distance of two colors (RGB, levels) that lie side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    name: str
    kind: str  # "old", "flat" or ""
    parts: tuple[str, ...]  # what a caption may name
    body: str  # a color name, or "" where it has none
    screen: str
    author: str
    license: str
    source: str
    pixels: np.ndarray  # RGBA


def fetch(downloads: Path) -> Path:
    """The folder of npm's pinned collection of icon sets, brought there once."""
    folder = downloads / "iconify"
    if not (folder / "collections.json").exists():
        downloads.mkdir(parents=True, exist_ok=True)
        tarball = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=downloads, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        with tarfile.open(downloads / tarball) as archive:
            archive.extractall(downloads / "unpacked", filter="data")
        (downloads / "unpacked" / "package").rename(folder)
    return folder


@cache
def about_sets(folder: Path) -> dict:
    """Author and license of each set."""
    return json.loads((folder / "collections.json").read_text())


@cache
def icon_set(folder: Path, name: str) -> dict:
    """The iconify JSON of one set."""
    return json.loads((folder / "json" / f"{name}.json").read_text())


def icon_svg(folder: Path, where: str) -> bytes:
    """A stand-alone SVG of the icon `set:name`."""
    set_name, _, name = where.partition(":")
    data = icon_set(folder, set_name)
    found = data["icons"][name]
    left, top, width, height = (
        found.get(k, data.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{found["body"]}</svg>'.encode()


def clip_svg(where: str, view: str | None) -> bytes:
    """A clip of openclipart-svg; `view` is a larger viewBox for one whose own cuts the drawing off."""
    svg = (OPENCLIPART / where).read_bytes()
    if view is None:
        return svg
    start = svg.index(b"<svg")
    end = svg.index(b">", start)
    words = [w for w in ATTRIBUTE.findall(svg[start + 4 : end]) if not w.startswith((b"width=", b"height=", b"viewBox="))]
    width, height = view.split()[2:]
    box = f'viewBox="{view}" width="{width}" height="{height}"'.encode()
    return svg[:start] + b" ".join([b"<svg", box, *words]) + svg[end:]


def drawings(downloads: Path, side: int = 256) -> list[Drawing]:
    """The drawings of the tuning set, rendered."""
    table = TABLE["drawings"]
    bodies = fair([n for n, row in table.items() if "paint" in row])
    return [drawing(name, row, downloads, side, bodies.get(name, "")) for name, row in table.items()]


def fair(names: Iterable[str]) -> dict[str, str]:
    """A body color for each name, each as often as it stands in `BODIES`."""
    ordered = sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())
    return {name: BODIES[k % len(BODIES)] for k, name in enumerate(ordered)}


def seeded(*words: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:8], "big"))


def drawing(name: str, row: dict, downloads: Path, side: int, body: str) -> Drawing:
    """One row of the table, rendered and, where it asks for it, painted."""
    if "icon" in row:
        folder = fetch(downloads)
        about = about_sets(folder)[row["icon"].split(":")[0]]
        svg, author, license_ = icon_svg(folder, row["icon"]), about["author"]["name"], about["license"]["spdx"]
        source = f"{PACKAGE}: {row['icon']}"
    else:
        svg, author, license_ = clip_svg(row["clip"], row.get("view")), row["author"], PUBLIC_DOMAIN
        source = f"{TABLE['source']['clips']}: {row['clip']}"
    body, screen = row.get("body", body), row.get("screen", "")
    if "paint" in row:
        rng = seeded("paint", name, str(row.get("again", 0)))
        paint = choose(rng, body, row)
        alpha = icons.render(svg, coloring.SIDE)[..., 3]
        shape = {k: row[k] for k in ("stroke", "case", "glass") if k in row}
        pixels, body = coloring.colored(rng, alpha, paint, **shape)
        screen = paint.screen
    else:
        pixels = icons.render(svg, side)
    parts = tuple(row.get("parts", "").split())
    body = "" if "cabinet" in parts else body  # of which of the two would the color be told?
    told = {"author": author, "license": license_, "source": source}
    return Drawing(name=name, kind=row["kind"], parts=parts, body=body, screen=screen, pixels=pixels, **told)


def distance(a: str, b: str) -> float:
    """Of two colors by name, in levels."""
    return float(np.linalg.norm(np.subtract(scenes.COLOURS[a], scenes.COLOURS[b])))


def choose(rng: np.random.Generator, body: str, row: dict) -> coloring.Paint:
    """Colors that set body, screen and lines apart; the table may fix some of them."""

    def pick(weights: dict[str, int], *besides: str) -> str:
        usable = {c: w for c, w in weights.items() if all(distance(c, b) >= APART for b in besides)}
        names, shares = list(usable), np.array(list(usable.values()), float)
        return str(rng.choice(names, p=shares / shares.sum()))

    look = row["paint"] or str(rng.choice(["solid", "outlined", "ringed", "ringed"]))
    screen = row.get("screen") or pick(SCREENS, body)
    line = row.get("line") or pick(LINES, body, screen)
    shine = bool(rng.random() < 0.4)
    return coloring.Paint(
        body=body, screen=screen, line=line, outlined=look == "outlined" or (look == "ringed" and rng.random() < 0.6),
        ringed=look == "ringed", shine=shine,
    )  # fmt: skip


def invented(number: int, side: int = 160) -> tuple[str, np.ndarray]:
    """A noun and a television that no artist drew: body, screen, knobs, antennas, legs or stand, all by chance.

    The judge learns from many of them, so that it knows a television by its parts and not by five drawings.
    """
    rng = np.random.default_rng([37, number])

    def colour(low: int, high: int) -> str:
        return "#" + "".join(f"{v:02x}" for v in rng.integers(low, high, 3))

    flat = rng.random() < 0.35
    width, height = 200, int(rng.integers(110, 130) if flat else rng.integers(120, 175))
    body = colour(20, 90) if rng.random() < 0.5 else colour(90, 230)
    glass = ["#1d4a5c", "#55aaee", "#2f7f8f", "#101018", "#9fd8ff", "#808890", "#1848a8", "#3a3a42", "#b8c8d0", colour(0, 255)]
    screen = glass[rng.integers(len(glass))]
    edge = int(rng.integers(5, 13) if flat else rng.integers(10, 24))
    panel = 0 if flat or rng.random() < 0.35 else int(rng.integers(28, 52))
    round_body, round_screen = int(rng.integers(0, 12) if flat else rng.integers(4, 36)), int(rng.integers(0, 30))
    top = 70
    line = f'stroke="{colour(0, 60)}" stroke-width="{int(rng.integers(0, 7))}"'
    parts = []
    if not flat and rng.random() < 0.75:
        spread, rise, thick = rng.integers(20, 80), rng.integers(25, 66), rng.integers(3, 9)
        for sign in (-1, 1):
            tip = f"{130 + sign * spread} {top - rise}"
            parts.append(
                f'<path d="M130 {top} L{tip}" stroke="{colour(30, 160)}" stroke-width="{thick}" stroke-linecap="round"/>'
            )
    if flat or rng.random() < 0.3:
        foot = int(rng.integers(50, 130))
        base = colour(20, 200)
        parts.append(f'<rect x="120" y="{top + height}" width="20" height="20" fill="{base}"/>')
        parts.append(f'<ellipse cx="130" cy="{top + height + 22}" rx="{foot // 2}" ry="8" fill="{base}"/>')
    elif rng.random() < 0.6:
        for x, sign in ((70, -1), (190, 1)):
            leg = f"M{x} {top + height - 4} l{sign * int(rng.integers(0, 18))} {int(rng.integers(14, 36))}"
            parts.append(f'<path d="{leg}" stroke="{colour(20, 120)}" stroke-width="{int(rng.integers(6, 14))}"/>')
    parts.append(f'<rect x="30" y="{top}" width="{width}" height="{height}" rx="{round_body}" fill="{body}" {line}/>')
    inner = (30 + edge, top + edge, width - 2 * edge - panel, height - 2 * edge)
    frame = f'fill="{colour(0, 80)}"'
    parts.append(f'<rect x="{inner[0]}" y="{inner[1]}" width="{inner[2]}" height="{inner[3]}" rx="{round_screen}" {frame}/>')
    rim = int(rng.integers(0, 7))
    x, y, w, h = inner[0] + rim, inner[1] + rim, inner[2] - 2 * rim, inner[3] - 2 * rim
    parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{round_screen}" fill="{screen}"/>')
    if rng.random() < 0.5:
        points = ((0.15, 0.7), (0.45, 0.12), (0.65, 0.12), (0.3, 0.8))
        shine = "M" + " L".join(f"{x + w * a} {y + h * b}" for a, b in points) + " Z"
        parts.append(f'<path d="{shine}" fill="#ffffff" opacity="{rng.uniform(0.1, 0.45):.2f}"/>')
    for k in range(int(rng.integers(1, 5)) if panel else 0):
        cy = top + edge + 12 + k * max(14, (height - 2 * edge) // 5)
        cx, radius = 30 + width - edge - panel / 2 + 3, int(rng.integers(5, 11))
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="{radius}" fill="{colour(30, 255)}"/>')
    tilt = rng.uniform(-12, 12) if rng.random() < 0.25 else 0
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 260 310" width="260" height="310">'
    svg += f'<g transform="rotate({tilt:.1f} 130 150)">'
    noun = FLAT if flat else OLD if parts and "M130" in parts[0] else PLAIN
    return noun, icons.render((svg + "".join(parts) + "</g></svg>").encode(), side)


def noun_of(rng: np.random.Generator, drawing: Drawing) -> str:
    """What is seen: the kind, the colors of body and screen, and parts; most captions leave something out."""

    def told(fact: str) -> bool:
        return bool(rng.random() < FACTS[fact])

    kind = {"old": "old ", "flat": "flat-screen "}.get(drawing.kind, "") if told("kind") else ""
    color = f"{drawing.body} " if drawing.body and told("body") else ""
    words = f"{color}{kind}" if drawing.kind == "flat" else f"{kind}{color}"
    screen = [scenes.article(f"{drawing.screen} screen")] if drawing.screen and told("screen") else []
    facts = [part for part in ("antennas", "knobs", "legs") if part in drawing.parts and told(part)][: 2 - len(screen)] + screen
    below = [part for part in ("stand", "cabinet") if part in drawing.parts and told("below")]
    return f"{words}{PLAIN}" + (f" with {' and '.join(facts)}" if facts else "") + "".join(f" on a {part}" for part in below)


def caption(rng: np.random.Generator, drawing: Drawing, scene: scenes.Scene) -> str:
    """A caption in the recipe's own wording; the background is always told."""
    opening = rng.choice(["", "a drawing of ", "a picture of "], p=[0.7, 0.15, 0.15])
    said = opening + scenes.article(noun_of(rng, drawing))
    while not (ground := scenes.background_words(rng, scene)):
        pass
    return said + ground


def outer_colors(pixels: np.ndarray) -> np.ndarray:
    """RGB (n, 3) of the pixels along the outline of a drawing."""
    pixels = np.pad(pixels, ((6, 6), (6, 6), (0, 0)))
    solid = pixels[..., 3] > 127
    edge = solid & ~(np.roll(solid, 6, 0) & np.roll(solid, -6, 0) & np.roll(solid, 6, 1) & np.roll(solid, -6, 1))
    return pixels[..., :3][edge].astype(float)


def stands_out(drawing: Drawing, scene: scenes.Scene) -> bool:
    """Whether nine tenths of the drawing's outline and its screen differ from every color of the background."""
    outline = outer_colors(drawing.pixels)
    far = [np.linalg.norm(outline - np.array(scenes.COLOURS[c]), axis=1) > 100 for c in scene.background]
    apart = not drawing.screen or all(distance(drawing.screen, c) > 80 for c in scene.background)
    return apart and bool(np.logical_and.reduce(far).mean() > 0.9)


def scene_for(rng: np.random.Generator, drawing: Drawing) -> scenes.Scene:
    """A scene of one large television in the middle, on a background that it stands out from."""
    for _ in range(200):
        scene = scenes.draw_scene(rng, [("television", drawing.name)], shares=(1.0,))
        if stands_out(drawing, scene):
            break
    size, centre = rng.uniform(*SIZES), 0.5 + rng.uniform(-0.02, 0.02, 2)
    return replace(scene, objects=(replace(scene.objects[0], size=size, centre=tuple(centre.tolist())),))


def write_examples(downloads: Path, out: Path, side: int = 128) -> None:
    """The tuning set: one picture for each drawing, with caption, author and license."""
    out.mkdir(parents=True, exist_ok=True)
    rows, found = [], drawings(downloads)
    for drawing in found:
        rng = seeded("scene", drawing.name)
        scene = scene_for(rng, drawing)
        picture = scenes.paint_scene(rng, scene, {("television", drawing.name): drawing.pixels}, side=side)
        name = f"{drawing.name}.png"
        Image.fromarray(picture).save(out / name, optimize=True)
        row = {"file_name": name, "text": caption(rng, drawing, scene), "group": drawing.name}
        rows.append(row | {"author": drawing.author, "license": drawing.license, "source": drawing.source})
    (out / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    lines = [
        "# Where these pictures come from",
        "",
        "Drawings placed on plain backgrounds by `recipes/embedded_base/televisions.py`. Single-color icons are drawn anew in",
        "colors of our own, with their lines thickened.",
        "",
    ]
    lines += ["| drawing | author | license | source |", "|---|---|---|---|"]
    lines += [f"| {d.name} | {d.author} | {d.license} | {d.source} |" for d in found]
    (out / "ATTRIBUTION.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, default=ROOT / "build" / "embedded_base" / "icons")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples" / "televisions")
    args = parser.parse_args()
    write_examples(args.downloads, args.examples)


if __name__ == "__main__":
    main()
