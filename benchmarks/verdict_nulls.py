"""How often chance alone is promoted: simulated comparisons of two models that are equally good.

    python benchmarks/verdict_nulls.py --trials 2000

A difference is prompt effect plus seed effect, each of mean zero. Printed by number of prompts, distribution and seeds a
prompt: the share of comparisons that the rule would promote where one axis may be won, the same where two may (`both`: prompt
and likeness, correlated by 0.5), and the coverage of the interval. Exit status 1 where a bar is missed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from dovetail.core.statistics import paired_interval
from dovetail.records import Interval

PROMPTS, SEEDS = (2, 3, 4, 8, 14, 16, 32), (1, 2, 3, 4)
FEWEST = 5  # prompts that may promote
BARS = {"promote": 0.03, "coverage": (0.93, 0.97), "coverage where skewed": (0.90, 1.0)}
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.lognormal(0, 0.5, shape) - np.exp(0.5**2 / 2)


DISTRIBUTIONS: dict[str, Draw] = {  # all of mean zero
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "exponential": lambda rng, shape: rng.exponential(1, shape) - 1,
    "exponential, to the left": lambda rng, shape: 1 - rng.exponential(1, shape),
    "lognormal": _lognormal,
    "lognormal, to the left": lambda rng, shape: -_lognormal(rng, shape),
    "t, 3 degrees": lambda rng, shape: rng.standard_t(3, shape),
}
SKEWED = {name for name in DISTRIBUTIONS if "normal" not in name.split() and "t," not in name.split()}


def promotes(axes: list[Interval]) -> bool:
    """The rule, with every guard whole: one axis won, and prompts enough."""
    return any(axis.low > 0 and axis.count >= FEWEST for axis in axes)


def differences(rng: np.random.Generator, draw: Draw, prompts: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Two axes of differences (prompts x seeds,) that share half of their variance."""
    shared, *own = ((draw(rng, (prompts, 1)) + draw(rng, (prompts, seeds))).ravel() for _ in range(3))
    first, second = ((shared + one) / np.sqrt(2) for one in own)
    return first, second


def measure(name: str, prompts: int, seeds: int, trials: int) -> dict[str, float]:
    """Shares over `trials` comparisons of one kind."""
    rng = np.random.default_rng([prompts, seeds, *name.encode()])
    clusters = [f"prompt {i}" for i in range(prompts) for _ in range(seeds)]
    one, both, covered = 0, 0, 0
    for _ in range(trials):
        first, second = (
            paired_interval(values.tolist(), clusters) for values in differences(rng, DISTRIBUTIONS[name], prompts, seeds)
        )
        one += promotes([first])
        both += promotes([first, second])
        covered += first.low <= 0 <= first.high
    return {"promote": one / trials, "both": both / trials, "coverage": covered / trials}


def missed(name: str, prompts: int, found: dict[str, float]) -> list[str]:
    """The bars that a row misses; the sampling error of its own trials is allowed for nowhere."""
    low, high = BARS["coverage where skewed" if name in SKEWED else "coverage"]
    return [axis for axis in ("promote", "both") if found[axis] > BARS["promote"]] + (
        [] if low <= found["coverage"] <= high else ["coverage"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2_000)
    parser.add_argument("--only", help="one distribution")
    parser.add_argument("--out", type=Path, default=Path("build/verdict_nulls.json"), help="rows done are not done again")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    bad = 0
    print(f"{'distribution':<26}{'prompts':>8}{'seeds':>6}{'promote':>9}{'both':>7}{'coverage':>10}")
    for name, prompts, seeds in product(DISTRIBUTIONS, PROMPTS, SEEDS):
        if args.only and name != args.only:
            continue
        key = f"{name}, {prompts} prompts, {seeds} seeds, {args.trials} trials"
        if key not in rows:
            rows[key] = measure(name, prompts, seeds, args.trials)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
        found, faults = rows[key], missed(name, prompts, rows[key])
        bad += bool(faults)
        line = f"{name:<26}{prompts:>8}{seeds:>6}{found['promote']:>9.2%}{found['both']:>7.2%}{found['coverage']:>10.2%}"
        print(line + (f"  missed: {', '.join(faults)}" if faults else ""), flush=True)
    print(f"{bad} rows miss a bar")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
