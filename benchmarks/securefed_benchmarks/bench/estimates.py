"""Means and intervals over seeds, paired differences, the worst case over attacks; too few seeds are said.

An interval is Student's t over seeds, which are independent draws of shards, first model, liars and attack
noise. Seeds are paired: cells of one seed differ in nothing but the choice, so differences are taken seed by
seed. The worst case over attacks is the smallest of several means, whose interval no t distribution gives; it
is bootstrapped over seeds (Efron 1979), which is too narrow below about ten seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
FEW = 5
"""Below so many seeds a report says that there are few."""
REPEATS = 2000
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, or why there is none.

    Attributes:
        low, high: infinite where one seed says nothing of the spread. how: what kind of interval it is.
    """

    mean: float
    low: float
    high: float
    seeds: int
    how: Literal["t", "bootstrap", "none"]

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2

    @property
    def few(self) -> str:
        """What must be said about the number of seeds; empty where there are enough."""
        if self.seeds == 0:
            return "no seed"
        if self.seeds == 1:
            return "one seed: no interval"
        return f"only {self.seeds} seeds" if self.seeds < FEW else ""


def quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Student's t at the upper end of a two-sided interval."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean and its t interval.

    Raises:
        ValueError: no value.

    >>> found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> found.mean, round(found.half, 3)
    (3.0, 1.963)
    """
    if not values:
        raise ValueError("a mean needs a value")
    mean = statistics.fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Estimate(mean, -math.inf, math.inf, len(values), "none")
    half = quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values), "t")


def paired(of: BySeed, over: BySeed, how: Literal["minus", "ratio"] = "minus") -> Estimate:
    """The mean difference (or ratio) over the seeds that both have.

    Raises:
        ValueError: no seed in common.
    """
    both = sorted(of.keys() & over.keys())
    if not both:
        raise ValueError("no seed in common, so nothing is paired")
    return mean_interval([of[s] - over[s] if how == "minus" else of[s] / over[s] for s in both])


def worst(
    attacks: Mapping[str, BySeed], *, lowest: bool = True, generator: np.random.Generator | None = None
) -> tuple[str, Estimate]:
    """The attack with the worst mean, and the worst mean's bootstrap interval over the seeds that all have.

    Seeds are drawn whole, so attacks stay paired, and the worst is looked for anew in every draw.

    Args:
        lowest: the worst is the lowest mean (accuracy), else the highest (an attack's success).

    Raises:
        ValueError: no attack, or no seed in common.
    """
    if not attacks:
        raise ValueError("the worst case needs an attack")
    names = list(attacks)
    seeds = sorted(set.intersection(*(set(v) for v in attacks.values())))
    if not seeds:
        raise ValueError("no seed that all attacks have, so nothing is paired")
    table = np.array([[attacks[name][s] for s in seeds] for name in names])
    pick, ends = (np.argmin, np.min) if lowest else (np.argmax, np.max)
    means = table.mean(1)
    name, value = names[int(pick(means))], float(ends(means))
    if len(seeds) < 2 or not np.isfinite(table).all():
        return name, Estimate(value, -math.inf, math.inf, len(seeds), "none")
    rng = generator or np.random.default_rng(0)  # seeded: the same results give the same page
    draws = rng.integers(0, len(seeds), (REPEATS, len(seeds)))
    extremes = ends(table[:, draws].mean(2), axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(q) for q in np.quantile(extremes, [tail, 1 - tail]))
    return name, Estimate(value, min(low, value), max(high, value), len(seeds), "bootstrap")
