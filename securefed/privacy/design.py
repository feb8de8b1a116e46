"""Choosing a distributed mechanism's constants: quantizer levels for a ring, bits, noise for a target epsilon.

A ring of 2^b holds signal and noise of all clients; the finer the quantizer, the less rounding adds to the
sensitivity, and the sooner a sum wraps around. So levels are as many as the stated wrap-around
probability allows, and bits are enough when rounding costs little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.events import Event
from securefed.privacy.rounding import MOST_LEVELS, rounded_norm_squared
from securefed.privacy.samplers import LARGEST_DEVIATION
from securefed.privacy.wraparound import wrap_probability

M = TypeVar("M", bound=DistributedMechanism)

WRAP = 2.0**-40
"""Wrap-around probability a round that `design` aims at."""

MOST_INFLATION = 1.25
LITTLE_INFLATION = 1.01
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Who sums what in which ring; the fields are `DistributedMechanism`'s, all public.

    Attributes:
        dimension: of the update. clip: its L2 clipping norm.
        clients: most in one sum. min_survivors: fewest. corrupt: of those, assumed not to protect.
        bits: of the ring. vectors: most clipped vectors that one client adds up (1: client level).
    """

    dimension: int
    clip: float
    clients: int
    min_survivors: int
    corrupt: int = 0
    bits: int = 16
    vectors: int = 1


def design(
    kind: type[M],
    cohort: Cohort,
    noise_multiplier: float,
    *,
    wrap: float = WRAP,
    most_inflation: float = MOST_INFLATION,
) -> M:
    """The mechanism with the finest quantizer that the ring holds.

    Args:
        kind: DistributedGaussian or DistributedSkellam.
        noise_multiplier: of the honest noise, over the sensitivity after rounding; > 0.
        wrap: bound on the probability that one round's sum wraps around.
        most_inflation: sensitivity after rounding over the clipping norm, at most.

    Raises:
        PrivacyError: an argument out of range; too few bits, so that rounding would add more than that (by
            default a quarter) to the sensitivity; the message names how many bits would do.

    >>> from securefed.privacy.distributed import DistributedSkellam
    >>> cohort = Cohort(dimension=1000, clip=1.0, clients=100, min_survivors=90)
    >>> design(DistributedSkellam, cohort, 1.0).wrap_probability <= 2**-40
    True
    """
    levels, variance = _finest(kind, cohort, noise_multiplier, wrap)
    if levels == 0 or _inflation(levels, cohort) > most_inflation:
        raise PrivacyError(
            f"bits={cohort.bits} are too few for {cohort.clients} clients, dimension {cohort.dimension} and noise "
            f"multiplier {noise_multiplier:g}: rounding would drown the clipped update; use bits="
            f"{enough_bits(kind, cohort, noise_multiplier, wrap=wrap)}"
        )
    return kind(
        dimension=cohort.dimension,
        clip=cohort.clip,
        levels=levels,
        variance=variance,
        clients=cohort.clients,
        min_survivors=cohort.min_survivors,
        corrupt=cohort.corrupt,
        bits=cohort.bits,
        vectors=cohort.vectors,
    )


def enough_bits(
    kind: type[M],
    cohort: Cohort,
    noise_multiplier: float,
    *,
    wrap: float = WRAP,
    inflation: float = LITTLE_INFLATION,
) -> int:
    """The fewest bits with which rounding adds at most 1 % (`inflation`) to the sensitivity; cohort.bits is not read.

    Raises:
        PrivacyError: more than 32 would be needed.
    """
    for bits in range(2, 33):
        levels, _ = _finest(kind, replace(cohort, bits=bits), noise_multiplier, wrap)
        if levels and _inflation(levels, cohort) <= inflation:
            return bits
    raise PrivacyError(
        f"no ring of up to 32 bits holds {cohort.clients} clients at dimension {cohort.dimension} with noise "
        f"multiplier {noise_multiplier:g}; split the cohort or send fewer coordinates"
    )


def calibrate(
    kind: type[M],
    cohort: Cohort,
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    sample_rate: float = 1.0,
    beside: Sequence[Event] = (),
    wrap: float = WRAP,
) -> M:
    """The mechanism with the least noise, up to 0.1 %, whose `rounds` sums spend at most epsilon at delta.

    Args:
        sample_rate: at example level, of the secret Poisson sampling inside each client. At client level 1:
            the server knows who takes part.
        beside: what else the whole run spends, e.g. `ClipCount.event(rounds)`; composed with the sums.

    Raises:
        PrivacyError: a target out of range or out of reach with these bits.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)) or rounds < 1:
        raise PrivacyError(
            f"calibration needs a finite epsilon > 0 and rounds >= 1, got {epsilon!r}, {rounds}"
        )

    def within(noise_multiplier: float) -> bool:
        mechanism = design(kind, cohort, noise_multiplier, wrap=wrap, most_inflation=math.inf)
        return epsilon_of([mechanism.event(rounds, sample_rate), *beside], delta) <= epsilon

    if beside and epsilon_of(beside, delta) >= epsilon:
        raise PrivacyError(
            f"what is released beside the sums spends all of epsilon={epsilon:g}; add noise there"
        )
    enough = 1.0
    while not within(enough):
        enough *= 2
    too_little = enough / 2
    while within(too_little):
        enough, too_little = too_little, too_little / 2
        if too_little < 1e-3:
            raise PrivacyError(f"epsilon={epsilon:g} asks for almost no noise; lower epsilon")
    while enough > too_little * (1 + _TOLERANCE):
        middle = math.sqrt(too_little * enough)
        enough, too_little = (middle, too_little) if within(middle) else (enough, middle)
    return design(kind, cohort, enough, wrap=wrap)


def _inflation(levels: float, cohort: Cohort) -> float:
    return math.sqrt(rounded_norm_squared(levels, cohort.dimension)) / levels


def _finest(kind: type[M], cohort: Cohort, noise_multiplier: float, wrap: float) -> tuple[float, float]:
    """The most levels, and one client's variance with them, such that the ring holds; (0, 0) if none do."""
    honest = cohort.min_survivors - cohort.corrupt
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0) or honest < 1:
        raise PrivacyError(
            f"distributed noise needs noise_multiplier > 0 and corrupt < min_survivors, got {noise_multiplier!r} "
            f"and {honest} honest clients"
        )

    def variance(levels: float) -> float:
        # a hair more, so that rounding leaves the honest noise no smaller than asked
        return noise_multiplier**2 * rounded_norm_squared(levels, cohort.dimension) / honest * (1 + 2.0**-40)

    def holds(levels: float) -> bool:
        if variance(levels) > LARGEST_DEVIATION**2:
            return False  # finer than any sampler, and than any use
        bound = wrap_probability(
            kind.FAMILY,
            levels,
            variance(levels),
            cohort.clients,
            cohort.dimension,
            cohort.bits,
            cohort.vectors,
        )
        return bound <= wrap

    low, high = 1e-3, MOST_LEVELS
    if not holds(low):
        return 0.0, 0.0
    if holds(high):
        return high, variance(high)
    while high > low * (1 + 1e-6):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, variance(low)
