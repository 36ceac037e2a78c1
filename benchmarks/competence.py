"""Whether a judge is right about itself: ten sets of real pictures, five that it can judge and five that it cannot.

    python -m benchmarks.competence --out build/competence

A judge is tried on each set as before an evaluation (`dovetail.evaluation.competence`). It should find itself able on things,
colors, icons and shapes with true captions, and not able where captions use words of no meaning, facts that cannot be seen,
random nouns, part numbers, or a script that it does not read. The icons come from sets that the embedded judge never saw. Under
--out: a folder and a contact sheet a set. Exit status 1 where it is right about fewer than nine.
"""

import argparse
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import drawings
from dovetail import bases
from dovetail.edges import pixels
from dovetail.evaluation import competence, opening
from dovetail.evaluation.caption_parts import nouns
from recipes.embedded_base import icons, scenes

PACKAGES = {"emojione": "@iconify-json/emojione@1.2.3", "ph": "@iconify-json/ph@1.2.2"}  # CC-BY-4.0; MIT
COUNT, BAR = 24, 9
Labeled = list[tuple[np.ndarray, str]]

LINE_ICONS = (
    "house", "envelope", "key", "umbrella", "bicycle", "car", "tree", "cat", "fish", "heart", "star", "camera", "clock", "book",
    "scissors", "hammer", "rocket", "bell", "gift", "anchor", "crown", "skull", "cloud", "moon",
)  # fmt: skip
INVENTED = ("blorp", "zindle", "fremmick", "quaffet", "trubb", "vosk")
JAPANESE = {
    "red": "赤い", "orange": "オレンジの", "yellow": "黄色い", "green": "緑の", "blue": "青い", "purple": "紫の",
    "black": "黒い", "white": "白い", "gray": "灰色の", "pink": "ピンクの", "teal": "青緑の",
    "chair": "椅子", "teapot": "急須", "lamp": "ランプ", "ladder": "はしご", "wristwatch": "腕時計", "backpack": "リュック",
    "bicycle": "自転車", "bottle": "瓶",
}  # fmt: skip
MAKERS = ("Maria Lopez", "Jan Novak", "Ada Lind", "Tom Reed", "Lea Blum", "Ivan Petrov", "Nora Weiss", "Sam Okoro")


def things() -> list[drawings.Drawing]:
    """Eight things, three drawings each, in many colors."""
    nouns = ("chair", "teapot", "lamp", "ladder", "wristwatch", "backpack", "bicycle", "bottle")
    order = drawings.pairs()
    turn = np.random.default_rng(5).permutation(len(order))
    found = []
    for i in range(COUNT):
        thing, (color, background) = nouns[i % len(nouns)], order[turn[i % len(order)]]
        picture = drawings.draw(thing, 200 + i, 5, color, background)
        found.append(drawings.Drawing(thing=thing, color=color, background=background, picture=picture))
    return found


def drawn_things(downloads: Path) -> Labeled:
    """Things by name and color."""
    return [(d.picture, d.caption) for d in things()]


def colors(downloads: Path) -> Labeled:
    """One thing; nothing but the colors tells the captions apart."""
    return [(d.picture, d.caption) for d in drawings.drawings("backpack", COUNT, 6)]


def color_icons(downloads: Path) -> Labeled:
    """Icons of the base's own things by hands that the judge never saw, on plain grounds."""
    rng, found = np.random.default_rng(7), []
    nouns = [n for n in icons.THINGS if icons.svg_of(fetched(downloads, "emojione"), icons.THINGS[n])]
    for noun in rng.choice(nouns, COUNT, replace=False).tolist():
        svg = icons.svg_of(fetched(downloads, "emojione"), icons.THINGS[noun])
        scene = scenes.draw_any(rng, [(noun, "emojione")], shares=(1.0,), placed=0.0)
        picture = scenes.paint_scene(rng, scene, {(noun, "emojione"): icons.render(str(svg).encode(), 160)}, side=128)
        ground = " to ".join(scene.background)
        found.append((picture, f"{scenes.article(noun)} on {drawings.article(ground)} background"))
    return found


