"""What the embedded judge knows of sets and kinds of things that its training never saw.

    python -m recipes.embedded_judge.render --package PACKAGE --out build/embedded_judge
    python benchmarks/judge.py --build build/embedded_judge --out judge.json

PACKAGE is npm's `@iconify/json`, unpacked. Which sets and kinds were kept back stands in `recipes/embedded_judge/lists.toml`.
Drawings that are near copies of a training drawing of the same name are left out. Guessing gives 1/64 = 1.6 % (a half for
the captions with one word changed).
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovetail.evaluation.embedded_judge import BASE_JUDGE, LIKENESS, EmbeddedJudge
from recipes.embedded_judge import evaluate, lessons, selection

KNOWN_HANDS = 2  # hands that taught the judge a name: what only one drew does not count as known
BARS = {"sets never seen": 0.75, "the base's own things": 0.90, "kinds never seen": 0.60}


def shares(counts: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Share of right answers over all draws, and the lowest and highest draw."""
    rates = [right / asked for right, asked in counts]
    right, asked = (sum(c) for c in zip(*counts, strict=True))
    return {
        "right": round(right, 1),
        "asked": asked,
        "share": round(right / asked, 4),
        "spread": [round(min(rates), 4), round(max(rates), 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--build", type=Path, required=True, help="folder in which recipes.embedded_judge.render drew the icons"
    )
    parser.add_argument("--judge", type=Path, default=BASE_JUDGE)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--kind-draws", type=int, default=40)
    parser.add_argument("--layers", action="store_true", help="also every vector that could serve as likeness")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    judge = EmbeddedJudge(args.judge)
    art = lessons.Art(args.build / "art")
    trial = evaluate.Trial(args.build / "art", art)

    def as_images(pictures: Tensor) -> list[np.ndarray]:
        return list(((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())

    def score(pictures: Tensor, texts: list[str]) -> Tensor:
        return judge.joint_images(as_images(pictures)) @ judge.embed_texts(texts).T

    def embed(which: str) -> Callable[[Tensor], Tensor]:
        return lambda pictures: judge.vectors(as_images(pictures), which)

    names = trial.names(KNOWN_HANDS)
    draws = [np.random.default_rng([51, k]) for k in range(args.draws)]
    found: dict[str, Any] = {
        "judge": judge.name,
        "test": {
            "sets": selection.LISTS["held_out"]["sets"],
            "names known by two hands or more": len(names),
            "distinct words in them": len({w for n in names for w in n.split()}),
            "drawings": sum(len(trial.by_name[n]) for n in names),
            "near copies left out": trial.copies,
            "names by hands that taught them": dict(Counter(min(trial.hands[n], 10) for n in names).most_common()),
            "kinds never trained": len(trial.kinds),
        },
        "chance": round(1 / evaluate.AMONG, 4),
        "sets never seen": shares([trial.captions(r, score, trial.by_name, names) for r in draws]),
        "sets never seen, no shared word": shares([trial.captions(r, score, trial.by_name, names, apart=True) for r in draws]),
    }
    things = sorted({thing for drawn in trial.things.values() for thing in drawn})
    by_hand = {
        hand: [trial.captions(r, score, drawn, sorted(drawn), among=things) for r in draws]
        for hand, drawn in sorted(trial.things.items())
    }
    found["the base's own things"] = shares(
        [(sum(r), sum(a)) for r, a in (zip(*d, strict=True) for d in zip(*by_hand.values(), strict=True))]
    )
    found["the base's own things, by hand never seen"] = {hand: shares(counts) for hand, counts in by_hand.items()}
    by_hands = {}
    for low, high in ((2, 2), (3, 4), (5, 9), (10, 999)):
        some = [n for n in names if low <= trial.hands[n] <= high]
        by_hands[f"{low} to {high}"] = shares([trial.captions(r, score, trial.by_name, some) for r in draws[:2]])
    found["sets never seen, by hands that taught the name"] = by_hands
    kind_draws = [[53, k] for k in range(args.kind_draws)]
    layers = ["joint", "kind"] if args.layers else [LIKENESS]
    for layer in layers:
        label = "kinds never seen" + ("" if layer == LIKENESS else f" (by {layer})")
        found[label] = shares([trial.nearest(np.random.default_rng(k), embed(layer)) for k in kind_draws])
        one = [trial.nearest(np.random.default_rng(k), embed(layer), 1) for k in kind_draws]
        found[f"{label}, among one picture of each"] = shares(one)
    for what in ("thing", "color", "background"):
        label = f"one word changed: {what} (chance a half)"
        found[label] = shares([trial.one_word(r, score, names, what) for r in draws[:2]])
    found["bars"] = {k: {"bar": bar, "met": found[k]["share"] >= bar} for k, bar in BARS.items()}
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
