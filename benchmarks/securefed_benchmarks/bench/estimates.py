"""Means and intervals over seeds, paired differences, the worst case over attacks; too few seeds are said.

An interval is Student's t over seeds, which are independent draws of shards, first model, liars and attack
noise. Seeds are paired: cells of one seed differ in nothing but the choice, so differences are taken seed by
seed. The worst case over k attacks is the lowest of several means. Its interval reaches from the lowest lower end of
the attacks' own intervals (the true worst one's is among them, so nothing is to be corrected) to the lowest upper end
of intervals that hold for all of them together (Bonferroni). It covers at least as often as it says, with few seeds
too, where a bootstrap of the lowest mean does not: of 3 seeds of 5 attacks it covered half the time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
FEW = 5
"""Below so many seeds a report says that there are few."""
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
    how: Literal["t", "none"]

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
        ValueError: no seed in common, or a ratio to zero.
    """
    both = sorted(of.keys() & over.keys())
    if not both:
        raise ValueError("no seed in common, so nothing is paired")
    if how == "minus":
        return mean_interval([of[s] - over[s] for s in both])
    zeros = [s for s in both if over[s] == 0]
    if zeros:
        raise ValueError(f"a ratio to zero, in seed {zeros[0]}")
    return mean_interval([of[s] / over[s] for s in both])


def worst(attacks: Mapping[str, BySeed], *, lowest: bool = True) -> tuple[str, Estimate]:
    """The attack with the worst mean, and an interval of the worst true mean over the seeds that all have.

    Args:
        lowest: the worst is the lowest mean (accuracy), else the highest (an attack's success).

    Raises:
        ValueError: no attack, or no seed in common.
    """
    if not attacks:
        raise ValueError("the worst case needs an attack")
    seeds = sorted(set.intersection(*(set(v) for v in attacks.values())))
    if not seeds:
        raise ValueError("no seed that all attacks have, so nothing is paired")
    if not lowest:
        name, found = worst({n: {s: -v for s, v in values.items()} for n, values in attacks.items()})
        return name, Estimate(-found.mean, -found.high, -found.low, found.seeds, found.how)
    table = {name: [values[s] for s in seeds] for name, values in attacks.items()}
    alone = {name: mean_interval(values) for name, values in table.items()}
    together = 1 - (1 - CONFIDENCE) / len(table)
    name = min(alone, key=lambda n: alone[n].mean)
    mean = alone[name].mean
    if any(e.how == "none" for e in alone.values()):
        return name, Estimate(mean, -math.inf, math.inf, len(seeds), "none")
    high = min(mean_interval(values, together).high for values in table.values())
    return name, Estimate(mean, min(e.low for e in alone.values()), high, len(seeds), "t")
