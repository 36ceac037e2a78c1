"""The rule: every row of its truth table."""

import itertools
from dataclasses import replace

import pytest

from dovetail.evaluation import verdict
from dovetail.records import AxisResult, Interval, Outcome

GUARDS = ("copies", "held-out loss", "variety", "forgetting", "broken")


def axis(name: str, outcome: Outcome, count: int = 12, needed: int | None = None) -> AxisResult:
    role = "target" if name in ("prompt", "likeness") else "guard"
    return AxisResult(
        name=name, role=role, outcome=outcome, unit="points", interval=Interval(mean=1.0, low=0.5, high=1.5, count=count),
        required=name in GUARDS, sentence=f"{name} is {outcome}.", advice=f"Mend {name}.", needed=needed,
    )  # fmt: skip


def evidence(prompt: Outcome = "won", likeness: Outcome = "even") -> list[AxisResult]:
    return [axis("prompt", prompt), axis("likeness", likeness), *(axis(name, "even") for name in GUARDS)]


@pytest.mark.parametrize(("prompt", "likeness"), [("won", "even"), ("even", "won"), ("won", "won"), ("cannot judge", "won")])
def test_a_target_that_is_won_promotes_where_every_guard_is_kept(prompt: Outcome, likeness: Outcome) -> None:
    found = verdict.decide(evidence(prompt, likeness))
    assert found.decision == "promote" and found.guards == ()
    assert set(found.decided_by) == {n for n, o in (("prompt", prompt), ("likeness", likeness)) if o == "won"}


@pytest.mark.parametrize("guard", GUARDS)
def test_a_broken_guard_holds_and_is_named_whatever_was_won(guard: str) -> None:
    rows = [replace(a, outcome="lost") if a.name == guard else a for a in evidence("won", "won")]
    found = verdict.decide(rows)
    assert found.decision == "hold" and found.guards == (guard,) and guard in verdict.headline(found)


def test_a_target_that_is_lost_holds_even_if_the_other_is_won() -> None:
    assert verdict.decide(evidence("lost", "won")).guards == ("prompt",)


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_that_was_not_measured_never_promotes(guard: str) -> None:
    rows = [replace(a, outcome="cannot judge") if a.name == guard else a for a in evidence("won", "won")]
    found = verdict.decide(rows)
    assert found.decision == "cannot tell" and found.decided_by == (guard,) and f"Mend {guard}." in found.sentence


def test_guards_that_are_not_required_may_be_unmeasured() -> None:
    assert verdict.decide([*evidence("won"), axis("parts", "cannot judge")]).decision == "promote"
    assert verdict.decide([*evidence("won"), axis("parts", "lost")]).guards == ("parts",)


@pytest.mark.parametrize("count", range(verdict.LEAST_PROMPTS))
def test_fewer_than_five_prompts_never_promote(count: int) -> None:
    rows = [replace(a, interval=Interval(mean=9.0, low=8.0, high=10.0, count=count)) for a in evidence("won", "won")]
    assert verdict.decide(rows).decision == "cannot tell"


def test_an_open_question_says_about_how_much_more_would_decide_it() -> None:
    rows = [axis("prompt", "even", 8, needed=20), axis("likeness", "even", 8, needed=50), *evidence()[2:]]
    assert "About 12 more held-out prompts" in verdict.decide(rows).sentence
    hopeless = [axis("prompt", "even"), axis("likeness", "even"), *evidence()[2:]]
    assert "hardly decide" in verdict.decide(hopeless).sentence


def test_nothing_at_all_is_never_promoted() -> None:
    assert verdict.decide([]).decision == "cannot tell"


def test_only_information_decides_nothing() -> None:
    rows = [*evidence("won"), replace(axis("details", "lost"), role="information")]
    assert verdict.decide(rows).decision == "promote"


def test_the_whole_table_follows_the_rule() -> None:
    outcomes: tuple[Outcome, ...] = ("won", "even", "lost", "cannot judge")
    for prompt, likeness, guard in itertools.product(outcomes, outcomes, outcomes):
        rows = [replace(a, outcome=guard) if a.name == "copies" else a for a in evidence(prompt, likeness)]
        expected = (
            "hold" if "lost" in (prompt, likeness, guard)
            else "cannot tell" if guard == "cannot judge"
            else "promote" if "won" in (prompt, likeness) else "cannot tell"
        )  # fmt: skip
        assert verdict.decide(rows).decision == expected
