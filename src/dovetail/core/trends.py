"""What the held-out losses of a training say: how far from the base, still improving or not, and where it overfits.

Each loss is divided by the base's mean loss at the same timestep, so that no noise level outweighs another. Differences are
paired by picture, whose noise is always the same, with a 95 % interval over pictures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.core import intervals
from dovetail.records import Interval, Trend

BANDS = ("low-noise", "middle", "high-noise")  # thirds of the timesteps
KEPT_FALL = 0.5  # of the largest fall of the held-out loss: what the best weights have at least
WINDOW = 3  # improving, or flat: over this part of the measurements, the latest ones


def measured(curve: Sequence[Mapping[str, Any]], which: str) -> dict[int, np.ndarray]:
    """Step -> held-out losses (pictures, timesteps) of the set `which`, as shares of the base's mean at each timestep."""
    rows = {row["step"]: row["losses"] for row in curve if row.get("set") == which}
    if not rows:
        return {}
    tables = {step: np.array([rows[step][name] for name in sorted(rows[step])]) for step in sorted(rows)}
    first = tables[min(tables)].mean(0)
    return {step: table / first for step, table in tables.items()}


def banded(table: np.ndarray) -> dict[str, np.ndarray]:
    """The losses (pictures, timesteps) in three bands of noise."""
    return dict(zip(BANDS, np.array_split(table, len(BANDS), axis=1), strict=True))


