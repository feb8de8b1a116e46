"""Correlated noise for client-level DP at the server, where cohorts are not sampled at random (DP-FTRL).

All rounds' models need the running sums A x of the rounds' aggregates x (A: lower triangle of ones). With
A = B C the server releases A x + B z = A (x + C^-1 z): each round's aggregate gets noise correlated with
earlier rounds', of which the running sums cancel a part. It is one Gaussian mechanism on C x for
the whole run, charged before the first round; no amplification by sampling is used or needed.

C is a lower-triangular Toeplitz matrix of `bands` bands, so that noise is a recurrence over the last
bands - 1 noise vectors, and clients that take part at least `bands` rounds apart meet columns that do
not overlap: their sensitivity is exact.

Central only: the server holds noise and sums. Unit: everything of one client; neighbours: one client's
updates in all its rounds replaced by zero. Adversary: other clients and outsiders.

The aggregates may depend on earlier releases: C is lower triangular and the noise Gaussian (Denisov, McMahan,
Rush, Smith and Thakurta 2022, arXiv 2202.08312).

Kairouz, McMahan, Song, Thakkar, Thakurta and Xu 2021 (arXiv 2103.00039); Choquette-Choo, Ganesh, McKenna,
McMahan, Rush, Thakurta and Xu 2023 (arXiv 2306.08153): banded factors, (k, b)-participation; Kalinin and
Lampert 2024 (arXiv 2405.13763): the banded square root.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from securefed.errors import PrivacyError
from securefed.privacy.events import CorrelatedGaussian

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Participation:
    """How often a client may take part: enforced by whoever selects, or the guarantee is void.

    Attributes:
        rounds: of the whole run, >= 1. separation: least distance of two rounds of one client, >= 1 (1: every
            round). most: rounds of one client at most, >= 1.

    Raises:
        PrivacyError: a field out of range.
    """

    rounds: int
    separation: int
    most: int

    def __post_init__(self) -> None:
        for name in ("rounds", "separation", "most"):
            if getattr(self, name) < 1:
                raise PrivacyError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def positions(self) -> range:
        """The earliest rounds that one client may take part in: 0, separation, ..., at most `most` of them."""
        count = min(self.most, -(-self.rounds // self.separation))
        return range(0, count * self.separation, self.separation)

    def allows(self, taken: Sequence[int], round: int) -> bool:
        """Whether a client that took part in these rounds, ascending, may take part in this one."""
        return len(taken) < self.most and (not taken or round - taken[-1] >= self.separation)


@dataclass(frozen=True)
class BandedToeplitz:
    """The factor C with coefficients c_0 = 1, c_1, ..., c_(bands - 1) down each column, and who may take part.

    Attributes:
        coefficients: c, each at least 0 and falling, c_0 = 1: so that the earliest rounds cost most.
        participation: with separation >= bands, or 1 band.

    Raises:
        PrivacyError: coefficients out of order, or rounds of one client closer than the bands are wide.
    """

    coefficients: tuple[float, ...]
    participation: Participation

    def __post_init__(self) -> None:
        c = self.coefficients
        if not c or c[0] != 1 or c[-1] < 0 or any(a < b for a, b in itertools.pairwise(c)):
            raise PrivacyError("a banded factor's coefficients start at 1, fall, and are at least 0")
        if len(c) > max(1, min(self.participation.separation, self.participation.rounds)):
            raise PrivacyError(
                f"{len(c)} bands need clients at least as many rounds apart, and as many rounds; got separation="
                f"{self.participation.separation}, rounds={self.participation.rounds}; use fewer bands"
            )

    @property
    def bands(self) -> int:
        """Number of coefficients: noise vectors that a round depends on, itself included."""
        return len(self.coefficients)

    @cached_property
    def sensitivity(self) -> float:
        """sup ||C x||_F over one client's updates of norm <= 1 in rounds it may take part in; exact.

        Columns at least `bands` apart have disjoint support, so squares add up. A column's norm falls with
        its number (the last ones are cut off), so the earliest positions are the worst.
        """
        squares = np.cumsum(np.square(self.coefficients))
        left = [min(self.bands, self.participation.rounds - k) for k in self.participation.positions]
        return math.sqrt(float(sum(squares[m - 1] for m in left)))

    @cached_property
    def inverse(self) -> Array:
        """The first column of C^-1, float64 (rounds,): w_0 = 1, w_t = -sum_j c_j w_(t-j)."""
        return _inverse(self.coefficients, self.participation.rounds)

    @property
    def round_deviations(self) -> Array:
        """Deviation of each running sum's noise for z of deviation 1: row norms of A C^-1, float64 (rounds,)."""
        deviations: Array = np.sqrt(np.cumsum(np.square(np.cumsum(self.inverse))))
        return deviations

    @property
    def total_error(self) -> float:
        """Root mean square over rounds of the running sums' noise at noise multiplier 1 and clip 1."""
        return self.sensitivity * float(np.sqrt(np.mean(np.square(self.round_deviations))))

    @property
    def max_error(self) -> float:
        """The last running sum's noise, the largest, at noise multiplier 1 and clip 1."""
        return self.sensitivity * float(self.round_deviations[-1])

    def event(self, noise_multiplier: float) -> CorrelatedGaussian:
        """What the whole run spends, charged once: a Gaussian mechanism without sampling.

        Args:
            noise_multiplier: deviation of z over (clip x sensitivity).
        """
        p = self.participation
        return CorrelatedGaussian(
            noise_multiplier, 1.0, 1, p.rounds, self.bands, p.separation, len(p.positions)
        )


