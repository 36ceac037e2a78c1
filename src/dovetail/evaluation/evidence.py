"""From samples to the axes: what the judge, the image encoder and the losses say of the tuned model and of its base."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.errors import ModelError
from dovetail.evaluation import axes, competence, copies, parts
from dovetail.evaluation.caption_parts import Part, nouns
from dovetail.evaluation.color_judge import ColorJudge
from dovetail.evaluation.judges import ImageEncoder, Judge
from dovetail.evaluation.losses import HeldOutLosses
from dovetail.evaluation.samples import quadrants
from dovetail.records import AxisResult

Image = NDArray[np.uint8]
MOST_TRIALS = 24  # real pictures that a judge is tried on
COLOR_KINDS = frozenset(["color", "background"])
LARGEST_NAN_SHARE = 0.2  # of a judge's scores, above which it is left out
GIVE_A_JUDGE = "Give another judge as [evaluation] judge: a CLIP or SigLIP folder, or a visual question answerer."


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Everything that is looked at, at the model's side; samples are in the order prompt by prompt, seed by seed."""

    prompts: list[str]  # different captions of held-out pictures
    seeds: int  # samples of each
    base: list[Image]
    tuned: list[Image]
    production: list[Image]  # of the model that the tuned one would replace; none where there is none
    tuned_finite: list[bool]
    real: list[Image]  # the held-out picture of each prompt
    general: list[str]
    general_base: list[Image]
    general_tuned: list[Image]
    held_out: list[Image]  # all that training did not learn from, with their captions
    held_out_captions: list[str]
    held_out_groups: list[str]  # which drawing each is of
    train: list[Image]
    train_groups: list[str]
    reconstructed: list[Image]  # the real pictures after the VAE's encoder and decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The axes, and what they were read from."""

    axes: list[AxisResult]
    judge: str
    tried: dict[str, competence.Competence] = field(default_factory=dict)  # "held-out" and "general"
    scores: dict[str, list[float]] = field(default_factory=dict)  # base, tuned, general base, general tuned
    nearest: list[tuple[int, float]] = field(default_factory=list)  # training picture and similarity, of each tuned sample
    faults: list[str] = field(default_factory=list)  # of each tuned sample


def collect(
    pictures: Pictures, losses: HeldOutLosses, groups: dict[str, str], judge: Judge | str,
    questioner: Judge | str | None, encoder: ImageEncoder, say: Callable[[str], None] = lambda text: None,
) -> Evidence:  # fmt: skip
    """All axes. `groups` says which drawing a held-out picture is of.

    `judge` and `questioner`, which is asked about parts where there is one, may be the sentence that says why there is none.
    """
    judged, told, tried = _judged(pictures, judge)
    if questioner is not None:
        judged = [axis for axis in judged if axis.name != "parts"] + [_parts_of(pictures, questioner, tried)]
    seen, nearest = _seen(pictures, encoder)
    limit = axes.saturation_limit([*pictures.base, *pictures.real])
    faults = [axes.fault_of(image, good, limit) for image, good in zip(pictures.tuned, pictures.tuned_finite, strict=True)]
    broken = axes.broken_axis(
        faults, *([axes.fault_of(image, True, limit) for image in side] for side in (pictures.base, pictures.real))
    )
    found = [*judged, *seen, *_loss_axes(losses, groups), broken]
    for axis in found:
        if axis.outcome == "cannot judge":
            say(f"{axis.name}: {axis.sentence}")
    return Evidence(
        axes=found,
        judge=judge if isinstance(judge, str) else judge.name,
        tried=tried,
        scores=told,
        nearest=nearest,
        faults=faults,
    )


def _judged(
    pictures: Pictures, judge: Judge | str
) -> tuple[list[AxisResult], dict[str, list[float]], dict[str, competence.Competence]]:
    """The axes that need a judge: prompt, parts, forgetting."""
    if isinstance(judge, str):
        return _without_a_judge(judge), {}, {}
    try:
        return _by_judge(pictures, judge)
    except ModelError as error:
        return _without_a_judge(str(error)), {}, {}


def _parts_of(pictures: Pictures, questioner: Judge | str, tried: dict[str, competence.Competence]) -> AxisResult:
    """The parts axis by a judge of its own, which is tried on the real pictures first."""
    if isinstance(questioner, str):
        return axes.cannot_judge("parts", questioner)
    try:
        able = tried["questions"] = _try_on_real(pictures, questioner)
        if not able.able:
            return axes.cannot_judge("parts", f"This judge cannot judge these pictures: {questioner.name} {able.reason}")
        return _parts_axis(pictures, questioner, able, nouns(pictures.general))
    except ModelError as error:
        return axes.cannot_judge("parts", str(error))


def _try_on_real(pictures: Pictures, judge: Judge) -> competence.Competence:
    spread = np.linspace(0, len(pictures.held_out) - 1, min(MOST_TRIALS, len(pictures.held_out))).round().astype(int)
    real, captions = [pictures.held_out[i] for i in spread], [pictures.held_out_captions[i] for i in spread]
    shown = set(nouns(captions))
    return competence.try_judge(judge, real, captions, [noun for noun in nouns(pictures.general) if noun not in shown])