def lines(curve: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, mean share of the base's loss): training pictures, validation pictures, and those by band of noise."""
    validation = measured(curve, "validation")
    drawn = {"train": measured(curve, "train"), "validation": validation}
    drawn |= {name: {step: banded(table)[name] for step, table in validation.items()} for name in BANDS}
    return {name: [(step, float(table.mean())) for step, table in tables.items()] for name, tables in drawn.items() if tables}


def _levels(curve: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Step -> mean held-out loss on validation pictures, as a share of the base's."""
    return {step: float(table.mean()) for step, table in measured(curve, "validation").items()}


def lowest_step(curve: Sequence[Mapping[str, Any]]) -> int | None:
    """The step with the lowest held-out loss on validation pictures, the first of equals; None where none was measured.

    Step 0 is the base, not a result of the training: it is never the lowest, however low its loss is.
    """
    levels = {step: level for step, level in _levels(curve).items() if step}
    return min(levels, key=lambda step: (levels[step], step)) if levels else None


def best_step(curve: Sequence[Mapping[str, Any]]) -> int | None:
    """The latest step that keeps half of the largest fall of the held-out loss; where nothing fell, the lowest step.

    What is painted gets clearer for some time after the loss was lowest, and the loss says when that is bought by learning by
    heart. A later measurement never makes another one than itself the best, so that only the latest weights need be kept.
    """
    levels, lowest = _levels(curve), lowest_step(curve)
    fall = 0.0 if lowest is None else 1 - levels[lowest]
    if fall <= 0:
        return lowest
    return max(step for step, level in levels.items() if step and 1 - level >= KEPT_FALL * fall)


def since_best(curve: Sequence[Mapping[str, Any]]) -> int:
    """Measurements after the best one."""
    best = best_step(curve)
    return 0 if best is None else sum(step > best for step in measured(curve, "validation"))


def change(curve: Sequence[Mapping[str, Any]], step: int) -> Interval | None:
    """Change of the held-out loss from the base to `step`, a share of the base's; None where either was not measured."""
    tables = measured(curve, "validation")
    return _change(tables[0], tables[step]) if 0 in tables and step in tables else None


def trend(curve: Sequence[Mapping[str, Any]]) -> Trend | None:
    """The verdict in words; None where there is nothing to compare with the base."""
    tables, best = measured(curve, "validation"), best_step(curve)
    if best is None or len(tables) < 2:
        return None
    steps = list(tables)
    first, last = tables[steps[0]], tables[steps[-1]]
    gain = _change(first, last)
    bands = {name: _change(banded(first)[name], banded(last)[name]) for name in BANDS}
    away = abs(gain.mean)
    where = f"Held-out loss is {away:.1%} {'below' if gain.mean <= 0 else 'above'} the base's"
    if gain.count < 2:
        sentence = f"{where}; one picture held out is too few to say more."
        return Trend(answer="cannot tell", sentence=sentence, best_step=best, change=gain, bands=bands)
    where += f" (95 % interval {gain.low:+.1%} to {gain.high:+.1%})"
    rising = _rising(tables)
    if rising:
        learnt = measured(curve, "train")
        since = min(rising.values())
        before = max((step for step in learnt if step <= since), default=None)  # training pictures are measured less often
        grew = before is not None and steps[-1] in learnt and _change(learnt[before], learnt[steps[-1]]).low > 0
        names = f"the {' and '.join(rising)} band{'s' * (len(rising) > 1)}"
        names = "all bands of noise" if len(rising) == len(BANDS) else names
        sentence = f"{where}; it {'worsens' if grew else 'overfits'} in {names} since step {since:,}"
        sentence += ", on training pictures too." if grew else "."
        return Trend(answer="worsens" if grew else "overfits", sentence=sentence, best_step=best, change=gain, bands=bands)
    back = steps[(len(steps) - 1) * (WINDOW - 1) // WINDOW]
    if _change(tables[back], last).high < 0:
        return Trend(answer="improving", sentence=f"{where}, improving.", best_step=best, change=gain, bands=bands)
    still = steps[-1]
    for step in reversed(steps[:-1]):
        moved = _change(tables[step], last)
        if not moved.low <= 0 <= moved.high:
            break
        still = step
    return Trend(answer="flat", sentence=f"{where}, flat since step {still:,}.", best_step=best, change=gain, bands=bands)


def outcome(curve: Sequence[Mapping[str, Any]], done: int, planned: int, published: int, missed: int) -> str:
    """In words: why a training of `planned` steps ended after `done`, and what the weights that are published are like.

    `missed` is after how many held-out losses in a row that are no longer good it was to end, 0 for never.
    """
    early = f"after step {done:,} of {planned:,}, as {missed} held-out losses in a row kept less than half of the largest fall"
    ended = f"The training ended {early if done < planned else f'after all {planned:,} steps'}"
    if best_step(curve) is None:
        return f"{ended}; no validation picture says which weights are best, so the last ones are published."
    gain = change(curve, published)
    said = f"{ended}; the weights after step {published:,} are published"
    if gain is None:
        return f"{said}."
    moved = f"{abs(gain.mean):.1%} {'below' if gain.mean < 0 else 'above'} the base's"
    if gain.count > 1:
        moved += f" (95 % interval {gain.low:+.1%} to {gain.high:+.1%})"
    best, lowest = best_step(curve), lowest_step(curve)
    if published != best:
        return f"{said}, held-out loss {moved}; the best were those after step {best:,}."
    if gain.mean >= 0:
        return f"{said}, which come nearest to the base: no held-out loss was below it, this one is {moved}."
    kind = "those with the lowest held-out loss"
    if best != lowest:
        kind = f"the latest with half of the largest fall of held-out loss (at step {lowest:,}) or more"
    doubt = "" if gain.high < 0 else ", which may be chance"
    return f"{said}, {kind}: {moved}{doubt}."


def _change(before: np.ndarray, after: np.ndarray) -> Interval:
    """Mean of the pictures' changes from one (pictures, timesteps) table to another."""
    differences = (after - before).mean(1)
    return intervals.paired_interval(differences.tolist(), [f"{i:06d}" for i in range(len(differences))])


def _rising(tables: Mapping[int, np.ndarray]) -> dict[str, int]:
    """Band -> step of its lowest loss, for the bands whose latest loss is above that beyond doubt."""
    steps = list(tables)
    rising = {}
    for name in BANDS:
        cut = {step: banded(tables[step])[name] for step in steps}
        lowest = min(steps, key=lambda step: (float(cut[step].mean()), step))
        if lowest != steps[-1] and _change(cut[lowest], cut[steps[-1]]).low > 0:
            rising[name] = lowest
    return rising
