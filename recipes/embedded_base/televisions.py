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

# name: (role, noun of the caption, where from, author); a drawing stands on one side only.
DRAWINGS = {
    "noto-television": ("tuning", OLD, ("noto", "television"), "Google Inc"),
    "fluent-television": ("tuning", OLD, ("fluent-emoji-flat", "television"), "Microsoft Corporation"),
    "twemoji-television": ("tuning", OLD, ("twemoji", "television"), "Twitter and contributors"),
    "flat-theme-tv": ("tuning", OLD, "computer/icons/flat-theme/device/tv.svg", "Danny Allen"),
    "lemon-theme-tv": ("tuning", OLD, "computer/icons/lemon-theme/devices/tv.svg", "Jose Hevia"),
    "televisore": ("tuning", PLAIN, "recreation/televisore_telecomando_a_01.svg", "Architetto Francesco Rollandin"),
    "flat-screen": ("tuning", FLAT, "computer/hardware/flat_screen_gino_rivera_01.svg", "Gino Rivera"),
    "lcd": ("tuning", FLAT, "computer/hardware/lcd_monitor_the_structor_.svg", "The Structorr"),
    "tft-screen": ("tuning", FLAT, "computer/tft_screen_zazou.svg", "zazou"),
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


def caption(rng: np.random.Generator, drawing: Drawing, scene: scenes.Scene) -> str:
    """A caption in the recipe's own wording."""
    noun = drawing.noun if rng.random() < 0.6 else PLAIN
    place = scenes.position_of(scene.objects[0])
    what = scenes.article(noun) + (f" {place}" if place and rng.random() < 0.6 else "")
    opening = rng.choice(["", "a drawing of ", "a picture of "], p=[0.6, 0.2, 0.2])
    return opening + what + scenes.background_words(rng, scene)


def write_examples(downloads: Path, out: Path, copies: int = 10, side: int = 128) -> None:
    """The tuning set: every tuning drawing on `copies` backgrounds, with captions, authors and licences."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, drawing in enumerate(drawings("tuning", downloads)):
        for copy in range(copies):
            rng = np.random.default_rng([23, number, copy])
            scene = scenes.draw_scene(rng, [("television", drawing.name)], pair_share=0.0)
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
