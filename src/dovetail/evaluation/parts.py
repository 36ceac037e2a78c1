"""Which parts of the prompts were painted: objects, colors, attributes, counts and relations, each won or lost by name."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dovetail.core import intervals
from dovetail.evaluation.axes import cannot_judge
from dovetail.evaluation.caption_parts import Part
from dovetail.records import AxisResult, Interval, Outcome

LEAST_PROMPTS_OF_A_PART = 2
MISSED = 0.5  # a part that is, beyond doubt, shown in fewer samples than this is missed
VISIBLE = 0.8  # of the real pictures that must show it in the judge's eyes


@dataclass(frozen=True, slots=True, kw_only=True)
class PartScore:
    """One fact that prompts asked for, over all prompts that name it."""

    kind: str
    words: str
    prompts: int
    base: float  # share of samples that show it
    tuned: float
    real: float  # share of the real pictures that show it, as the judge sees them
    interval: Interval  # of the tuned model's share
    missed: bool


def score_parts(
    parts: Sequence[tuple[int, Part]], base: Sequence[Sequence[bool]], tuned: Sequence[Sequence[bool]], real: Sequence[bool]
) -> list[PartScore]:
    """By name: `parts` are (prompt, part); `base[k]` and `tuned[k]` say of each sample whether it shows part k.

    A part is missed where the tuned model shows it, beyond doubt, in less than half of its samples, though real pictures show
    it. Samples of one prompt are no independent evidence: the interval counts half of them.
    """
    named: dict[tuple[str, str], list[int]] = {}
    for k, (_, part) in enumerate(parts):
        named.setdefault((part.kind, part.words), []).append(k)
    found = []
    for (kind, words), numbers in named.items():
        shares = {who: float(np.mean([np.mean(hits[k]) for k in numbers])) for who, hits in (("base", base), ("tuned", tuned))}
        seen = float(np.mean([real[k] for k in numbers]))
        samples = sum(len(tuned[k]) for k in numbers)
        independent = max(len(numbers), samples // 2)
        interval = intervals.rate_interval(round(shares["tuned"] * independent), independent)
        prompts = len({parts[k][0] for k in numbers})
        missed = prompts >= LEAST_PROMPTS_OF_A_PART and seen >= VISIBLE and interval.high < MISSED
        found.append(
            PartScore(
                kind=kind, words=words, prompts=prompts, base=shares["base"], tuned=shares["tuned"], real=seen,
                interval=interval, missed=missed,
            )
        )  # fmt: skip
    return found


def parts_axis(found: Sequence[PartScore], prompts: int) -> AxisResult:
    """Are parts of the prompt missing? Lost where a part that real pictures show is missed, by name."""
    if not found:
        return cannot_judge("parts", "the captions have no parts that this judge can be asked about")
    found = sorted(found, key=lambda p: (p.tuned - p.base, p.words))
    missed = [p for p in found if p.missed]
    base, tuned = (float(np.mean([getattr(p, who) for p in found])) for who in ("base", "tuned"))
    differences = [p.tuned - p.base for p in found]
    interval = intervals.paired_interval(differences, [f"{p.kind} {p.words}" for p in found])
    outcome: Outcome = "lost" if missed else "won" if interval.low > 0 else "even"
    said = f"Of {len(found)} parts of {prompts} prompts the tuned model shows {tuned:.0%}, the base {base:.0%}"
    names = ", ".join(f"{p.words!r} ({p.tuned:.0%})" for p in missed)
    return AxisResult(
        name="parts", role="guard", outcome=outcome, unit="share of samples that show a part", base=base, tuned=tuned,
        interval=interval, details={"parts": [asdict(p) for p in found]},
        sentence=f"{said}; it misses {names}." if missed else f"{said}.",
    )  # fmt: skip
