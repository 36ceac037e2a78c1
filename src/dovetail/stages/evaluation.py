"""Stage 7, evaluation: is the tuned model better than its base? Evidence on several axes, and one rule."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from dovetail.config import Evaluation
from dovetail.edges import pixels, plots
from dovetail.edges.folders import Artifact, Desk, write_bytes, write_json, write_records
from dovetail.edges.models import Models
from dovetail.engines import encoder, material
from dovetail.errors import ModelError
from dovetail.evaluation import evidence, losses, opening, planning, samples, verdict
from dovetail.evaluation.general_prompts import GENERAL_PROMPTS
from dovetail.evaluation.judges import ImageEncoder, Judge
from dovetail.records import Example, Hints, LatentRow, ScoredSample


def evaluate(
    dataset: Artifact,
    latents: Artifact,
    base: Models,
    tuned: Models,
    production: Models | None,
    judge_folder: str,
    hints: Hints,
    config: Evaluation,
    desk: Desk,
) -> None:
    """Tuned weights -> `verdict.json` (axes and decision), `records.jsonl` (every sample), the samples and a plot.

    `production` is the model that the tuned one would replace, `judge_folder` what judges where the configuration names nothing
    else.
    """
    judge, questioner, image_encoder = _open_judges(judge_folder, config, desk)
    examples = dataset.records(Example)
    guidance = config.guidance_scale or hints.guidance_scale
    plan = _plan(examples, base, guidance, hints, config, desk)
    chosen = samples.held_out_prompts(examples, plan.prompts)
    prompts = [e.caption for e in chosen]
    general = _general_prompts(hints)[: plan.general]
    asked = samples.plan_samples(prompts, general, plan.seeds, config.seed)
    models = {"base": base, "tuned": tuned} | ({"production": production} if production else {})
    painted = {who: samples.paint_samples(who, m, asked, guidance, config, desk) for who, m in models.items()}
    pictures = _pictures(dataset, examples, chosen, general, plan.seeds, painted, base)
    measured = losses.measure(material.read_material(latents), base, tuned)
    groups = {e.key: e.group for e in examples}
    by_item = {row.item: groups[row.key] for row in latents.records(LatentRow)}
    found = evidence.collect(pictures, measured, by_item, judge, questioner, image_encoder, desk.show.say)
    decision = verdict.decide(found.axes)
    desk.show.say(verdict.headline(decision))
    facts = {
        **asdict(decision), "headline": verdict.headline(decision), "axes": [asdict(a) for a in found.axes],
        **evidence.as_json(found),
        "prompts": len(prompts), "seeds_per_prompt": plan.seeds, "test_pictures": sum(e.split == "test" for e in examples),
    }  # fmt: skip
    write_json(desk.folder / "verdict.json", _finite(facts))
    rows = _records(asked, painted, found, [e for e in examples if e.split == "train"], desk)
    write_bytes(
        desk.folder / "scores.png", plots.paired_scores(_points(rows, "held-out"), _points(rows, "general"), "judge's score")
    )
    write_records(desk.folder / "records.jsonl", rows)


def _general_prompts(hints: Hints) -> list[str]:
    return list(hints.other or GENERAL_PROMPTS)


def _plan(
    examples: Sequence[Example], base: Models, guidance: float, hints: Hints, config: Evaluation, desk: Desk
) -> planning.SamplePlan:
    """As configured; under `minutes` what fits, kept beside the samples so that an interrupted run keeps its plan."""
    prompts = len(samples.held_out_prompts(examples, len(examples)))
    if config.minutes is None:
        return planning.SamplePlan(
            prompts=min(prompts, config.max_prompts), seeds=config.seeds_per_prompt, general=config.other_prompts
        )
    file = desk.folder / "plan.json"
    if not file.exists():
        seconds = samples.seconds_per_sample(base, guidance, config)
        general = min(len(_general_prompts(hints)), config.other_prompts)
        write_json(file, asdict(planning.plan_within(config.minutes, seconds, prompts, general)))
    plan = planning.SamplePlan(**json.loads(file.read_text()))
    desk.show.say(f"{config.minutes:g} minutes: {plan.prompts} prompts, {plan.seeds} seeds, {plan.general} general prompts")
    return plan


def _open_judges(folder: str, config: Evaluation, desk: Desk) -> tuple[Judge | str, Judge | str | None, ImageEncoder]:
    """The judge, the one that is asked about parts, and what embeds pictures. One that cannot be had is the reason why.

    Pictures are embedded by the judge where it can, else by the embedded one.
    """
    endpoint = opening.Endpoint(
        url=config.vision_url, model=config.vision_model, key_env=config.vision_key_env,
        timeout_seconds=config.vision_timeout_seconds,
    )  # fmt: skip
    judge = _opened(lambda: opening.open_judge(config.judge, folder, endpoint), "judge", desk)
    questioner = _opened(lambda: opening.open_question_judge(config.question_judge, endpoint), "question judge", desk)
    assert judge is not None
    return judge, questioner, judge if isinstance(judge, ImageEncoder) else opening.embedded_encoder()


def _opened(open_it: Callable[[], Judge | None], what: str, desk: Desk) -> Judge | str | None:
    try:
        return open_it()
    except ModelError as error:
        desk.show.say(f"no {what}: {error}")
        return str(error)


def _pictures(
    dataset: Artifact, examples: Sequence[Example], chosen: Sequence[Example], general: list[str], seeds: int,
    painted: dict[str, samples.Samples], base: Models,
) -> evidence.Pictures:  # fmt: skip
    side, count = base.resolution, len(chosen) * seeds

    def read(wanted: Sequence[Example]) -> list[np.ndarray]:
        return [samples.square(pixels.read(dataset.folder / "dataset" / e.file), side) for e in wanted]

    train, held_out = [e for e in examples if e.split == "train"], [e for e in examples if e.split != "train"]
    real = read(chosen)
    return evidence.Pictures(
        prompts=[e.caption for e in chosen], seeds=seeds, base=painted["base"].images[:count],
        tuned=painted["tuned"].images[:count], tuned_finite=painted["tuned"].finite[:count],
        production=painted["production"].images[:count] if "production" in painted else [], real=real, general=general,
        general_base=painted["base"].images[count:], general_tuned=painted["tuned"].images[count:], held_out=read(held_out),
        held_out_captions=[e.caption for e in held_out], held_out_groups=[e.group for e in held_out], train=read(train),
        train_groups=[e.group for e in train], reconstructed=[_reconstructed(image, base) for image in real],
    )  # fmt: skip


def _reconstructed(image: np.ndarray, base: Models) -> np.ndarray:
    moments = base.moments(encoder.as_pixels(image[None]))
    mean = moments.chunk(2, dim=1)[0]
    return np.asarray(base.decode(mean * base.vae_shape["scaling_factor"])[0])


def _records(
    asked: Sequence[samples.Asked],
    painted: dict[str, samples.Samples],
    found: evidence.Evidence,
    train: Sequence[Example],
    desk: Desk,
) -> list[ScoredSample]:
    base = [*found.scores.get("base", []), *found.scores.get("general base", [])]
    tuned = [*found.scores.get("tuned", []), *found.scores.get("general tuned", [])]
    rows = []
    for i, order in enumerate(asked):
        nearest, similarity = found.nearest[i] if i < len(found.nearest) else (None, 0.0)
        rows.append(
            ScoredSample(
                prompt=order.prompt, seed=order.seed, group=order.group, base_score=_score(base, i),
                tuned_score=_score(tuned, i),
                base_file=painted["base"].files[i].relative_to(desk.folder).as_posix(),
                tuned_file=painted["tuned"].files[i].relative_to(desk.folder).as_posix(),
                nearest_name=train[nearest].name if nearest is not None else "",
                nearest_file=train[nearest].file if nearest is not None else "",
                nearest_similarity=round(similarity, 4), broken=found.faults[i] if i < len(found.faults) else "",
            )
        )  # fmt: skip
    return rows


def _score(values: Sequence[float], i: int) -> float | None:
    return round(values[i], 4) if i < len(values) and np.isfinite(values[i]) else None


def _points(rows: Sequence[ScoredSample], group: str) -> list[tuple[float, float]]:
    return [
        (r.base_score, r.tuned_score)
        for r in rows
        if r.group == group and r.base_score is not None and r.tuned_score is not None
    ]


def _finite(value: object) -> object:
    """JSON has no infinity: an open end of an interval is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
