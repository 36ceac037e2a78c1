"""Television drawings: held out of the generator; some are the shipped tuning set, others belong to the judge alone."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import icons, scenes

OPENCLIPART = Path("/usr/share/openclipart/svg")  # Debian package openclipart-svg
PUBLIC_DOMAIN = "Public domain (Open Clip Art Library)"
OLD, FLAT, PLAIN = "old television with antennas", "flat-screen television", "television"
NAMES = (PLAIN, PLAIN, "TV", OLD, FLAT)  # what the judge hears a television called

# name: (role, noun of the caption, where from, author); a drawing stands on one side only. Three are spare: at
# 64 pixels they turn into an arch, a grey slab and a grey blur.
DRAWINGS = {
    "noto-television": ("tuning", OLD, ("noto", "television"), "Google Inc"),
    "fluent-television": ("tuning", OLD, ("fluent-emoji-flat", "television"), "Microsoft Corporation"),
    "twemoji-television": ("tuning", OLD, ("twemoji", "television"), "Twitter and contributors"),
    "flat-theme-tv": ("spare", OLD, "computer/icons/flat-theme/device/tv.svg", "Danny Allen"),
    "lemon-theme-tv": ("tuning", OLD, "computer/icons/lemon-theme/devices/tv.svg", "Jose Hevia"),
    "televisore": ("spare", PLAIN, "recreation/televisore_telecomando_a_01.svg", "Architetto Francesco Rollandin"),
    "flat-screen": ("tuning", FLAT, "computer/hardware/flat_screen_gino_rivera_01.svg", "Gino Rivera"),
    "lcd": ("tuning", FLAT, "computer/hardware/lcd_monitor_the_structor_.svg", "The Structorr"),
    "tft-screen": ("spare", FLAT, "computer/tft_screen_zazou.svg", "zazou"),
    "fxemoji-television": ("judge", OLD, ("fxemoji", "television"), "Mozilla"),
    "television-thorp": ("judge", PLAIN, "electronics/television_alexander_d.__01.svg", "Alexander D. Thorp"),
    "tv-zazou": ("judge", PLAIN, "computer/tv_zazou.svg", "zazou"),
    "crt-screen": ("judge", PLAIN, "computer/hardware/video1_sergio_luiz_arauj_01.svg", "Sergio Luiz Araujo Silva"),
    "lcd-brown": ("judge", FLAT, "computer/hardware/lcd_monitor_shandy_brown_.svg", "Shandy Brown"),
    "fxemoji-screen": ("judge", FLAT, ("fxemoji", "personalcomputer"), "Mozilla"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    name: str
    noun: str
    author: str
    licence: str
    source: str
    pixels: np.ndarray  # RGBA


def drawings(role: str, downloads: Path, side: int = 256) -> list[Drawing]:
    """The drawings of one role, rendered."""
    found = []
    for name, (its_role, noun, where, author) in DRAWINGS.items():
        if its_role != role:
            continue
        if isinstance(where, tuple):
            svg = icons.svg_of(downloads / where[0], where[1]).encode()
            source, licence = f"{icons.SETS[where[0]]['package']}: {where[1]}", icons.SETS[where[0]]["licence"]
        else:
            svg, source, licence = (OPENCLIPART / where).read_bytes(), f"openclipart-svg: {where}", PUBLIC_DOMAIN
        pixels = icons.render(svg, side)
        found.append(Drawing(name=name, noun=noun, author=author, licence=licence, source=source, pixels=pixels))
    return found


def recoloured(pixels: np.ndarray, hue: float) -> np.ndarray:
    """The same drawing with its hues turned by `hue` (share of the circle)."""
    image = Image.fromarray(pixels[..., :3]).convert("HSV")
    turned = np.asarray(image).copy()
    turned[..., 0] = (turned[..., 0].astype(int) + round(hue * 256)) % 256
    return np.dstack([np.asarray(Image.fromarray(turned, "HSV").convert("RGB")), pixels[..., 3:]])


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


def caption(rng: np.random.Generator, drawing: Drawing, scene: scenes.Scene) -> str:
    """A caption in the recipe's own wording."""
    noun = drawing.noun if rng.random() < 0.6 else PLAIN
    place = scenes.position_of(scene.objects[0])
    what = scenes.article(noun) + (f" {place}" if place and rng.random() < 0.6 else "")
    opening = rng.choice(["", "a drawing of ", "a picture of "], p=[0.6, 0.2, 0.2])
    return opening + what + scenes.background_words(rng, scene)


def write_examples(downloads: Path, out: Path, copies: int = 14, side: int = 128) -> None:
    """The tuning set: every tuning drawing on `copies` backgrounds, with captions, authors and licences."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, drawing in enumerate(drawings("tuning", downloads)):
        for copy in range(copies):
            rng = np.random.default_rng([23, number, copy])
            scene = scenes.draw_scene(rng, [("television", drawing.name)], shares=(1.0,), placed=0.2)
            picture = scenes.paint_scene(rng, scene, {("television", drawing.name): drawing.pixels}, side=side)
            name = f"{drawing.name}-{copy + 1}.png"
            Image.fromarray(picture).save(out / name, optimize=True)
            row = {"file_name": name, "text": caption(rng, drawing, scene), "group": drawing.name}
            rows.append(row | {"author": drawing.author, "license": drawing.licence, "source": drawing.source})
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        "# Where these pictures come from",
        "",
        "Drawings placed on plain backgrounds by `recipes/embedded_base/televisions.py`.",
        "",
    ]
    lines += ["| drawing | author | licence | source |", "|---|---|---|---|"]
    lines += [f"| {d.name} | {d.author} | {d.licence} | {d.source} |" for d in drawings("tuning", downloads)]
    (out / "ATTRIBUTION.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--examples", type=Path, required=True)
    args = parser.parse_args()
    write_examples(args.downloads, args.examples)


if __name__ == "__main__":
    main()
