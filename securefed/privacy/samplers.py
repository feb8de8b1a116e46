"""Integer noise for distributed DP, from a secret stream: the discrete Gaussian and Skellam, vectorised.

What is drawn follows a table of exact counts over 2^192 (`alias.py`), whose total-variation distance from
the law is bounded and carried along as `distance`, to be charged to delta: (epsilon, delta') for the law
is (epsilon, delta' + (1 + e^epsilon) n distance) for n draws.

A wide law does not fit one small table. It is then a sum of levels, each on a grid of its own:
X = X_1 + s_2 X_2 + s_3 X_3, where X_i has the probabilities of the narrower law *of the same family* at the
multiples of s_i. Multiplying characteristic functions shows that the sum has the wide law's, plus
cross terms that are below 2^-192 once each level is wide against the next grid (the smoothing argument of
Micciancio and Walter 2017, ePrint 2017/259, section 4, here for both families).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError
from securefed.privacy.alias import UNIT, UNIT_BITS, AliasTable, build
from securefed.privacy.discrete_weights import DIGITS, Family, half_weights

_BLOCK = 1 << 14  # draws at a time: all intermediate arrays stay in the cache
_WIDEST = 230.0  # deviations of one level in units of its grid: at most 8,192 cells
_OVERLAP = 3.0  # a level's deviation over the next level's grid: cross terms e^(-2 pi^2 3^2) = 2^-256
LARGEST_DEVIATION = 1e7
MOST_DISTANCE = 2.0**-170
"""No sampler made here is further from its law; what events charge, so that they do not depend on tables."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Draws from a law over the integers with mean 0.

    Attributes:
        family: "gaussian" (N_Z(0, variance): P(x) proportional to exp(-x^2 / (2 variance))) or "skellam"
            (difference of two independent Poisson(variance / 2)).
        variance: the parameter. Skellam's variance is exactly this; the discrete Gaussian's is at most it.
        distance: bound on the total-variation distance of one draw from the law.
        levels: finest grid first; public, like everything here.
    """

    family: Family
    variance: float
    distance: float
    levels: tuple[AliasTable, ...] = field(repr=False)

    def draw(self, n: int, stream: Stream) -> NDArray[np.int64]:
        """n independent draws, int64 (n,)."""
        out = np.empty(n, np.int64)
        for start in range(0, n, _BLOCK):
            block = out[start : start + _BLOCK]
            block[:] = self.levels[0].draw(len(block), stream)
            for level in self.levels[1:]:
                block += level.draw(len(block), stream)
        return out


def discrete_gaussian(variance: float) -> Sampler:
    """The sampler of N_Z(0, variance), made once and remembered.

    Raises:
        PrivacyError: variance not a positive number, or above 10^14.
    """
    return _sampler("gaussian", variance)


def skellam(variance: float) -> Sampler:
    """The sampler of Skellam noise of this variance, made once and remembered.

    Raises:
        PrivacyError: variance not a positive number, or above 10^14.
    """
    return _sampler("skellam", variance)


@lru_cache(maxsize=64)
def _sampler(family: Family, variance: float) -> Sampler:
    if not (math.isfinite(variance) and 1e-4 <= variance <= LARGEST_DEVIATION**2):
        raise PrivacyError(
            f"integer noise needs a variance between 1e-4 and {LARGEST_DEVIATION**2:g}, got {variance!r}; "
            "change the resolution of the quantizer"
        )
    exact = Fraction(variance)  # the float itself, no rounding
    plan = _plan(exact)
    tables, distance = [], 0.0
    for stride, share in plan:
        counts, first, error = _counts(family, share, stride)
        tables.append(build(counts, first, stride))
        distance += error
    for lower in range(len(plan) - 1):
        distance += _merging(plan, lower)
    if distance > MOST_DISTANCE:
        raise PrivacyError(f"the {family} sampler of variance {variance:g} misses its law by {distance:.2g}")
    return Sampler(family, variance, distance, tuple(tables))


def _plan(variance: Fraction) -> list[tuple[int, Fraction]]:
    """(grid, variance) of each level, finest first; the variances add up exactly."""
    deviation = math.sqrt(variance)
    levels = 1
    while deviation > _WIDEST:
        levels += 1
        k = math.ceil((deviation / _OVERLAP) ** (1 / levels))
        if max(_OVERLAP * k, deviation / k ** (levels - 1)) <= _WIDEST:
            lower = [(k**i, Fraction(math.ceil((_OVERLAP * k ** (i + 1)) ** 2))) for i in range(levels - 1)]
            return [*lower, (k ** (levels - 1), variance - sum(v for _, v in lower))]
    return [(1, variance)]


def _counts(family: Family, variance: Fraction, stride: int) -> tuple[list[int], int, float]:
    """Counts over 2^192 of the values first, first + stride, ...; first; their distance from the law."""
    half, tail = half_weights(family, variance, stride)
    with localcontext(Context(prec=DIGITS)):
        total = half[0] + 2 * sum(half[1:], Decimal(0))
        right = [int(weight / total * UNIT) for weight in half]
        missed = float(2 * tail / total)
    middle = len(half) - 1
    counts = [*right[:0:-1], *right]
    rest = UNIT - sum(counts)
    counts[middle] += rest
    # Rounding down moves less than one count per value to the middle; the tail's mass is spread over all.
    return counts, -middle * stride, (len(counts) + 1) * 2.0**-UNIT_BITS + missed


def _merging(plan: list[tuple[int, Fraction]], lower: int) -> float:
    """Distance that adding level `lower` to those above it costs.

    The characteristic function of a law of variance v at the multiples of s is the sum of phi_v over shifts by
    2 pi / s. In a product of two such sums, the terms whose shifts differ are errors; with a the difference,
    |phi_v(t) phi_w(t + a)| <= exp(-E), E = (v + w) - sqrt((v + w)^2 - 2 v w (1 - cos a)) for Skellam, and less
    for the Gaussian. There are at most s_lower s_upper of them, each bounds an error of every probability,
    and outside of 20 deviations both laws have mass below 2^-192.
    """
    grid, v = float(plan[lower][0]), float(plan[lower][1])
    upper = float(plan[lower + 1][0])
    w = float(sum(share for _, share in plan[lower + 1 :]))
    spread = 2 * v * w * 2 * math.sin(math.pi / upper) ** 2
    exponent = spread / (v + w + math.sqrt((v + w) ** 2 - spread))
    points = 40 * math.sqrt(v + w) / grid + 2
    return 2 * points * grid * upper * math.exp(-exponent) + 2.0**-UNIT_BITS