def _without_a_judge(why: str) -> list[AxisResult]:
    return [
        axes.cannot_judge("prompt", why, GIVE_A_JUDGE),
        axes.cannot_judge("parts", why),
        axes.cannot_judge("forgetting", why, GIVE_A_JUDGE, required=True),
    ]


def _by_judge(
    pictures: Pictures, judge: Judge
) -> tuple[list[AxisResult], dict[str, list[float]], dict[str, competence.Competence]]:
    tried, general_nouns = {"held-out": _try_on_real(pictures, judge)}, nouns(pictures.general)
    if pictures.general:
        shown = list(range(min(MOST_TRIALS, len(pictures.general))))
        tried["general"] = competence.try_judge(
            judge, [pictures.general_base[i] for i in shown], [pictures.general[i] for i in shown], general_nouns
        )
    each = [p for p in pictures.prompts for _ in range(pictures.seeds)]
    scores = {
        "base": judge.score(pictures.base, each), "tuned": judge.score(pictures.tuned, each),
        "production": judge.score(pictures.production, each[: len(pictures.production)]),
        "general base": judge.score(pictures.general_base, pictures.general),
        "general tuned": judge.score(pictures.general_tuned, pictures.general),
    }  # fmt: skip
    told = {name: values.tolist() for name, values in scores.items()}
    unit = "points"
    able = tried["held-out"]
    if not able.able:
        why = f"This judge cannot judge these pictures: {judge.name} {able.reason}"
        found = [axes.cannot_judge("prompt", why, GIVE_A_JUDGE), axes.cannot_judge("parts", why)]
    else:
        found = [
            _paired("prompt", axes.prompt_axis, scores["base"], scores["tuned"], each, unit),
            _parts_axis(pictures, judge, able, general_nouns),
        ]
        if pictures.production:
            found.append(_paired("production", axes.production_axis, scores["production"], scores["tuned"], each, unit))
    return [*found, _forgetting(pictures, judge, tried, scores, unit)], told, tried


def _forgetting(
    pictures: Pictures, judge: Judge, tried: dict[str, competence.Competence], scores: dict[str, NDArray[np.float64]], unit: str
) -> AxisResult:
    if not pictures.general:
        return axes.cannot_judge(
            "forgetting", "no general prompts were asked for", "Set [evaluation] other_prompts above 1.", required=True
        )
    if not tried["general"].able:
        why = f"{judge.name} {tried['general'].reason} on the base's own samples of general prompts"
        return axes.cannot_judge("forgetting", why, GIVE_A_JUDGE, required=True)
    return _paired(
        "forgetting",
        axes.forgetting_axis,
        scores["general base"],
        scores["general tuned"],
        pictures.general,
        unit,
        required=True,
    )


def _paired(
    name: str, axis: Callable[..., AxisResult], base: NDArray[np.float64], tuned: NDArray[np.float64], prompts: Sequence[str],
    unit: str, required: bool = False,
) -> AxisResult:  # fmt: skip
    """The axis of the pairs that both have a score; left out where too many have none."""
    good = np.isfinite(base) & np.isfinite(tuned)
    if not good.size or 1 - good.mean() > LARGEST_NAN_SHARE:
        why = f"the judge gave no number for {int((~good).sum())} of {good.size} samples"
        return axes.cannot_judge(name, why, GIVE_A_JUDGE, required=required)
    return axis(base[good].tolist(), tuned[good].tolist(), [p for p, ok in zip(prompts, good, strict=True) if ok], unit)


def _parts_axis(pictures: Pictures, judge: Judge, able: competence.Competence, vocabulary: Sequence[str]) -> AxisResult:
    """Every part is asked of the judge; colors are asked of the pixels, where these are as often right on real pictures."""
    colors = ColorJudge()
    better = asked_of_pixels(able, _try_on_real(pictures, colors))
    found: list[parts.PartScore] = []
    for who, able_kinds in ((judge, able.able_kinds() - better), (colors, better)):
        asked = competence.asked_parts(pictures.prompts, vocabulary, able_kinds)
        found += _part_scores(pictures, who, asked) if asked else []
    return parts.parts_axis(found, len(pictures.prompts))


def asked_of_pixels(judge: competence.Competence, pixels: competence.Competence) -> frozenset[str]:
    """Kinds of colors that the pixels can tell, and at least as often as the judge, on real pictures."""
    both = judge.able_kinds() & pixels.able_kinds()
    worse = {kind for kind in both if pixels.kinds[kind].mean < judge.kinds[kind].mean}
    return (pixels.able_kinds() & COLOR_KINDS) - worse