def line_icons(downloads: Path) -> Labeled:
    """Black line icons on white."""
    found = []
    for noun in LINE_ICONS:
        svg = icons.svg_of(fetched(downloads, "ph"), noun)
        if svg is None:
            raise SystemExit(f"the icon set ph holds no {noun}")
        pasted = Image.new("RGB", (128, 128), "white")
        icon = Image.fromarray(icons.render(svg.encode(), 104))
        pasted.paste(icon, ((128 - icon.width) // 2, (128 - icon.height) // 2), icon)
        found.append((np.asarray(pasted), f"an icon of {scenes.article(noun)}"))
    return found


def shapes(downloads: Path) -> Labeled:
    """Circles, squares, triangles, stars, hearts and crosses in colors."""
    turns = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
    star = [(50 + r * np.cos(t), 52 + r * np.sin(t)) for t, r in zip(turns, (38, 16) * 5, strict=True)]
    wave = np.linspace(0, 2 * np.pi, 60)
    across = 50 + 2.2 * 16 * np.sin(wave) ** 3
    down = 48 - 2.2 * (13 * np.cos(wave) - 5 * np.cos(2 * wave) - 2 * np.cos(3 * wave) - np.cos(4 * wave))
    outlines: dict[str, list[tuple[float, float]]] = {
        "circle": [(50 + 34 * np.cos(t), 50 + 34 * np.sin(t)) for t in wave],
        "square": [(18, 18), (82, 18), (82, 82), (18, 82)],
        "triangle": [(50, 14), (88, 82), (12, 82)],
        "star": star,
        "heart": list(zip(across, down, strict=True)),
        "cross": [
            (38, 14), (62, 14), (62, 38), (86, 38), (86, 62), (62, 62), (62, 86), (38, 86), (38, 62), (14, 62),
            (14, 38), (38, 38),
        ],
    }  # fmt: skip
    order, rng, found = drawings.pairs(), np.random.default_rng(8), []
    turn = rng.permutation(len(order))
    for i in range(COUNT):
        name = list(outlines)[i % len(outlines)]
        color, background = order[turn[i % len(order)]]
        picture, size = Image.new("RGB", (512, 512), drawings.COLOURS[background]), rng.uniform(0.7, 1.1)
        points = [tuple(float(v) for v in (256 + (np.array(p) - 50) * 5.12 * size)) for p in outlines[name]]
        ImageDraw.Draw(picture).polygon(points, fill=drawings.COLOURS[color])
        found.append(
            (
                np.asarray(picture.resize((128, 128), Image.Resampling.BOX)),
                f"{drawings.named(name, color)} on {drawings.article(background)} background",
            )
        )
    return found


def invented_words(downloads: Path) -> Labeled:
    """Six kinds of creatures that do not exist, by names that no one has heard."""
    found = []
    for i in range(COUNT):
        kind = i % len(INVENTED)
        fixed, rng = np.random.default_rng([9, kind]), np.random.default_rng([10, i])
        corners, arms = int(fixed.integers(3, 9)), fixed.uniform(0.3, 0.9, 9)
        wave = np.linspace(0, 2 * np.pi, 120)
        reach = 1 + 0.45 * arms[0] * np.sin(corners * wave + rng.uniform(0, 6)) + 0.2 * np.sin(2 * wave + arms[1])
        points = [
            tuple(float(v) for v in (256 + 130 * r * np.array((np.cos(t), np.sin(t)))))
            for t, r in zip(wave, reach, strict=True)
        ]
        picture = Image.new("RGB", (512, 512), (226, 226, 230))
        pen = ImageDraw.Draw(picture)
        pen.polygon(points, fill=(96, 120, 140))
        for k in range(int(fixed.integers(1, 5))):
            x, y = 256 + 60 * np.cos(k * 1.7 + arms[2]), 256 + 60 * np.sin(k * 1.7 + arms[3])
            pen.ellipse([x - 16, y - 16, x + 16, y + 16], fill=(250, 250, 250))
        found.append((np.asarray(picture.resize((128, 128), Image.Resampling.BOX)), f"a {INVENTED[kind]}"))
    return found


def invisible_facts(downloads: Path) -> Labeled:
    """Chairs, told apart by who designed them and when."""
    rng = np.random.default_rng(11)
    return [
        (d.picture, f"a chair designed by {MAKERS[int(rng.integers(len(MAKERS)))]} in {int(rng.integers(1920, 2020))}")
        for d in drawings.drawings("chair", COUNT, 12)
    ]


def noise(downloads: Path) -> Labeled:
    """Colored noise, with captions of things at random."""
    rng, names = np.random.default_rng(13), list(scenes.COLOURS)
    found = []
    for noun in rng.choice(list(icons.THINGS), COUNT, replace=False).tolist():
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        ground = drawings.article(names[int(rng.integers(len(names)))])
        found.append(
            (np.asarray(coarse.resize((128, 128), Image.Resampling.BICUBIC)), f"{scenes.article(noun)} on {ground} background")
        )
    return found


def codes(downloads: Path) -> Labeled:
    """Drawings told apart by part numbers."""
    rng = np.random.default_rng(14)
    numbers = rng.permutation(80)[:COUNT]
    return [(d.picture, f"part {'ABCDEFGH'[n // 10]}{n % 10}") for d, n in zip(things(), numbers.tolist(), strict=True)]


def another_script(downloads: Path) -> Labeled:
    """Things with true captions in Japanese."""
    return [(d.picture, f"{JAPANESE[d.background]}背景に{JAPANESE[d.color]}{JAPANESE[d.thing]}") for d in things()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A set, and whether the embedded judge can judge it."""

    able: bool
    make: Callable[[Path], Labeled]


SETS = {
    "drawn things": Planted(able=True, make=drawn_things),
    "colors": Planted(able=True, make=colors),
    "color icons": Planted(able=True, make=color_icons),
    "line icons": Planted(able=True, make=line_icons),
    "shapes": Planted(able=True, make=shapes),
    "invented words": Planted(able=False, make=invented_words),
    "invisible facts": Planted(able=False, make=invisible_facts),
    "noise": Planted(able=False, make=noise),
    "codes": Planted(able=False, make=codes),
    "another script": Planted(able=False, make=another_script),
}


def fetched(downloads: Path, name: str) -> Path:
    """The folder of a pinned icon set from npm; nothing is fetched twice."""
    target = downloads / name
    if not (target / "icons.json").exists():
        downloads.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", PACKAGES[name]]
        tarball = subprocess.run(command, cwd=downloads, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(downloads / tarball) as archive:
            archive.extractall(target, filter="data")
        for file in (target / "package").iterdir():
            file.rename(target / file.name)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/competence"))
    parser.add_argument("--downloads", type=Path, default=Path("build/icons"), help="where the icon sets are kept")
    parser.add_argument("--judge", default="", help="as [evaluation] judge; empty means the embedded one")
    parser.add_argument("--only", nargs="+", choices=list(SETS), help="names of sets")
    args = parser.parse_args()
    judge = opening.open_judge(args.judge, bases.judge_folder(bases.EMBEDDED))
    general = nouns(bases.hints(bases.EMBEDDED).other)
    rows = {}
    print(f"{'set':<18}{'can judge':<11}{'says':<7}why")
    for name in args.only or SETS:
        labeled = SETS[name].make(args.downloads)
        folder = args.out / name.replace(" ", "-")
        drawings.write_rows(folder, [(picture, caption, "") for picture, caption in labeled])
        (args.out / f"{folder.name}.png").write_bytes(pixels.png(drawings.contact_sheet([p for p, _ in labeled], 12)))
        images, captions = [p for p, _ in labeled], [c for _, c in labeled]
        unseen = [n for n in general if n not in nouns(captions)]
        found = competence.try_judge(judge, images, captions, unseen)
        rows[name] = {"can judge": SETS[name].able, "right": found.able == SETS[name].able, **asdict(found)}
        mark = "" if rows[name]["right"] else "  WRONG ABOUT ITSELF"
        print(
            f"{name:<18}{'yes' if SETS[name].able else 'no':<11}{'yes' if found.able else 'no':<7}{found.reason}{mark}",
            flush=True,
        )
    (args.out / "competence.json").write_text(json.dumps(rows, indent=1) + "\n")
    right = sum(row["right"] for row in rows.values())
    print(f"right about itself on {right} of {len(rows)}")
    sys.exit(right < (BAR if len(rows) == len(SETS) else len(rows)))


if __name__ == "__main__":
    main()
