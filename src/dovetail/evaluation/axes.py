"""The axes of the evidence, each from plain numbers: what was measured of the tuned model, of its base and of real pictures.

Each function returns an `AxisResult` with an interval and a sentence. Nothing here reads files or runs a model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dovetail.core import intervals
from dovetail.evaluation import copies, kernel_distance
from dovetail.evaluation.verdict import ALPHA, LEAST_PROMPTS
from dovetail.records import AxisResult, Interval, Outcome

FORGETTING_MARGIN = 1.0  # points of the judge's score that general prompts may lose
LEAST_VARIETY = 0.5  # of the real pictures', and of the base's, below which samples have collapsed
LEAST_WITHIN = 0.1  # of the same, for samples of one prompt: a small set of drawings rightly looks alike
LEAST_WORDS = 0.5  # of the base's use of words that must be left
LEAST_CONTROL = 4  # held-out pictures that copies can be compared with
LEAST_BROKEN = 2  # broken samples that are no accident
BLANK_SPREAD = 3.0  # standard deviation of a blank picture's values
# The share of values at 0 or 255 of a saturated picture, and by how much it is above that of nine in ten for comparison.
SATURATED_SHARE, BEYOND = 0.6, 0.1
FEW_PROMPTS = "Give held-out pictures with different captions: at least {} are needed."


def cannot_judge(name: str, why: str, advice: str = "", *, required: bool = False) -> AxisResult:
    """An axis that is left out, and why."""
    role: Literal["target", "guard", "information"] = "guard" if required else "information"
    if name in ("prompt", "likeness"):
        role = "target"
    return AxisResult(
        name=name, role=role, outcome="cannot judge", unit="", sentence=_stop(why), advice=_stop(advice), required=required
    )


def prompt_axis(base: Sequence[float], tuned: Sequence[float], prompts: Sequence[str], unit: str) -> AxisResult:
    """Does the picture show what was asked? The judge's scores of samples, paired by prompt and seed."""
    differences = (np.asarray(tuned) - np.asarray(base)).tolist()
    interval = intervals.paired_interval(differences, prompts)
    outcome = target_outcome(interval, intervals.superiority_p_value(differences, prompts))
    said = {
        "won": "shows more of what was asked",
        "lost": "shows less of what was asked",
        "even": "shows no clear gain in what was asked",
    }
    return AxisResult(
        name="prompt", role="target", outcome=outcome, unit=unit, base=_mean(base), tuned=_mean(tuned), interval=interval,
        sentence=f"The tuned model {said[outcome]}: {_interval_text(interval, 'held-out prompts', unit)}.",
        needed=_needed(outcome, interval, differences, prompts),
    )  # fmt: skip


def likeness_axis(
    base: NDArray[np.floating], tuned: NDArray[np.floating], real: NDArray[np.floating], prompts: Sequence[str]
) -> AxisResult:
    """Are samples nearer to the held-out real pictures? Embeddings (prompts, samples, width) of both models and real ones."""
    if len(prompts) < kernel_distance.LEAST_UNITS:
        advice = FEW_PROMPTS.format(LEAST_PROMPTS)
        return cannot_judge("likeness", f"{len(prompts)} held-out pictures are too few for a distance to real pictures", advice)
    found = kernel_distance.kernel_distances(base, tuned, real)
    gains = (found.tuned_similarity - found.base_similarity).tolist()
    interval = intervals.paired_interval(gains, prompts)
    outcome = target_outcome(interval, intervals.superiority_p_value(gains, prompts))
    said = {"won": "more like", "lost": "less like", "even": "not clearly more like"}[outcome]
    return AxisResult(
        name="likeness", role="target", outcome=outcome, unit="kernel similarity", base=float(found.base_similarity.mean()),
        tuned=float(found.tuned_similarity.mean()), interval=interval,
        details={"base_distance": found.base, "tuned_distance": found.tuned},
        sentence=f"Its samples are {said} the held-out real pictures than the base's: kernel similarity {interval.mean:+.3f} "
        f"on {interval.count} prompts (95 % interval {interval.low:+.3f} to {interval.high:+.3f}), squared distance "
        f"{found.base:.3f} to {found.tuned:.3f}.",
        needed=_needed(outcome, interval, gains, prompts), needs="pictures",
    )  # fmt: skip


