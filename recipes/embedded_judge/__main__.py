"""The whole recipe in order: `python -m recipes.embedded_judge --package PACKAGE`. Run it again to go on where it stopped.

PACKAGE is npm's `@iconify/json` 2.2.535, unpacked (`npm pack @iconify/json@2.2.535`, then `tar xzf`).
"""

import argparse
from multiprocessing import get_context
from pathlib import Path

import torch

from . import lessons, pack, render, selection, train

HERE = Path(__file__).parents[2]
PARTS, LESSONS = 120, 1500  # files of 4,096 single drawings, lessons of 128 pictures
NAME_STEPS, CAPTION_STEPS = 4000, 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--build", type=Path, default=HERE / "build" / "embedded_judge")
    parser.add_argument("--judge", type=Path, default=HERE / "src" / "dovetail" / "base" / "judge")
    parser.add_argument("--processes", type=int, default=2, help="that draw the icons and make the lessons")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", type=int, default=PARTS)
    parser.add_argument("--lessons", type=int, default=LESSONS)
    parser.add_argument("--name-steps", type=int, default=NAME_STEPS)
    parser.add_argument("--caption-steps", type=int, default=CAPTION_STEPS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    render.draw_all(args.package, args.build / "art", [*render.invented(), *selection.select(args.package)], args.processes)
    art = lessons.Art(args.build / "art")
    print(lessons.counts(art), flush=True)
    with get_context("spawn").Pool(args.processes) as pool:
        pool.starmap(train.fill, [(args.build, args.parts, args.lessons, k, args.processes) for k in range(args.processes)])
    train.names(args.build, art, args.parts, args.name_steps)
    train.captions(args.build, art, args.parts, args.lessons, args.caption_steps)
    pack.pack(args.build, args.judge, args.package)


if __name__ == "__main__":
    main()
