"""Stage 7, evaluation: is it really better than the base, on the test set, and what did it forget or copy?"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dovetail.config import Evaluation
from dovetail.core import statistics, verdicts
from dovetail.edges import pixels, plots
from dovetail.edges.folders import Artifact, Desk, write_bytes, write_json, write_records
from dovetail.edges.judge import Judge
from dovetail.edges.models import Models
from dovetail.engines import encoder, material, objective, painter
from dovetail.records import Example, Hints, Interval, ScoredSample

UNIT = "points of the judge's score (100 x cosine)"


def evaluate(
    dataset: Artifact,
    latents: Artifact,
    base: Models,
    tuned: Models,
    judge: Judge,
    hints: Hints,
    config: Evaluation,
    desk: Desk,
) -> None:
    """Checkpoint -> verdict: the same prompts and seeds painted by both models, scored by a judge that training never saw.

    `hints.other` are prompts of other things, not rehearsed, to see what was forgotten. Writes `verdict.json`,
    `records.jsonl` (every sample), the pictures and a plot.
    """
    examples = dataset.records(Example)
    wanted = _test_prompts(examples, config)
    prompts: list[tuple[str, Literal["target", "other"]]] = [(p, "target") for p in wanted]
    prompts += [(p, "other") for p in hints.other[: config.other_prompts]]
    per_prompt = {"target": config.seeds_per_prompt, "other": 1}
    wishes = [(prompt, axis) for prompt, axis in prompts for _ in range(per_prompt[axis])]
    orders = [(painter.Order(prompt=prompt, seed=config.seed + i), axis) for i, (prompt, axis) in enumerate(wishes)]
    painted = {}
    for who, models in (("base", base), ("tuned", tuned)):
        painted[who] = _paint_once(
            who, models, config.guidance_scale or hints.guidance_scale, [order for order, _ in orders], config, desk
        )
    samples = _scored(orders, painted, judge, examples, dataset, desk)
    gain, forgot = _gain(samples, "target"), _gain(samples, "other")
    copies = _copy_share(samples, judge, examples, dataset)
    facts = {
        "answer": verdicts.answer(gain),
        "sentence": verdicts.sentence(gain, forgot, "points"),
        "unit": UNIT,
        "gain": asdict(gain),
        "other": asdict(forgot),
        "named": {axis: _named(samples, axis) for axis in ("target", "other")},
        "copies": copies,
        "test_loss": _test_loss(material.read_material(latents), base, tuned),
        "test_pictures": sum(e.split == "test" for e in examples),
    }
    write_json(desk.folder / "verdict.json", {k: _finite(v) for k, v in facts.items()})
    points = {axis: [(s.base_score, s.tuned_score) for s in samples if s.axis == axis] for axis in ("target", "other")}
    write_bytes(desk.folder / "scores.png", plots.paired_scores(points["target"], points["other"], "judge's score"))
    write_records(desk.folder / "records.jsonl", samples)


def _finite(value: object) -> object:
    """JSON has no infinity: an open end of an interval is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _test_prompts(examples: list[Example], config: Evaluation) -> list[str]:
    """Different captions of the test split, evenly from all its groups, those first that training never read."""
    learnt = {e.caption for e in examples if e.split == "train"}
    queues: dict[str, list[str]] = {}
    for example in sorted((e for e in examples if e.split == "test"), key=lambda e: (e.caption in learnt, e.key)):
        queues.setdefault(example.group, []).append(example.caption)
    chosen: dict[str, None] = {}
    while any(queues.values()) and len(chosen) < config.max_prompts:
        for queue in queues.values():
            if queue and len(chosen) < config.max_prompts:
                chosen.setdefault(queue.pop(0))
    return list(chosen)


def _paint_once(
    who: str, models: Models, guidance_scale: float, orders: list[painter.Order], config: Evaluation, desk: Desk
) -> list[Path]:
    """Files of the pictures, painted batch by batch; those that an interrupted run left are not painted again."""
    root = desk.folder / "pictures" / who
    files = [root / f"{i:04d}.png" for i in range(len(orders))]
    with desk.show.bar(f"painting with the {who} model", len(orders)) as advance:
        for first in range(0, len(orders), config.batch_size):
            batch = slice(first, first + config.batch_size)
            if not all(f.exists() for f in files[batch]):
                painted = painter.paint(
                    models,
                    orders[batch],
                    steps=config.steps,
                    guidance_scale=guidance_scale,
                    batch_size=config.batch_size,
                )
                for file, picture in zip(files[batch], painted, strict=True):
                    write_bytes(file, pixels.png(picture))
            advance(len(files[batch]), "")
    return files