def details_axis(
    base: NDArray[np.floating], tuned: NDArray[np.floating], real: NDArray[np.floating], ceiling: NDArray[np.floating],
    prompts: Sequence[str],
) -> AxisResult:  # fmt: skip
    """Are details right? Embeddings of crops (prompts, crops, width), beside the VAE's reconstructions of the real pictures.

    No model can do better than its VAE: `ceiling` are the crops of the real pictures after encoding and decoding.
    """
    if len(prompts) < kernel_distance.LEAST_UNITS:
        return cannot_judge("details", f"{len(prompts)} held-out pictures are too few to compare details")
    found = kernel_distance.kernel_distances(base, tuned, real)
    best = max(kernel_distance.kernel_distances(base, ceiling, real).tuned, 0.0)
    gains = (found.tuned_similarity - found.base_similarity).tolist()
    interval = intervals.paired_interval(gains, prompts)
    return AxisResult(
        name="details", role="information", outcome=_outcome(interval), unit="kernel similarity", interval=interval,
        base=float(found.base_similarity.mean()), tuned=float(found.tuned_similarity.mean()),
        details={"base_distance": found.base, "tuned_distance": found.tuned, "vae_distance": best},
        sentence=f"Crops compared with crops of real pictures: similarity {interval.mean:+.3f} ({interval.low:+.3f} to "
        f"{interval.high:+.3f}); squared distance base {found.base:.3f}, tuned {found.tuned:.3f}, and {best:.3f} for the VAE's "
        "own reconstructions of the real pictures.",
    )  # fmt: skip


def held_out_loss_axis(changes: Sequence[float], clusters: Sequence[str], bands: Mapping[str, Sequence[float]]) -> AxisResult:
    """Is the step loss on held-out pictures lower? Changes since the base, as shares of its loss.

    They are paired by picture, noise and timestep. `clusters` says which drawing each picture belongs
    to; `bands` are the same changes by band of noise.
    """
    if len(set(clusters)) < 2:
        return cannot_judge(
            "held-out loss",
            f"{len(set(clusters))} held-out pictures are too few for a loss",
            FEW_PROMPTS.format(2),
            required=True,
        )
    interval = intervals.paired_interval(changes, clusters)
    outcome: Outcome = "lost" if interval.low > 0 else "won" if interval.high < 0 else "even"
    where = f"{abs(interval.mean):.1%} {'below' if interval.mean <= 0 else 'above'} the base's"
    by_band = {name: intervals.paired_interval(values, clusters) for name, values in bands.items()}
    worse = [name for name, found in by_band.items() if found.low > 0]
    also = f" It is worse in the {' and '.join(worse)} band{'s' * (len(worse) > 1)}." if worse and outcome != "lost" else ""
    return AxisResult(
        name="held-out loss", role="guard", outcome=outcome, required=True, unit="change as a share of the base's loss",
        interval=interval, details={"bands": by_band},
        sentence=f"Loss on {interval.count} held-out pictures is {where} ({interval.low:+.1%} to {interval.high:+.1%}).{also}",
    )  # fmt: skip


def words_axis(base: Sequence[float], tuned: Sequence[float], clusters: Sequence[str]) -> AxisResult:
    """Does it use the words? Loss with another picture's caption less loss with the own one, as shares of the base's loss.

    Lost where eight pictures or more do not show that the caption matters, or where beyond doubt less than half of
    the base's use of words is left.
    """
    if len(set(clusters)) < 2:
        return cannot_judge(
            "words", "there are no two held-out pictures with different captions to exchange", FEW_PROMPTS.format(2)
        )
    own, was = intervals.paired_interval(tuned, clusters), intervals.paired_interval(base, clusters)
    less = intervals.paired_interval((np.asarray(tuned) - LEAST_WORDS * np.asarray(base)).tolist(), clusters)
    unused = own.count >= LEAST_DECIDING and own.low <= 0
    lost = unused or (was.low > 0 and less.high < 0)
    outcome: Outcome = "lost" if lost else "won" if own.low > max(was.mean, 0) else "even"
    said = {"lost": "It hardly uses the words", "won": "It uses words more than the base does", "even": "It uses the words"}
    return AxisResult(
        name="words", role="guard", outcome=outcome, unit="share of the base's loss", base=was.mean, tuned=own.mean,
        interval=own,
        sentence=f"{said[outcome]}: another caption costs {own.mean:+.1%} of loss ({own.low:+.1%} to {own.high:+.1%}), the "
        f"base {was.mean:+.1%}.",
    )  # fmt: skip


