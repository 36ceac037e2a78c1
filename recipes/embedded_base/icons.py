"""Icon sets from npm, rendered to RGBA: the raw art of the embedded base."""

import json
import subprocess
import tarfile
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pyvips

HERE = Path(__file__).parent
VOCABULARY = tomllib.loads((HERE / "vocabulary.toml").read_text())
THINGS: dict[str, str] = VOCABULARY["things"]
SETS: dict[str, dict[str, str]] = VOCABULARY["sets"]
STYLE_WORDS = {name: about["style"] for name, about in SETS.items()}


def fetch(downloads: Path) -> None:
    """Bring the pinned npm packages into `downloads`, one folder a set; nothing is fetched twice."""
    downloads.mkdir(parents=True, exist_ok=True)
    for name, about in SETS.items():
        target = downloads / name
        if (target / "icons.json").exists():
            continue
        tarball = subprocess.run(
            ["npm", "pack", "--silent", about["package"]], cwd=downloads, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        with tarfile.open(downloads / tarball) as archive:
            archive.extractall(downloads / "unpacked", filter="data")
        (downloads / "unpacked" / "package").rename(target)


def of_the_generator() -> list[str]:
    """The sets that the generator learns from; the judge alone sees the others."""
    return [name for name, about in SETS.items() if about["used_by"] == "generator"]


@cache
def read_set(folder: Path) -> dict:
    """The iconify JSON of one set."""
    return json.loads((folder / "icons.json").read_text())


def svg_of(folder: Path, icon: str) -> str | None:
    """A stand-alone SVG of one icon, or None where the set lacks it."""
    data = read_set(folder)
    found = data["icons"].get(icon) or data["icons"].get(icon.replace("-", ""))
    if found is None:
        return None
    width, height = (found.get(k, data.get(k, 16)) for k in ("width", "height"))
    box = f"{found.get('left', 0)} {found.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{width}" height="{height}">{found["body"]}</svg>'
    )


def render(svg: bytes, side: int) -> np.ndarray:
    """RGBA uint8 array, cropped to what is drawn, whose longer side is `side` pixels."""
    pyvips.operation_block_set("VipsForeignLoadSvg", False)  # Dovetail refuses SVG from users; this art is pinned
    first = pyvips.Image.svgload_buffer(svg, unlimited=True)
    rough = pyvips.Image.svgload_buffer(svg, scale=2.5 * side / max(first.width, first.height), unlimited=True)
    pixels = rough.numpy()
    rows, columns = (np.flatnonzero((pixels[..., 3] > 8).any(axis=a)) for a in (1, 0))
    box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    cropped = rough.crop(*(int(v) for v in box)).premultiply()
    return cropped.resize(side / max(box[2:])).unpremultiply().cast("uchar").numpy()


def load_icons(downloads: Path, set_names: list[str], side: int = 160) -> dict[tuple[str, str], np.ndarray]:
    """All icons of the vocabulary: (thing, set) -> RGBA array."""
    icons = {}
    for thing, icon in THINGS.items():
        for name in set_names:
            svg = svg_of(downloads / name, icon)
            if svg is not None:
                icons[thing, name] = render(svg.encode(), side)
    return icons


def load_broad(downloads: Path, set_names: list[str], count: int, side: int = 160) -> dict[tuple[str, str], np.ndarray]:
    """`count` further icons of each set, no held-out ones and no flags: the autoencoder is to see more than the vocabulary."""
    barred = {v.replace("-", "") for v in VOCABULARY["held_out"]["icons"]}
    icons = {}
    for name in set_names:
        usable = sorted(
            icon
            for icon, body in read_set(downloads / name)["icons"].items()
            if icon.replace("-", "") not in barred
            and not icon.startswith("flag")
            and not icon.endswith(("skin-tone", "light", "dark", "medium"))
            and len(body["body"]) < 20_000
        )
        for icon in np.random.default_rng(7).choice(usable, min(count, len(usable)), replace=False).tolist():
            icons[icon, name] = render(svg_of(downloads / name, icon).encode(), side)
    return icons


CELL = 32  # pixels of a cell of the sheet


def sheet(downloads: Path) -> np.ndarray:
    """Every icon that the generator learns from on light grey, uint8: a row for each thing's styles, 9 things side by side.

    Kept as `icons.png` beside this file, so that anyone (and a test) can look for televisions in it.
    """
    art = load_icons(downloads, of_the_generator(), side=CELL)
    sets, things = of_the_generator(), list(THINGS)
    across = 9
    rows = -(-len(things) // across)
    page = np.full((rows * CELL, across * len(sets) * CELL, 3), 232, np.uint8)
    for number, thing in enumerate(things):
        for k, name in enumerate(sets):
            picture = art[thing, name].astype(np.float32)
            height, width = picture.shape[:2]
            top = number // across * CELL + (CELL - height) // 2
            left = (number % across * len(sets) + k) * CELL + (CELL - width) // 2
            solid = picture[..., 3:] / 255
            cell = page[top : top + height, left : left + width]
            cell[:] = (picture[..., :3] * solid + cell * (1 - solid)).round().astype(np.uint8)
    return page
