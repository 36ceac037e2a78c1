"""What three minutes of tuning on the shipped television pictures teach the embedded base, fully and as a LoRA.

    python benchmarks/tune_televisions.py --out build/tuning

For each method: `dovetail`'s own stages up to training, of which the seconds are counted; then 64 television prompts that are
no caption of the set, one seed each, and the share in which the base's judge names a television before every other thing; and
the same question for prompts of other things, before and after.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from dovetail import bases
from dovetail.config import Config
from dovetail.edges import models as model_edge
from dovetail.edges import pixels
from dovetail.edges.console import Show
from dovetail.edges.folders import Run
from dovetail.engines import painter
from dovetail.evaluation.embedded_judge import EmbeddedJudge
from dovetail.pipeline import run
from recipes.embedded_base import icons, scenes

ROOT = Path(__file__).parents[1]
NOUNS = ("television", "old television with antennas", "flat-screen television")  # the words of the set
PROMPTS, SEED, STEPS = 64, 77_000, 20


def unseen(captions: set[str]) -> list[tuple[str, str]]:
    """(noun, prompt) of 64 television prompts, none of them a caption of the set."""
    rng = np.random.default_rng(67)
    found: dict[str, str] = {}
    while len(found) < PROMPTS:
        noun = NOUNS[len(found) % len(NOUNS)]
        scene = scenes.draw_any(rng, [(noun, "noto")], shares=(1.0,), placed=0.2)
        prompt = scenes.describe(rng, scene, {"noto": ""})
        if prompt not in captions:
            found[prompt] = noun
    return [(noun, prompt) for prompt, noun in found.items()]


def named(judge: EmbeddedJudge, pictures: list[np.ndarray], asked: list[tuple[str, str]]) -> float:
    """Share of pictures whose own noun scores above every other thing in the same words; any television noun is right."""
    seen, right = judge.joint_images(pictures), []
    for picture, (noun, prompt) in zip(seen, asked, strict=True):
        own = [noun, *(n for n in NOUNS if noun in NOUNS and n != noun)]
        rivals = [t for t in (*icons.THINGS, *NOUNS) if t not in own]
        texts = [prompt.replace(scenes.article(noun), scenes.article(t)).replace(noun, t) for t in own + rivals]
        scores = judge.embed_texts(texts) @ picture
        right.append(bool(scores[: len(own)].max() > scores[len(own) :].max()))
    return float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tuning"))
    parser.add_argument("--steps", type=int, help="optimizer steps; else Dovetail's default")
    parser.add_argument("--methods", nargs="+", default=["full", "lora"])
    args = parser.parse_args()
    hints, judge = bases.hints(bases.EMBEDDED), EmbeddedJudge()
    rows = [json.loads(line) for line in (ROOT / "examples" / "televisions" / "metadata.jsonl").read_text().splitlines()]
    screens = unseen({row["text"] for row in rows})
    others = [(next(t for t in sorted(icons.THINGS, key=len, reverse=True) if t in p), p) for p in hints.other]
    for method in args.methods:
        training = {"method": method} | ({"steps": args.steps} if args.steps else {})
        config = Config.model_validate({"sourcing": {"folder": str(ROOT / "examples" / "televisions")}, "training": training})
        home = Run(args.out / method)
        run(config, home, Show(quiet=True), until="processing")
        began = time.perf_counter()
        made = run(config, home, Show(quiet=True), until="training")
        seconds = time.perf_counter() - began
        tuned = bases.load_tuned(bases.EMBEDDED, made["training"], config.training)
        models = {"base": bases.load(bases.EMBEDDED), "tuned": tuned}
        found: dict[str, dict[str, float]] = {}
        for who, model in models.items():
            for what, asked in (("televisions", screens), ("others", others)):
                orders = [painter.Order(prompt=p, seed=SEED + i) for i, (_, p) in enumerate(asked)]
                fast = model_edge.in_bf16(model.unet)
                painted = painter.paint(model, orders, steps=STEPS, guidance_scale=hints.guidance_scale, unet=fast)
                found.setdefault(who, {})[what] = named(judge, painted, asked)
                (args.out / f"{method}-{who}-{what}.png").write_bytes(pixels.png(pixels.grid(painted, 16)))
        print(json.dumps({"method": method, "training seconds": round(seconds, 1), **found}), flush=True)


if __name__ == "__main__":
    main()