def _part_scores(pictures: Pictures, judge: Judge, asked: Sequence[tuple[int, Part]]) -> list[parts.PartScore]:
    shown: list[tuple[Image, int]] = []  # picture, number of the part
    for k, (prompt, _) in enumerate(asked):
        block = slice(prompt * pictures.seeds, (prompt + 1) * pictures.seeds)
        shown += [(image, k) for image in (*pictures.base[block], *pictures.tuned[block], pictures.real[prompt])]
    pairs = [
        (image, text) for image, k in shown for text in (asked[k][1].statement, *asked[k][1].contrasts[: competence.RIVALS])
    ]
    scores = iter(judge.score([image for image, _ in pairs], [text for _, text in pairs]).tolist())
    won = []
    for _, k in shown:
        truth = next(scores)
        rivals = [next(scores) for _ in asked[k][1].contrasts[: competence.RIVALS]]
        won.append(bool(truth > max(rivals)))
    width = 2 * pictures.seeds + 1
    rows = [won[k * width : (k + 1) * width] for k in range(len(asked))]
    return parts.score_parts(
        asked, [r[: pictures.seeds] for r in rows], [r[pictures.seeds : -1] for r in rows], [r[-1] for r in rows]
    )


def _seen(pictures: Pictures, encoder: ImageEncoder) -> tuple[list[AxisResult], list[tuple[int, float]]]:
    """The axes that need an image encoder: likeness, copies, variety, details."""
    if not pictures.prompts:
        why = "there are no held-out pictures"
        advice = "Add pictures, or raise [buildout] test_share."
        guards = [axes.cannot_judge(n, why, advice, required=True) for n in ("copies", "variety")]
        return [axes.cannot_judge("likeness", why, advice), *guards, axes.cannot_judge("details", why)], []
    base, tuned = (_by_prompt(encoder, x, pictures.seeds) for x in (pictures.base, pictures.tuned))
    real = _by_prompt(encoder, pictures.real, 1)
    crops = [
        _by_prompt(encoder, [crop for image in x for crop in quadrants(image)], 4 * n)
        for x, n in (
            (pictures.base, pictures.seeds),
            (pictures.tuned, pictures.seeds),
            (pictures.real, 1),
            (pictures.reconstructed, 1),
        )
    ]
    copied, each = _copies(pictures, encoder), [p for p in pictures.prompts for _ in range(pictures.seeds)]
    found = [
        axes.likeness_axis(base, tuned, real, pictures.prompts),
        axes.copies_axis(copied, each, len(pictures.held_out)) if copied else axes.cannot_judge(
            "copies", "there are too few held-out pictures to tell copies from likeness", "Add pictures.", required=True
        ),
        axes.variety_axis(
            _colored(pictures.base, base), _colored(pictures.tuned, tuned), _colored(pictures.real, real), pictures.prompts
        ),
        axes.details_axis(crops[0], crops[1], crops[2], crops[3], pictures.prompts),
    ]  # fmt: skip
    nearest = list(zip(copied.nearest.tolist(), copied.similarities.tolist(), strict=True)) if copied else []
    return found, nearest


def _by_prompt(encoder: ImageEncoder, images: Sequence[Image], each: int) -> NDArray[np.float32]:
    vectors = encoder.embed_images(images).numpy()
    return np.asarray(vectors.reshape(-1, each, vectors.shape[-1]))


def _colored(images: Sequence[Image], kinds: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is drawn and in which colors, each half of the similarity: an encoder of kinds may be blind to colors."""
    colors = copies.color_descriptors(images).reshape(*kinds.shape[:2], -1)
    return np.asarray(np.concatenate([kinds, colors], axis=2) / np.sqrt(2), dtype=np.float32)


def _copies(pictures: Pictures, encoder: ImageEncoder) -> copies.CopyFinding | None:
    """Samples against training and held-out pictures in both views; the held-out pictures against training as the control."""
    if len(pictures.held_out) < axes.LEAST_CONTROL or not pictures.train:
        return None
    samples = _describe(pictures.tuned, encoder)
    train, held_out = (_describe([*x, *copies.mirrored(x)], encoder) for x in (pictures.train, pictures.held_out))
    control = copies.similarity_table(held_out[: len(pictures.held_out)], train, 2).max(1)
    return copies.find_copies(
        copies.similarity_table(samples, train, 2), pictures.train_groups,
        copies.similarity_table(samples, held_out, 2), pictures.held_out_groups, control,
    )  # fmt: skip


def _describe(images: Sequence[Image], encoder: ImageEncoder) -> NDArray[np.float32]:
    """What is drawn and how: meaning and shape, each half of the similarity."""
    meaning, shape = encoder.embed_images(images).numpy(), copies.shape_descriptors(images)
    return np.asarray(np.concatenate([meaning, shape], axis=1) / np.sqrt(2), dtype=np.float32)


def _loss_axes(losses: HeldOutLosses, groups: dict[str, str]) -> list[AxisResult]:
    clusters = [groups[name] for name in losses.names]
    worded = [groups[name] for name in losses.worded]
    return [
        axes.held_out_loss_axis(losses.change, clusters, losses.bands),
        axes.words_axis(losses.words["base"], losses.words["tuned"], worded),
    ]


def as_json(evidence: Evidence) -> dict[str, Any]:
    """What of the evidence goes into `verdict.json` beside the axes."""
    return {"judge": evidence.judge, "competence": {k: asdict(v) for k, v in evidence.tried.items()}}