def copies_axis(found: copies.CopyFinding, prompts: Sequence[str], control: int) -> AxisResult:
    """Does it repeat training pictures? By two signs, with held-out pictures as the control.

    Too many samples nearer to a training picture than a held-out picture would be; or samples that are, beyond doubt, nearer to
    training pictures than to as many held-out ones. `prompts` says which prompt each sample is of.
    """
    if control < LEAST_CONTROL:
        why = f"{control} held-out pictures are too few to tell copies from likeness"
        return cannot_judge("copies", why, FEW_PROMPTS.format(LEAST_CONTROL), required=True)
    rate = intervals.rate_interval(found.hits, found.samples)
    nearer = intervals.paired_interval(found.nearer_to_training.tolist(), prompts)
    limit = copies.MOST_TIMES * copies.CONTROL_SHARE
    too_near = rate.mean > limit and rate.low > copies.CONTROL_SHARE
    outcome: Outcome = "lost" if too_near or nearer.low > copies.MOST_NEARER else "even"
    said = "Samples repeat training pictures" if outcome == "lost" else "Samples do not repeat training pictures"
    return AxisResult(
        name="copies", role="guard", outcome=outcome, required=True, unit="share of samples", tuned=rate.mean, interval=rate,
        details={
            "threshold": found.threshold, "control_share": copies.CONTROL_SHARE, "limit": limit, "control": control,
            "nearer_to_training": nearer, "nearer_limit": copies.MOST_NEARER,
        },
        sentence=f"{said}: {rate.mean:.0%} of {found.samples} are nearer to one than {1 - copies.CONTROL_SHARE:.0%} of "
        f"held-out pictures would be ({rate.low:.0%} to {rate.high:.0%}; at most {limit:.0%} may be), and {nearer.mean:.0%} "
        f"are nearer to training than to as many held-out pictures ({nearer.low:.0%} to {nearer.high:.0%}; chance is 50 %).",
    )  # fmt: skip


def variety_axis(
    base: NDArray[np.floating], tuned: NDArray[np.floating], real: NDArray[np.floating], prompts: Sequence[str]
) -> AxisResult:
    """Do samples differ? Embeddings (prompts, samples, width): of one prompt among each other, and across prompts.

    Lost where, beyond doubt, samples of different prompts have less than half of the variety of the real pictures and of the
    base's samples, or those of one prompt less than a tenth of it.
    """
    if len(prompts) < kernel_distance.LEAST_UNITS:
        why = f"{len(prompts)} held-out prompts are too few to see whether samples differ"
        return cannot_judge("variety", why, FEW_PROMPTS.format(kernel_distance.LEAST_UNITS), required=True)
    tables = {who: _across(x) for who, x in (("base", base), ("tuned", tuned), ("real", real))}
    means = {who: float(kernel_distance.pseudo_values(table).mean()) for who, table in tables.items()}
    spread = intervals.paired_interval(kernel_distance.pseudo_values(tables["tuned"]).tolist(), prompts)
    collapsed = all(_falls_short(tables["tuned"] - LEAST_VARIETY * tables[who], prompts) for who in ("real", "base"))
    said, details = "", {"real": means["real"]}
    if base.shape[1] > 1:
        within = {who: np.array([_within(v) for v in x]) for who, x in (("base", base), ("tuned", tuned))}
        limit = LEAST_WITHIN * np.minimum(within["base"], means["real"])
        collapsed |= intervals.paired_interval((within["tuned"] - limit).tolist(), prompts).high < 0
        details |= {f"within {who}": float(values.mean()) for who, values in within.items()}
        said = f"; of one prompt {within['tuned'].mean():.2f}, the base {within['base'].mean():.2f}"
    return AxisResult(
        name="variety", role="guard", outcome="lost" if collapsed else "even", required=True, unit="mean cosine distance",
        base=means["base"], tuned=means["tuned"], interval=spread, details=details,
        sentence=f"{'Samples have collapsed' if collapsed else 'Samples differ from each other'}: mean distance "
        f"{means['tuned']:.2f} across prompts, real pictures {means['real']:.2f}, the base {means['base']:.2f}{said}.",
    )  # fmt: skip


def _falls_short(difference: NDArray[np.float64], prompts: Sequence[str]) -> bool:
    """Whether a table of pairwise differences is, beyond doubt, below zero on average."""
    return intervals.paired_interval(kernel_distance.pseudo_values(difference).tolist(), prompts).high < 0


def forgetting_axis(base: Sequence[float], tuned: Sequence[float], prompts: Sequence[str], unit: str) -> AxisResult:
    """What was forgotten? The judge's scores of general prompts; lost where the whole interval is below the margin."""
    differences = (np.asarray(tuned) - np.asarray(base)).tolist()
    interval = intervals.paired_interval(differences, prompts)
    outcome: Outcome = "lost" if interval.high < -FORGETTING_MARGIN else "won" if interval.low > 0 else "even"
    said = "Other things were forgotten" if outcome == "lost" else "Other things are still known"
    return AxisResult(
        name="forgetting", role="guard", outcome=outcome, required=True, unit=unit, base=_mean(base), tuned=_mean(tuned),
        interval=interval, sentence=f"{said}: {_interval_text(interval, 'general prompts', unit)}.",
    )  # fmt: skip


