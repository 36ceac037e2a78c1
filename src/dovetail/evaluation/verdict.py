"""The rule that turns the axes into a decision: promote, hold, or cannot tell. One pure function.

| a guard or a target is lost | a required guard is unmeasured | prompt or likeness is won | decision |
|---|---|---|---|
| yes | - | - | hold, by the names of what is lost |
| no | yes | - | cannot tell, by the names of what is unmeasured |
| no | no | yes | promote |
| no | no | no | cannot tell: about N more held-out prompts or pictures |
"""

from collections.abc import Sequence

from dovetail.records import AxisResult, Verdict

LEAST_PROMPTS = 5  # fewer never promote
ALPHA = 0.005  # one-sided, for each of the two target axes: together they promote a model that is no better in at most 3 %


def decide(axes: Sequence[AxisResult]) -> Verdict:
    """The verdict on a tuned model, by the truth table above."""
    lost = [a for a in axes if a.outcome == "lost" and a.role in ("guard", "target")]
    if lost:
        names = tuple(a.name for a in lost)
        return Verdict(decision="hold", guards=names, decided_by=names, sentence=" ".join(a.sentence for a in lost))
    unmeasured = [a for a in axes if a.required and a.outcome == "cannot judge"]
    if unmeasured:
        names = tuple(a.name for a in unmeasured)
        said = " ".join(_with_advice(a) for a in unmeasured)
        return Verdict(decision="cannot tell", guards=(), decided_by=names, sentence=said)
    targets = [a for a in axes if a.role == "target"]
    won = [a for a in targets if _is_won(a)]
    if won:
        names = tuple(a.name for a in won)
        return Verdict(decision="promote", guards=(), decided_by=names, sentence=" ".join(a.sentence for a in won))
    return Verdict(
        decision="cannot tell", guards=(), decided_by=tuple(a.name for a in targets), sentence=_what_is_missing(targets)
    )


def headline(verdict: Verdict) -> str:
    """The decision in a few words, for the terminal, the card and the report."""
    if verdict.decision == "promote":
        return f"Promote: better than the base by {_listed(verdict.decided_by)}, and no guard is broken."
    if verdict.decision == "hold":
        return f"Hold: {_listed(verdict.guards)}."
    return "Cannot tell yet."


def _is_won(axis: AxisResult) -> bool:
    enough = axis.interval is not None and axis.interval.count >= LEAST_PROMPTS
    return axis.outcome == "won" and enough


def _with_advice(axis: AxisResult) -> str:
    return f"{axis.sentence} {axis.advice}".strip()


def _what_is_missing(targets: Sequence[AxisResult]) -> str:
    """How much more would decide it, by the axis that needs least."""
    said = [_with_advice(a) for a in targets]
    known = [(a.needed - (a.interval.count if a.interval else 0), a.needs) for a in targets if a.needed]
    more = [(count, what) for count, what in known if count > 0]
    if more:
        count, what = min(more)
        said.append(f"About {count} more held-out {what} would decide it.")
    elif any(a.outcome == "even" for a in targets):
        said.append("More held-out prompts of this kind would hardly decide it: train longer, or add training pictures.")
    return " ".join(said) or "Nothing could be judged: give held-out pictures with captions."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
