"""Paired differences with an interval: the bootstrap over clusters (Efron 1979; Field & Welsh 2007)."""

from collections.abc import Sequence

import numpy as np

from dovetail.records import Interval


def paired_interval(differences: Sequence[float], clusters: Sequence[str], seed: int = 0, draws: int = 10_000) -> Interval:
    """Mean of `differences` with its 95 % percentile interval, whole clusters (prompts, pictures) drawn with replacement.

    One cluster or none says nothing about another one: the interval is then infinite.
    """
    names = sorted(set(clusters))
    if not names:
        return Interval(mean=0.0, low=float("-inf"), high=float("inf"), count=0)
    values, owners = np.asarray(differences, dtype=np.float64), np.asarray(clusters)
    sums = np.array([values[owners == name].sum() for name in names])
    counts = np.array([(owners == name).sum() for name in names])
    mean = float(values.mean())
    if len(names) < 2:
        return Interval(mean=mean, low=float("-inf"), high=float("inf"), count=len(names))
    picked = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    means = sums[picked].sum(1) / counts[picked].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean=mean, low=float(low), high=float(high), count=len(names))


def share_above(values: Sequence[float], reference: Sequence[float], percentile: float = 99.0) -> float:
    """Share of `values` above the given percentile of `reference`; 0 where one is empty."""
    if not len(values) or not len(reference):
        return 0.0
    return float((np.asarray(values) > np.percentile(reference, percentile)).mean())
