"""The whole recipe in order: `python -m recipes.embedded_judge --package PACKAGE`. Run it again to go on where it stopped.

PACKAGE is npm's `@iconify/json` 2.2.535, unpacked (`npm pack @iconify/json@2.2.535`, then `tar xzf`).
"""

import argparse
from pathlib import Path

import torch

from . import drawings, lessons, pack, render, selection, train

HERE = Path(__file__).parents[2]
PARTS, LESSONS = 800, 4000  # files of 1,024 single drawings, lessons of 128 pictures
NAME_STEPS, CAPTION_STEPS = 12_000, 6_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--build", type=Path, default=HERE / "build" / "embedded_judge")
    parser.add_argument("--judge", type=Path, default=HERE / "src" / "dovetail" / "base" / "judge")
    parser.add_argument("--processes", type=int, default=2, help="that draw the icons")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", type=int, default=PARTS)
    parser.add_argument("--lessons", type=int, default=LESSONS)
    parser.add_argument("--name-steps", type=int, default=NAME_STEPS)
    parser.add_argument("--caption-steps", type=int, default=CAPTION_STEPS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    render.draw_all(args.package, args.build / "art", [*render.invented(), *selection.select(args.package)], args.processes)
    art = lessons.Art(args.build / "art")
    print(lessons.counts(art), flush=True)
    drawings.fill(args.build / "pool", art, args.parts)
    train.fill_lessons(args.build / "lessons", art, args.lessons)
    train.names(args.build, art, args.parts, args.name_steps)
    train.captions(args.build, art, args.parts, args.lessons, args.caption_steps)
    pack.pack(args.build, args.judge, args.package)


if __name__ == "__main__":
    main()
