"""How often chance alone is promoted: simulated comparisons of two models that are equally good.

    python -m benchmarks.verdict_nulls --trials 2000

A difference is prompt effect plus seed effect, each of mean zero. The verdict is the product's own (`decide`) on two target
axes, prompt and likeness, that share half of their variance, with no guard broken. Printed by distribution, number of prompts
and seeds a prompt: the share of comparisons that are promoted, and the coverage of the interval. Exit status 1 where a bar is
missed. Rows done are not done again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from dovetail.core import intervals
from dovetail.evaluation import axes, verdict
from dovetail.records import AxisResult

PROMPTS, SEEDS = (2, 3, 4, 8, 14, 16, 32), (1, 2, 3, 4)
MOST_PROMOTED = 0.03
COVERAGE, COVERAGE_WHERE_SKEWED = (0.93, 0.97), (0.90, 0.97)
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.lognormal(0, 0.5, shape) - np.exp(0.5**2 / 2)


DISTRIBUTIONS: dict[str, Draw] = {  # all of mean zero; skewed both ways, since the rule asks for one side only
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "exponential": lambda rng, shape: rng.exponential(1, shape) - 1,
    "exponential, to the left": lambda rng, shape: 1 - rng.exponential(1, shape),
    "lognormal": _lognormal,
    "lognormal, to the left": lambda rng, shape: -_lognormal(rng, shape),
    "t, 3 degrees": lambda rng, shape: rng.standard_t(3, shape),
}


def skewed(name: str) -> bool:
    """Whether a distribution has the wider bar."""
    return name.startswith(("exponential", "lognormal"))


def target(name: str, differences: Sequence[float], prompts: Sequence[str]) -> AxisResult:
    """A target axis of these differences, judged as the product does."""
    interval = intervals.paired_interval(differences, prompts)
    p_value = intervals.superiority_p_value(differences, prompts) if interval.low > 0 else 1.0  # no axis is won without both
    outcome = axes.target_outcome(interval, p_value)
    return AxisResult(name=name, role="target", outcome=outcome, unit="points", interval=interval, sentence="")


def two_axes(rng: np.random.Generator, draw: Draw, prompts: int, seeds: int) -> list[list[float]]:
    """Differences (prompts x seeds,) of two axes that share half of their variance."""
    shared, *own = ((draw(rng, (prompts, 1)) + draw(rng, (prompts, seeds))).ravel() for _ in range(3))
    return [((shared + one) / np.sqrt(2)).tolist() for one in own]


def measure(name: str, prompts: int, seeds: int, trials: int) -> dict[str, float]:
    """Shares over `trials` comparisons of one kind."""
    rng = np.random.default_rng([prompts, seeds, *name.encode()])
    owners = [f"prompt {i}" for i in range(prompts) for _ in range(seeds)]
    promoted, covered = 0, 0
    for _ in range(trials):
        first, second = two_axes(rng, DISTRIBUTIONS[name], prompts, seeds)
        found = [target("prompt", first, owners), target("likeness", second, owners)]
        promoted += verdict.decide(found).decision == "promote"
        covered += sum(a.interval.low <= 0 <= a.interval.high for a in found if a.interval)
    return {"promote": promoted / trials, "coverage": covered / trials / 2}


def missed(name: str, found: dict[str, float]) -> list[str]:
    """The bars that a row misses."""
    low, high = COVERAGE_WHERE_SKEWED if skewed(name) else COVERAGE
    return ["promote"] * (found["promote"] > MOST_PROMOTED) + ["coverage"] * (not low <= found["coverage"] <= high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2_000)
    parser.add_argument("--only", choices=list(DISTRIBUTIONS), help="one distribution")
    parser.add_argument("--out", type=Path, default=Path("build/verdict_nulls.json"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    bad = 0
    print(f"{'distribution':<26}{'prompts':>8}{'seeds':>6}{'promote':>9}{'coverage':>10}")
    for name, prompts, seeds in product(DISTRIBUTIONS, PROMPTS, SEEDS):
        if args.only and name != args.only:
            continue
        key = f"{name}, {prompts} prompts, {seeds} seeds, {args.trials} trials"
        if key not in rows:
            rows[key] = measure(name, prompts, seeds, args.trials)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
        found, faults = rows[key], missed(name, rows[key])
        bad += bool(faults)
        line = f"{name:<26}{prompts:>8}{seeds:>6}{found['promote']:>9.2%}{found['coverage']:>10.2%}"
        print(line + (f"  missed: {', '.join(faults)}" if faults else ""), flush=True)
    print(f"{bad} rows miss a bar")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