def _scored(
    orders: list[tuple[painter.Order, Literal["target", "other"]]],
    painted: dict[str, list[Path]],
    judge: Judge,
    examples: list[Example],
    dataset: Artifact,
    desk: Desk,
) -> list[ScoredSample]:
    texts = list(dict.fromkeys(order.prompt for order, _ in orders))
    words = judge.texts(texts)
    others = torch.tensor([any(o.prompt == t and axis == "other" for o, axis in orders) for t in texts])
    seen = {who: judge.pictures([pixels.read(f) for f in files]) for who, files in painted.items()}
    train = [e for e in examples if e.split == "train"]
    shown = judge.pictures([pixels.read(dataset.folder / "dataset" / e.file) for e in train])
    samples = []
    for i, (order, axis) in enumerate(orders):
        own = texts.index(order.prompt)
        scores = {who: vectors[i] @ words.T for who, vectors in seen.items()}
        near = seen["tuned"][i] @ shown.T
        best = int(near.argmax())
        # Named: the judge ranks the own prompt above the prompts of all other things.
        rivals = others.clone()
        rivals[own] = False
        named = {who: bool(s[own] > s[rivals].max()) if rivals.any() else True for who, s in scores.items()}
        samples.append(
            ScoredSample(
                prompt=order.prompt,
                seed=order.seed,
                axis=axis,
                base_score=round(100 * float(scores["base"][own]), 4),
                tuned_score=round(100 * float(scores["tuned"][own]), 4),
                base_named=named["base"],
                tuned_named=named["tuned"],
                base_file=_below(painted["base"][i], desk),
                tuned_file=_below(painted["tuned"][i], desk),
                nearest_name=train[best].name,
                nearest_file=train[best].file,
                nearest_similarity=round(float(near[best]), 4),
            )  # fmt: skip
        )
    return samples


def _test_loss(pictures: material.Material, base: Models, tuned: Models) -> dict[str, object]:
    """The step loss on the test pictures, fixed noise and timesteps: base, tuned, and the paired difference by picture."""
    if not pictures.test:
        return {"base": None, "tuned": None, "change": asdict(statistics.paired_interval([], []))}
    own, read = pictures, encoder.States(tuned)
    if tuned.text_taught:
        own = replace(pictures, states=read, pooled=read.pooled if tuned.is_xl else None)
    found = {
        who: objective.held_out_losses(m.unet, objective.Objective.of(m), pictures.test, told)
        for who, m, told in (("base", base, pictures), ("tuned", tuned, own))
    }
    means = {who: {name: float(np.mean(values)) for name, values in losses.items()} for who, losses in found.items()}
    names = sorted(means["base"])
    change = statistics.paired_interval([means["tuned"][n] - means["base"][n] for n in names], names)
    return {who: float(np.mean(list(values.values()))) for who, values in means.items()} | {"change": asdict(change)}


def _below(file: Path, desk: Desk) -> str:
    return file.relative_to(desk.folder).as_posix()


def _gain(samples: list[ScoredSample], axis: str) -> Interval:
    chosen = [s for s in samples if s.axis == axis]
    return statistics.paired_interval([s.tuned_score - s.base_score for s in chosen], [s.prompt for s in chosen])


def _named(samples: list[ScoredSample], axis: str) -> dict[str, float]:
    chosen = [s for s in samples if s.axis == axis]
    count = max(1, len(chosen))
    return {
        "base": sum(s.base_named for s in chosen) / count,
        "tuned": sum(s.tuned_named for s in chosen) / count,
        "samples": len(chosen),
    }


def _copy_share(samples: list[ScoredSample], judge: Judge, examples: list[Example], dataset: Artifact) -> dict[str, float]:
    """How often a sample lies nearer to a training picture than 99 % of the held-out pictures do."""
    files = {
        s: [dataset.folder / "dataset" / e.file for e in examples if e.split == s] for s in ("train", "validation", "test")
    }
    held_out = files["validation"] + files["test"]
    mine = [s.nearest_similarity for s in samples if s.axis == "target"]
    if not held_out or not mine:
        return {"share": 0.0, "held_out_pictures": len(held_out)}
    vectors = judge.pictures([pixels.read(f) for f in held_out]) @ judge.pictures([pixels.read(f) for f in files["train"]]).T
    reference = vectors.max(1).values.tolist()
    return {"share": statistics.share_above(mine, reference), "held_out_pictures": len(held_out)}
