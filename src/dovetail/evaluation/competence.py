"""Whether a judge can judge these pictures: it is tried on real ones before it says anything about samples.

A judge that cannot tell a real picture's own caption from other captions, or from the same caption with one word changed,
would only add noise to the verdict. Its axis then says so and decides nothing.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dovetail.core import intervals
from dovetail.evaluation.caption_parts import Part, caption_parts, changed_by_one_word, nouns
from dovetail.evaluation.judges import Judge, KnowsWords
from dovetail.records import Interval

RIVALS = 8  # other captions, changed captions and contrasts that each real picture is tried with, of each sort
LEAST_PICTURES = 4
LEAST_SHARE = 0.7  # of rivals that must score below the truth
MOST_NAMED = 4  # unknown words that a sentence lists
ABLE_KIND_SHARE = 0.8  # the same for a kind of part (object, attribute, count, relation) to be asked about


@dataclass(frozen=True, slots=True, kw_only=True)
class Competence:
    """What a judge showed on real pictures."""

    able: bool
    others: Interval | None  # share of other captions that score below the own one; None where all captions are alike
    changed: Interval | None  # the same for captions with one word changed
    kinds: dict[str, Interval] = field(default_factory=dict)  # the same for single facts, by kind
    reason: str = ""  # why it is not able, as the end of a sentence

    def able_kinds(self) -> frozenset[str]:
        """Kinds of parts that it can be asked about."""
        return frozenset(k for k, i in self.kinds.items() if i.mean >= ABLE_KIND_SHARE and i.low > 0.5)


@dataclass(frozen=True, slots=True)
class _Trial:
    picture: int
    sort: str  # "others", "changed", or a kind of part
    truth: str
    rival: str


def try_judge(
    judge: Judge, images: Sequence[NDArray[np.uint8]], captions: Sequence[str], vocabulary: Collection[str]
) -> Competence:
    """Try a judge on real pictures with their own captions; `vocabulary` are nouns that none of them shows.

    A judge that says which words it learned is not able where it learned none of the things that most captions name.
    Raises ModelError where the judge does not answer at all.
    """
    trials = [t for i, caption in enumerate(captions) for t in _trials(i, caption, captions, vocabulary)]
    asked = list(dict.fromkeys((t.picture, text) for t in trials for text in (t.truth, t.rival)))
    scores = judge.score([images[i] for i, _ in asked], [text for _, text in asked])
    told = dict(zip(asked, scores.tolist(), strict=True))
    shares: dict[str, dict[int, list[float]]] = {}
    for t in trials:
        truth, rival = told[t.picture, t.truth], told[t.picture, t.rival]
        if not np.isfinite([truth, rival]).all():
            return Competence(able=False, others=None, changed=None, reason="gives scores that are not numbers")
        shares.setdefault(t.sort, {}).setdefault(t.picture, []).append(float(truth > rival) + 0.5 * (truth == rival))
    found = {sort: _interval(by_picture) for sort, by_picture in shares.items()}
    others, changed = found.pop("others", None), found.pop("changed", None)
    reason = _fault(len(images), others, changed, found.get("object")) or _unheard(judge, captions)
    return Competence(able=not reason, others=others, changed=changed, kinds=found, reason=reason)


def _trials(picture: int, caption: str, captions: Sequence[str], vocabulary: Collection[str]) -> Iterable[_Trial]:
    rivals = [c for c in dict.fromkeys(captions) if c.casefold() != caption.casefold()]
    turned = rivals[picture % len(rivals) :] + rivals[: picture % len(rivals)] if rivals else []
    for rival in turned[:RIVALS]:
        yield _Trial(picture, "others", caption, rival)
    for rival in changed_by_one_word(caption, vocabulary)[:RIVALS]:
        yield _Trial(picture, "changed", caption, rival)
    for part in caption_parts(caption, vocabulary):
        for rival in part.contrasts[:RIVALS]:
            yield _Trial(picture, part.kind, part.statement, rival)


def _interval(by_picture: dict[int, list[float]]) -> Interval:
    pictures = sorted(by_picture)
    found = intervals.paired_interval([float(np.mean(by_picture[i])) for i in pictures], [f"{i:06d}" for i in pictures])
    if found.low == found.high:  # all alike says little about the next picture: as a share of that many
        return intervals.rate_interval(round(found.mean * found.count), found.count)
    return found


def _fault(pictures: int, others: Interval | None, changed: Interval | None, objects: Interval | None) -> str:
    if pictures < LEAST_PICTURES:
        return f"was shown {pictures} real pictures, {LEAST_PICTURES} are the least to try it on"
    if others is None and changed is None:
        return "cannot be tried: all captions are alike and none of their words could be changed"
    for interval, what in (
        (others, "the captions of these pictures"),
        (changed, "a caption from the same one with a word changed"),
        (objects, "what these pictures show from other things"),
    ):
        if interval is not None and not (interval.mean >= LEAST_SHARE and interval.low > 0.5):
            return f"cannot tell apart {what} ({interval.mean:.0%} right, chance is 50 %)"
    return ""


def _unheard(judge: Judge, captions: Sequence[str]) -> str:
    """Why a judge that never heard of the things in most captions cannot judge them, or ""."""
    if not isinstance(judge, KnowsWords):
        return ""
    named = [nouns([caption]) for caption in captions]
    strange = [own for own in named if own and not any(map(judge.knows, own))]
    if 2 * len(strange) <= len(captions):
        return ""
    words = list(dict.fromkeys(noun for own in strange for noun in own))
    return f"never learned the word {', '.join(words[:MOST_NAMED])}" + " and others" * (len(words) > MOST_NAMED)


def asked_parts(captions: Sequence[str], vocabulary: Collection[str], kinds: Collection[str]) -> list[tuple[int, Part]]:
    """(number of the caption, part) of all parts that can be asked about, with at least one contrast."""
    return [
        (i, part)
        for i, caption in enumerate(captions)
        for part in caption_parts(caption, vocabulary)
        if part.kind in kinds and part.contrasts
    ]
