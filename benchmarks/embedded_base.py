"""How good and how fast the embedded base is: 512 prompts that no training picture fits, seeds fixed, 30 steps.

    python benchmarks/embedded_base.py --downloads build/embedded_base/icons --out scores

The judge is the base's own, trained apart from it; the row "real" is what it says of real pictures of the same prompts, the
most that a painter could reach. Background colours are measured in the pixels. `--few` scores the few-step version.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from dovetail import bases
from dovetail.edges import adapters, pixels
from dovetail.edges import models as model_edge
from dovetail.engines import painter
from dovetail.evaluation.embedded_judge import EmbeddedJudge
from recipes.embedded_base import icons, prompts, scenes, train_vae

STEPS, FEW, SEED, AMONG = 30, 4, 9_000, 64
REFERENCE = 20_000  # training pictures that a sample is compared with
RIVALS = [*icons.THINGS, "television"]


def paint_real(asks: list[prompts.Ask], art: dict) -> list[np.ndarray]:
    """Real pictures of what is asked."""
    return [scenes.paint_scene(np.random.default_rng([47, i]), ask.scene, art) for i, ask in enumerate(asks)]


def first(judge: EmbeddedJudge, pictures: list[np.ndarray], own: list[str], rivals: list[list[str]]) -> np.ndarray:
    """Whether each picture's own caption scores above all its rivals, bool (pictures,)."""
    texts = sorted({*own, *(r for row in rivals for r in row)})
    vectors = torch.cat([judge.embed_texts(texts[i : i + 512]) for i in range(0, len(texts), 512)])
    number = {text: i for i, text in enumerate(texts)}
    seen = judge.joint_images(pictures)
    wins = []
    for picture, caption, others in zip(seen, own, rivals, strict=True):
        scores = vectors[[number[t] for t in (caption, *others)]] @ picture
        wins.append(bool((scores[0] > scores[1:]).all()))
    return np.array(wins)


def with_thing(ask: prompts.Ask, k: int, thing: str) -> str:
    """The prompt with another thing as object `k`."""
    objects = list(ask.scene.objects)
    objects[k] = replace(objects[k], thing=thing)
    return prompts.said(replace(ask.scene, objects=tuple(objects)), ask.wording)


def other_things(ask: prompts.Ask, k: int) -> list[str]:
    """The prompt with each other thing in the place of object `k`."""
    there = {o.thing for o in ask.scene.objects}
    return [with_thing(ask, k, thing) for thing in RIVALS if thing not in there]


def other_places(ask: prompts.Ask) -> list[str]:
    """The prompt with its one object at each other place."""
    objects = (replace(ask.scene.objects[0], centre=spot) for spot in scenes.SPOTS)
    return [t for o in objects if (t := prompts.said(replace(ask.scene, objects=(o,)), ask.wording)) != ask.prompt]


def other_styles(ask: prompts.Ask) -> list[str]:
    """The prompt with each other style."""
    scene = ask.scene
    styles = [s for s in prompts.STYLES if s != ask.style]
    return [
        prompts.said(replace(scene, objects=tuple(replace(o, style=s) for o in scene.objects)), ask.wording) for s in styles
    ]


def ground(picture: np.ndarray) -> str:
    """Name of the colour nearest to the middle value of the outermost two pixels."""
    edge = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, :2].reshape(-1, 3)])
    edge = np.median(np.concatenate([edge, picture[:, -2:].reshape(-1, 3)]), axis=0)
    return min(scenes.COLOURS, key=lambda c: float(np.abs(np.array(scenes.COLOURS[c]) - edge).sum()))


def quality(judge: EmbeddedJudge, asks: list[prompts.Ask], pictures: list[np.ndarray]) -> dict[str, float]:
    """The rows of the table, shares of 1."""
    named = {}
    for k in range(3):
        mine = [i for i, a in enumerate(asks) if len(a.scene.objects) > k]
        right = first(
            judge, [pictures[i] for i in mine], [asks[i].prompt for i in mine], [other_things(asks[i], k) for i in mine]
        )
        named |= {(i, k): bool(r) for i, r in zip(mine, right, strict=True)}
    whole = [all(named[i, k] for k in range(len(a.scene.objects))) for i, a in enumerate(asks)]
    count = np.array([len(a.scene.objects) for a in asks])
    both = [i for i, a in enumerate(asks) if count[i] == 2 and whole[i]]
    placed = [
        i for i, a in enumerate(asks) if count[i] == 1 and len(other_places(a)) == 8 and scenes.position_of(a.scene.objects[0])
    ]
    styled = [i for i, a in enumerate(asks) if a.style]

    def share(chosen: list[int], rivals: list[list[str]]) -> float:
        right = first(judge, [pictures[i] for i in chosen], [asks[i].prompt for i in chosen], rivals) if chosen else np.zeros(1)
        return float(right.mean())

    return {
        "one object": float(np.mean(np.array(whole)[count == 1])),
        "background": float(np.mean([ground(p) == a.scene.background[0] for p, a in zip(pictures, asks, strict=True)])),
        "two objects": float(np.mean(np.array(whole)[count == 2])),
        "their places, of those": share(both, [[prompts.said(scenes.exchanged(asks[i].scene), asks[i].wording)] for i in both]),
        "three objects": float(np.mean(np.array(whole)[count == 3])),
        "place of one object": share(placed, [other_places(asks[i]) for i in placed]),
        "style": share(styled, [other_styles(asks[i]) for i in styled]),
    }