def production_axis(production: Sequence[float], tuned: Sequence[float], prompts: Sequence[str], unit: str) -> AxisResult:
    """Is it at least as good as the model in production? The judge's scores of held-out prompts, paired by prompt and seed."""
    differences = (np.asarray(tuned) - np.asarray(production)).tolist()
    interval = intervals.paired_interval(differences, prompts)
    outcome = _outcome(interval)
    said = {"won": "better than", "lost": "worse than", "even": "about as good as"}[outcome]
    return AxisResult(
        name="production", role="guard", outcome=outcome, unit=unit, base=_mean(production), tuned=_mean(tuned),
        interval=interval,
        sentence=f"It is {said} the model in production: {_interval_text(interval, 'held-out prompts', unit)}.",
    )  # fmt: skip


def saturation_limit(pictures: Sequence[NDArray[np.uint8]]) -> float:
    """The share of values at 0 or 255 above which a sample is saturated, where real pictures or the base's are these."""
    usual = float(np.quantile([_saturation(image) for image in pictures], 0.9)) if pictures else 0.0
    return max(SATURATED_SHARE, usual + BEYOND)


def _saturation(image: NDArray[np.uint8]) -> float:
    return float(((image == 0) | (image == 255)).mean())


def fault_of(image: NDArray[np.uint8], finite: bool = True, limit: float = SATURATED_SHARE) -> str:
    """What is broken about a picture: "not a number", "blank", "saturated" (above `limit`, see `saturation_limit`), or ""."""
    if not finite:
        return "not a number"
    values = image.astype(np.float32)
    if float(values.std(axis=(0, 1)).max()) < BLANK_SPREAD:
        return "blank"
    return "saturated" if _saturation(image) > limit else ""


def broken_axis(tuned: Sequence[str], base: Sequence[str], real: Sequence[str]) -> AxisResult:
    """Are pictures broken? Faults by `fault_of` of the tuned model's samples; the base's and the real ones are the control."""
    hits = sum(map(bool, tuned))
    rate = intervals.rate_interval(hits, len(tuned))
    control = max((sum(map(bool, x)) / len(x) for x in (base, real) if x), default=0.0)
    lost = hits >= LEAST_BROKEN and rate.low > control
    kinds = ", ".join(sorted({fault for fault in tuned if fault}))
    said = (
        f"{hits} of {len(tuned)} samples are {kinds}"
        if hits
        else f"None of {len(tuned)} samples is blank, saturated or not a number"
    )
    return AxisResult(
        name="broken", role="guard", outcome="lost" if lost else "even", required=True, unit="share of samples", base=control,
        tuned=rate.mean, interval=rate, sentence=f"{said}.",
    )  # fmt: skip


def target_outcome(interval: Interval, p_value: float) -> Outcome:
    """Whether a target axis is won: by enough prompts, beyond doubt; lost where the whole interval is below zero."""
    if interval.count >= LEAST_PROMPTS and p_value <= ALPHA and interval.low > 0:
        return "won"
    return "lost" if interval.high < 0 else "even"


def _outcome(interval: Interval) -> Outcome:
    return "won" if interval.low > 0 else "lost" if interval.high < 0 else "even"


def _needed(outcome: Outcome, interval: Interval, differences: Sequence[float], clusters: Sequence[str]) -> int | None:
    if outcome == "won":
        return None
    if interval.count < 2:
        return LEAST_DECIDING
    return intervals.needed_clusters(differences, clusters, ALPHA, LEAST_DECIDING)


LEAST_DECIDING = math.ceil(math.log2(1 / ALPHA))  # prompts with which the exact sign-flip test can reach ALPHA at all


def _within(vectors: NDArray[np.floating]) -> float:
    """Mean cosine distance among the samples (samples, width) of one prompt."""
    table = 1 - vectors @ vectors.T
    n = len(vectors)
    return float((table.sum() - np.trace(table)) / (n * (n - 1)))


def _across(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean cosine distance between the samples of prompt i and those of prompt j: (prompts, prompts)."""
    return np.asarray(1 - np.einsum("iad,jbd->ij", vectors, vectors, dtype=np.float64) / vectors.shape[1] ** 2)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _interval_text(interval: Interval, what: str, unit: str) -> str:
    return f"{interval.mean:+.2f} {unit} on {interval.count} {what} (95 % interval {interval.low:+.2f} to {interval.high:+.2f})"


def _change_text(interval: Interval) -> str:
    return f"{-interval.mean:+.0%} on {interval.count} prompts (95 % interval {-interval.high:+.0%} to {-interval.low:+.0%})"


def _stop(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith(".") else f"{text}."
