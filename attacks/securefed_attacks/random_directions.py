"""An estimate of epsilon from random directions: what to expect of a mechanism, never a bound on it.

Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar 2024, "One-shot Empirical Privacy Estimation for Federated
Learning" (arXiv 2302.03098). A random direction that nobody sent has a cosine of about N(0, 1/d) with
whatever was released; those that were sent have a larger one. Normal distributions are fitted to both, and
the epsilon between the two is the estimate: exact in the limit for one Gaussian release of many coordinates,
a number without confidence for everything else. So it has no verdict and fails no claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from securefed_attacks.canaries import Isotropic
from securefed_attacks.epsilon_bounds import MOST_EPSILON, check_delta

FEWEST = 10
"""Sent directions below which a spread is not worth fitting."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An epsilon that may lie on either side of the truth.

    Attributes:
        epsilon: at delta. sent: directions it was fitted to. mean, std: of their cosines.
        null_std: 1 / sqrt(d), of directions that were not sent.
    """

    epsilon: float
    delta: float
    sent: int
    mean: float
    std: float
    null_std: float

    def __str__(self) -> str:
        return f"epsilon about {self.epsilon:.2f} at delta {self.delta:g} (an estimate from {self.sent} random directions, no bound)"


def estimate_epsilon(canaries: Isotropic, released: ArrayLike, *, delta: float) -> Estimate:
    """The estimate from one release (d,), or from the sum of a run's releases.

    Raises:
        ValueError: fewer than 10 canaries were sent, or a release of zeros.
    """
    check_delta(delta)
    sent = canaries.scores(released)[canaries.included]
    length = float(np.linalg.norm(np.asarray(released, np.float64)))
    if sent.size < FEWEST or length == 0:
        raise ValueError(
            f"an estimate needs a release that is not zero and {FEWEST} directions in it, found {sent.size}"
        )
    cosines = sent / length
    mean, std, null = float(cosines.mean()), float(cosines.std(ddof=1)), canaries.d**-0.5
    return Estimate(normal_epsilon(mean / null, std / null, delta), delta, sent.size, mean, std, null)


def normal_epsilon(mean: float, std: float, delta: float) -> float:
    """The smallest epsilon with which N(0, 1) and N(mean, std^2) are (epsilon, delta)-indistinguishable, both ways.

    >>> round(normal_epsilon(0.501, 1.0, 1e-5), 2)
    2.0
    """
    if not std > 0:
        raise ValueError(f"a deviation is above 0, got {std}")
    low, high = 0.0, MOST_EPSILON
    if _largest_delta(mean, std, 0.0) <= delta:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _largest_delta(mean, std, middle) > delta else (low, middle)
    return high


def _largest_delta(mean: float, std: float, epsilon: float) -> float:
    """The larger of both hockey-stick divergences; the second is the first with the roles changed."""
    forward = _delta(mean, std, epsilon)
    return max(forward, _delta(-mean / std, 1 / std, epsilon))


def _delta(mean: float, std: float, epsilon: float) -> float:
    """Integral of max(0, p - e^epsilon q) for p = N(mean, std^2) and q = N(0, 1), exact but for rounding.

    Where p exceeds e^epsilon q, a quadratic a x^2 + b x + c is positive.
    """
    a = (1 - std**-2) / 2
    b, c = mean * std**-2, -((mean / std) ** 2) / 2 - math.log(std) - epsilon
    if abs(a) < 1e-9:
        if b == 0:
            return 0.0
        return _between(mean, std, epsilon, *((-c / b, math.inf) if b > 0 else (-math.inf, -c / b)))
    root = b * b - 4 * a * c
    if root <= 0:
        return 0.0 if a < 0 else 1 - math.exp(epsilon)
    first, second = sorted((-b - sign * math.sqrt(root)) / (2 * a) for sign in (1, -1))
    if a < 0:
        return _between(mean, std, epsilon, first, second)
    lower = _between(mean, std, epsilon, -math.inf, first)
    return lower + _between(mean, std, epsilon, second, math.inf)


def _between(mean: float, std: float, epsilon: float, low: float, high: float) -> float:
    """P[low < x < high] under p less e^epsilon times the same under q, from the smaller tail of each."""
    return _mass((low - mean) / std, (high - mean) / std) - math.exp(epsilon) * _mass(low, high)


def _mass(low: float, high: float) -> float:
    if low > 0:
        low, high = -high, -low
    return float(special.ndtr(high) - special.ndtr(low))