def psnr(vae: AutoencoderKL, art: dict, count: int = 512) -> dict[str, float]:
    """Of held-out composites through the autoencoder and back, dB: mean of the pictures' own, and of their mean error."""
    pairs = list(art)
    rng = np.random.default_rng(53)
    pictures = [scenes.paint_scene(rng, scenes.draw_any(rng, pairs), art) for _ in range(count)]
    wanted = train_vae.as_batch(pictures)
    rebuilt, pooled = train_vae.there_and_back(vae, wanted)
    own = -10 * torch.log10((rebuilt - wanted).square().flatten(1).mean(1) / 4)
    return {"mean of the pictures": float(own.mean()), "of their mean error": pooled}


def judge_accuracy(judge: EmbeddedJudge, art: dict, rounds: int = 16) -> float:
    """How often a held-out picture's own caption comes first among 64."""
    rng = np.random.default_rng(59)
    hits = []
    for _ in range(rounds):
        drawn = [scenes.draw_any(rng, prompts.PAIRS) for _ in range(AMONG)]
        pictures = [scenes.paint_scene(rng, scene, art) for scene in drawn]
        texts = [prompts.said(scene, int(rng.integers(2**32))) for scene in drawn]
        logits = judge.joint_images(pictures) @ judge.embed_texts(texts).T
        same = torch.tensor([[a == b for b in texts] for a in texts])  # a caption that two scenes share is right for both
        hits += same[torch.arange(AMONG), logits.argmax(1)].float().tolist()
    return float(np.mean(hits))


def copies(judge: EmbeddedJudge, art: dict, asks: list[prompts.Ask], pictures: list[np.ndarray], out: Path) -> dict[str, float]:
    """Share of samples nearer to a training picture than 99 % of held-out pictures are; the nearest pairs as a picture."""
    pairs = list(art)
    vectors, kept = [], []
    for index in range(REFERENCE):
        rng = np.random.default_rng([29, index])  # the seeds of the lessons
        kept.append(scenes.paint_scene(rng, scenes.draw_scene(rng, pairs), art))
        if len(kept) % 2000 == 0:
            vectors.append(judge.embed_images(kept[-2000:]))
    train = torch.cat(vectors)
    near, which = (judge.embed_images(pictures) @ train.T).max(1)
    held_out = (judge.embed_images(paint_real(asks, art)) @ train.T).max(1).values
    limit = float(held_out.quantile(0.99))
    worst = near.argsort(descending=True)[:12].tolist()
    rows = [pictures[i] for i in worst] + [kept[int(which[i])] for i in worst]
    (out / "nearest.png").write_bytes(pixels.png(pixels.enlarged(pixels.grid(rows, 12), 2)))
    return {"share": float((near > limit).float().mean()), "limit": limit, "training pictures": REFERENCE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=bases.EMBEDDED)
    parser.add_argument("--judge", type=Path, help="another judge than the base's own")
    parser.add_argument("--downloads", type=Path, default=Path("build/embedded_base/icons"))
    parser.add_argument("--out", type=Path, default=Path("build/scores"))
    parser.add_argument("--prompts", type=int, default=512, help="fewer, for a quick look")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--few", action="store_true", help="the few-step version")
    args = parser.parse_args()
    icons.fetch(args.downloads)
    args.out.mkdir(parents=True, exist_ok=True)
    art = icons.load_icons(args.downloads, icons.of_the_generator())
    models, judge = bases.load(args.base), EmbeddedJudge(args.judge or args.base / "judge")
    every = prompts.scored()
    asks = every[:: max(1, len(every) // args.prompts)]
    if args.few:
        adapters.take(models.unet, models.folder / "few_step")
    orders = [painter.Order(prompt=ask.prompt, seed=SEED + i) for i, ask in enumerate(asks)]
    steps, guidance = (FEW, 1.0) if args.few else (args.steps, bases.hints(args.base).guidance_scale)
    fast = model_edge.in_bf16(models.unet)
    pictures = painter.paint(models, orders, steps=steps, guidance_scale=guidance, batch_size=32, unet=fast)
    found = {
        "prompts": len(asks),
        "vae psnr": psnr(models.vae, art),
        "judge among 64": judge_accuracy(judge, art),
        "painted": quality(judge, asks, pictures),
        "real": quality(judge, asks, paint_real(asks, art)),
        "copies": copies(judge, art, asks, pictures, args.out),
    }
    (args.out / "samples.png").write_bytes(pixels.png(pixels.grid(pictures, 32)))
    (args.out / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
