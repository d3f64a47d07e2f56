"""Means over folds, and paired differences with Student's interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean of n paired differences and the ends of its 95 % interval (None with fewer than two pairs)."""

    mean: float
    low: float | None
    high: float | None
    n: int
    pairs: str


def paired_interval(differences: Sequence[float], pairs: str = "folds") -> Interval:
    """Mean ± t(n − 1, 97.5 %) · s / √n, with s the sample standard deviation of n differences.

    Training sets of folds overlap, so the differences are not quite independent and the interval is somewhat short.
    """
    from scipy.stats import t

    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return Interval(mean, None, None, n, pairs)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, pairs)


Cells = Mapping[tuple[str, int], float]


def by_fold(cells: Cells) -> dict[str, float]:
    """(fold, seed) → value becomes fold → mean over its seeds."""
    folds: dict[str, list[float]] = {}
    for (fold, _), value in sorted(cells.items()):
        folds.setdefault(fold, []).append(value)
    return {fold: statistics.fmean(values) for fold, values in folds.items()}


def mean_and_sd(cells: Cells) -> tuple[float, float | None]:
    """Mean over folds (each the mean of its seeds) and their sample standard deviation, over seeds for one fold."""
    values = list(by_fold(cells).values())
    mean = statistics.fmean(values)
    if len(values) == 1:
        values = list(cells.values())
    return mean, statistics.stdev(values) if len(values) > 1 else None


def paired_difference(cells: Cells, others: Cells) -> Interval | None:
    """Of `cells` minus `others`, over the (fold, seed) that both have: by fold, or by seed where there is one fold."""
    common = sorted(set(cells) & set(others))
    if not common:
        return None
    differences = {key: cells[key] - others[key] for key in common}
    folds = by_fold(differences)
    if len(folds) > 1:
        return paired_interval(list(folds.values()))
    return paired_interval(list(differences.values()), "seeds")
