"""Confidence intervals and tests for paired differences at small numbers of prompts or pictures."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dovetail.records import Interval

LEVEL = 0.95  # of every interval that is shown
MAX_SKEWNESS = 1.0  # sample skewness is capped: at small counts its estimate is mostly noise
EXACT_FLIPS = 14  # clusters up to which all sign flips are tried, 2^14 of them
FAR_OUT = 0.001  # one-sided p-value beyond which the correction for skewness no longer grows
POWER = 0.8  # with which the needed clusters would see the difference
MOST_NEEDED = 10_000  # clusters; a difference that wants more is no difference in practice


def cluster_means(differences: Sequence[float], clusters: Sequence[str]) -> NDArray[np.float64]:
    """Mean difference of each cluster (a prompt with its seeds, a picture), in the order of the clusters' names."""
    values, owners = np.asarray(differences, dtype=np.float64), np.asarray(clusters)
    return np.array([values[owners == name].mean() for name in sorted(set(clusters))])


def paired_interval(differences: Sequence[float], clusters: Sequence[str], level: float = LEVEL) -> Interval:
    """Mean of the clusters' mean differences, with its `level` interval.

    Student's t over cluster means, transformed for skewness (Hall 1992, On the removal of skewness by transformation). With a
    single cluster the interval is infinite.
    """
    means = cluster_means(differences, clusters)
    count = len(means)
    if count < 2:
        return Interval(mean=float(means.mean()) if count else 0.0, low=-math.inf, high=math.inf, count=count)
    mean, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(count)
    if error == 0 or not math.isfinite(error):
        low = high = mean if error == 0 else math.nan
        return Interval(mean=mean, low=low, high=high, count=count)
    quantile = float(stats.t.ppf((1 + level) / 2, count - 1))
    skew = _skewness(means)
    low, high = (mean - error * _inverse_hall(q, skew, count) for q in (quantile, -quantile))
    return Interval(mean=mean, low=low, high=high, count=count)


def superiority_p_value(differences: Sequence[float], clusters: Sequence[str]) -> float:
    """One-sided p-value of "the mean difference is not above zero"; 1 with fewer than two clusters.

    The largest of three: Student's t, Johnson's t for skewed populations (Johnson 1978, eq. 2.7), and up to 14 clusters the
    exact sign-flip test (Fisher 1935). Each alone says "better" too often in some case (skewed differences, few clusters); together they do not.
    """
    means = cluster_means(differences, clusters)
    count = len(means)
    if count < 2 or not np.isfinite(means).all():
        return 1.0
    flipped = _sign_flip_p_value(means) if count <= EXACT_FLIPS else 0.0
    error = float(means.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return max(flipped, 0.0 if means.mean() > 0 else 1.0)
    t = float(means.mean()) / error
    bent = min(t, float(stats.t.isf(FAR_OUT, count - 1)))  # farther out the parabola would turn a clear gain into a loss
    corrected = t + (1 / 6 + bent**2 / 3) * _unbiased_skewness(means) / math.sqrt(count)
    return max(flipped, float(stats.t.sf(t, count - 1)), float(stats.t.sf(corrected, count - 1)))


def needed_clusters(differences: Sequence[float], clusters: Sequence[str], alpha: float, least: int) -> int | None:
    """About how many clusters a difference as large and as scattered as this one needs to be seen at `alpha`, one-sided.

    None where the mean is not above zero, or where more than 10,000 would be needed: more of the same will not help.
    """
    means = cluster_means(differences, clusters)
    if len(means) < 2 or not np.isfinite(means).all() or means.mean() <= 0:
        return None
    effect = float(means.mean()) / max(float(means.std(ddof=1)), 1e-12)
    count = max(least, 2)
    while math.sqrt(count) * effect < stats.t.ppf(1 - alpha, count - 1) + stats.norm.ppf(POWER):
        count += max(1, count // 16)
        if count > MOST_NEEDED:
            return None
    return count


def rate_interval(hits: int, count: int, level: float = LEVEL) -> Interval:
    """A share with its Wilson score interval (Wilson 1927); 0 to 1 where nothing was counted."""
    if count == 0:
        return Interval(mean=0.0, low=0.0, high=1.0, count=0)
    found = stats.binomtest(hits, count).proportion_ci(level, method="wilson")
    return Interval(mean=hits / count, low=float(found.low), high=float(found.high), count=count)


def _skewness(means: NDArray[np.float64]) -> float:
    spread = float(means.std())
    value = float(((means - means.mean()) ** 3).mean()) / spread**3 if spread else 0.0
    return min(max(value, -MAX_SKEWNESS), MAX_SKEWNESS)


def _unbiased_skewness(means: NDArray[np.float64]) -> float:
    """Sample skewness corrected for its bias at small counts, not capped: what it overstates makes the test stricter."""
    return float(stats.skew(means, bias=False)) if len(means) > 2 else 0.0


def _inverse_hall(value: float, skew: float, count: int) -> float:
    """The t value whose transform g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 is `value`, a = skewness / sqrt(count)."""
    a = skew / math.sqrt(count)
    if abs(a) < 1e-9:
        return value
    return 3 / a * (float(np.cbrt(1 + a * (value - a / 6))) - 1)


def _sign_flip_p_value(means: NDArray[np.float64]) -> float:
    """Share of all sign flips whose mean is at least the observed one (Fisher 1935)."""
    sums = _all_signs(len(means)) @ means
    return float((sums >= means.sum() - 1e-12 * np.abs(means).sum()).mean())


@cache
def _all_signs(count: int) -> NDArray[np.float64]:
    bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
    return 1.0 - 2.0 * bits
