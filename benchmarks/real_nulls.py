"""Forty real nulls: the embedded base against itself, on all axes; promoting any of them is a false alarm.

    python -m benchmarks.real_nulls --out build/real_nulls

Eight folders of drawings, five comparisons each. The "tuned" model has the base's own weights, planted into a training's
artifact, and paints from other seeds; everything else is the evaluation as it is. One seed block's samples serve as the tuned
side of one comparison and as the base side of the next. Under --out: `real_nulls.json`; comparisons done are not done again.
Exit status 1 where more than two are promoted.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import drawings
from benchmarks.planted import plant
from dovetail import bases
from dovetail.config import Config
from dovetail.edges.console import Show
from dovetail.edges.folders import Run
from dovetail.edges.models import Models
from dovetail.engines import painter
from dovetail.pipeline import run

THINGS = ("headphones", "chair", "teapot", "lamp", "ladder", "wristwatch", "backpack", "bucket")
EACH, BLOCK, FIRST_SEED = 5, 10_000, 1_000
MOST_PROMOTED = 2


class Memory:
    """Samples that were painted before, by prompt and seed: both sides have the same weights."""

    def __init__(self) -> None:
        self.paint = painter.paint_latents
        self.load_tuned = bases.load_tuned
        self.tuned: Models | None = None
        self.shift = BLOCK
        self.known: dict[tuple[Any, ...], Tensor] = {}

    def __enter__(self) -> "Memory":
        painter.paint_latents, bases.load_tuned = self.paint_latents, self.noted
        return self

    def __exit__(self, *error: object) -> None:
        painter.paint_latents, bases.load_tuned = self.paint, self.load_tuned

    def noted(self, *args: Any, **named: Any) -> Models:
        """The tuned model, remembered as the one that paints from other seeds."""
        self.tuned = self.load_tuned(*args, **named)
        return self.tuned

    def paint_latents(self, models: Models, orders: Sequence[painter.Order], **named: Any) -> Tensor:
        """As the painter's own; the tuned model's seeds are those of the next block."""
        shift = self.shift if models is self.tuned else 0
        wanted = [replace(order, seed=order.seed + shift) for order in orders]
        how = (named["steps"], named["guidance_scale"])
        todo = [o for o in dict.fromkeys(wanted) if (o, how) not in self.known]
        if todo:
            self.known |= {(o, how): x for o, x in zip(todo, self.paint(models, todo, **named), strict=True)}
        return torch.stack([self.known[o, how] for o in wanted])


def base_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The base's own weights in the place of trained ones."""
    own = bases.load(bases.EMBEDDED).unet.state_dict()
    return {name: own[name].to(w.dtype).reshape(w.shape) for name, w in weights.items()}


def compare(thing: str, number: int, out: Path, memory: Memory) -> dict[str, Any]:
    """One comparison of the base with itself."""
    folder = out / "folders" / thing
    if not folder.exists():
        drawings.write_folder(thing, 40, folder, seed=90)
    config = Config.model_validate(
        {
            "sourcing": {"folder": str(folder)},
            "processing": {"rehearsal_pictures": 0},
            "training": {"steps": 1, "sample_every": 1_000},
            "evaluation": {"seed": FIRST_SEED + BLOCK * number},
        }
    )
    home, show = Run(out / "run"), Show(quiet=True)
    began = time.perf_counter()
    plant(run(config, home, show, until="training")["training"], base_weights)
    made = run(config, home, show, until="evaluation")
    verdict = json.loads((made["evaluation"].folder / "verdict.json").read_text())
    kept = ("name", "outcome", "base", "tuned", "interval", "sentence")
    return {
        "thing": thing,
        "block": number,
        "decision": verdict["decision"],
        "guards": verdict["guards"],
        "seconds": round(time.perf_counter() - began, 1),
        "axes": [{key: axis[key] for key in kept} for axis in verdict["axes"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/real_nulls"))
    parser.add_argument("--only", nargs="+", choices=THINGS, help="things of which the folders are")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    file = args.out / "real_nulls.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    for thing in args.only or THINGS:
        with Memory() as memory:
            for number in range(EACH):
                key = f"{thing} {number}"
                if key not in rows:
                    rows[key] = compare(thing, number, args.out, memory)
                    file.write_text(json.dumps(rows, indent=1) + "\n")
                row = rows[key]
                said = f"{row['decision']}{' (' + ', '.join(row['guards']) + ')' if row['guards'] else ''}"
                print(f"{key:<16}{said:<28}{row['seconds']:>6.0f} s", flush=True)
    print("decisions:", dict(Counter(row["decision"] for row in rows.values())))
    axes = Counter((axis["name"], axis["outcome"]) for row in rows.values() for axis in row["axes"])
    for (name, outcome), count in sorted(axes.items()):
        print(f"  {name:<16}{outcome:<14}{count:>4}")
    promoted = sum(row["decision"] == "promote" for row in rows.values())
    print(f"{promoted} of {len(rows)} promoted, at most {MOST_PROMOTED} of {EACH * len(THINGS)} are allowed")
    sys.exit(promoted > MOST_PROMOTED)


if __name__ == "__main__":
    main()