def independent(participation: Participation) -> BandedToeplitz:
    """C = 1: every round its own noise, as in DP-FedAvg without amplification."""
    return BandedToeplitz((1.0,), participation)


def square_root(participation: Participation, bands: int) -> BandedToeplitz:
    """The square root of A, cut after `bands` bands: c_j = binomial(2j, j) / 4^j. Closed form.

    Raises:
        PrivacyError: more bands than the separation or the rounds.
    """
    if bands < 1:
        raise PrivacyError(f"bands must be at least 1, got {bands}")
    coefficients = [1.0]
    for j in range(1, bands):
        coefficients.append(coefficients[-1] * (2 * j - 1) / (2 * j))
    return BandedToeplitz(tuple(coefficients), participation)


@lru_cache(maxsize=64)
def optimized(participation: Participation, bands: int) -> BandedToeplitz:
    """The banded Toeplitz factor of least total error, by local search from the square root.

    Never worse than the square root of the same or of fewer bands. Falling coefficients are kept by writing
    c_j as a product of ratios in (0, 1).

    Raises:
        PrivacyError: as `square_root`.
    """
    from scipy.optimize import minimize

    start = min((square_root(participation, b) for b in range(1, bands + 1)), key=lambda f: f.total_error)
    if bands == 1:
        return start

    def factor(free: Array) -> BandedToeplitz:
        ratios = 1 / (1 + np.exp(-np.clip(free, -40, 30)))
        return BandedToeplitz((1.0, *np.cumprod(ratios).tolist()), participation)

    ratios = np.array([(2 * j - 1) / (2 * j) for j in range(1, bands)])
    found = minimize(
        lambda free: math.log(factor(free).total_error),
        np.log(ratios / (1 - ratios)),
        method="L-BFGS-B",
        options={"maxiter": 100, "maxfun": 4000},
    )
    best = factor(np.asarray(found.x))
    return best if best.total_error < start.total_error else start


def best_bands(participation: Participation, most: int = 64) -> BandedToeplitz:
    """The square root of the number of bands with the least total error, at most `most`."""
    widest = min(most, participation.separation, participation.rounds)
    return min((square_root(participation, b) for b in range(1, widest + 1)), key=lambda f: f.total_error)


def _inverse(coefficients: tuple[float, ...], rounds: int) -> Array:
    from scipy.signal import lfilter

    impulse = np.zeros(rounds)
    impulse[0] = 1
    filtered: Array = lfilter([1.0], np.asarray(coefficients), impulse)
    return filtered
