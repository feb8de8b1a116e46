"""Choosing a distributed mechanism's constants: quantizer levels for a ring, bits, noise for a target epsilon.

A ring of 2^b holds signal and noise of all clients; the finer the quantizer, the less rounding adds to the
sensitivity, and the sooner a sum wraps around. So levels are as many as the stated wrap-around
probability allows, and bits are enough when rounding costs little.
"""

from __future__ import annotations

import math
from typing import TypeVar

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.rounding import MOST_LEVELS, rounded_norm_squared
from securefed.privacy.wraparound import wrap_probability

M = TypeVar("M", bound=DistributedMechanism)

WRAP = 2.0**-40
"""Wrap-around probability a round that `design` aims at."""

MOST_INFLATION = 1.25
_TOLERANCE = 1e-3


def design(
    kind: type[M],
    *,
    dimension: int,
    clip: float,
    noise_multiplier: float,
    clients: int,
    min_survivors: int,
    corrupt: int = 0,
    bits: int = 16,
    vectors: int = 1,
    wrap: float = WRAP,
    most_inflation: float = MOST_INFLATION,
) -> M:
    """The mechanism with the finest quantizer that the ring holds.

    Args:
        kind: DistributedGaussian or DistributedSkellam.
        noise_multiplier: of the honest noise, over the sensitivity after rounding; > 0.
        vectors: most clipped vectors that one client adds up (1: client level).
        wrap: bound on the probability that one round's sum wraps around.
        most_inflation: sensitivity after rounding over the clipping norm, at most.

    Raises:
        PrivacyError: an argument out of range; too few bits, so that rounding would add more than that (by
            default a quarter) to the sensitivity; the message names how many bits would do.

    >>> from securefed.privacy.distributed import DistributedSkellam
    >>> design(DistributedSkellam, dimension=1000, clip=1.0, noise_multiplier=1.0, clients=100,
    ...        min_survivors=90, bits=16).wrap_probability <= 2**-40
    True
    """
    levels, variance = _levels(
        kind, noise_multiplier, dimension, clients, min_survivors - corrupt, bits, wrap, vectors
    )
    if levels == 0 or _inflation(levels, dimension) > most_inflation:
        raise PrivacyError(
            f"bits={bits} are too few for {clients} clients, dimension {dimension} and noise multiplier "
            f"{noise_multiplier:g}: rounding would drown the clipped update; use bits="
            f"{enough_bits(kind, dimension, noise_multiplier, clients, min_survivors, corrupt, wrap, vectors=vectors)}"
        )
    return kind(
        dimension=dimension,
        clip=clip,
        levels=levels,
        variance=variance,
        clients=clients,
        min_survivors=min_survivors,
        corrupt=corrupt,
        bits=bits,
        vectors=vectors,
    )


def enough_bits(
    kind: type[M],
    dimension: int,
    noise_multiplier: float,
    clients: int,
    min_survivors: int,
    corrupt: int = 0,
    wrap: float = WRAP,
    inflation: float = 1.01,
    vectors: int = 1,
) -> int:
    """The fewest bits with which rounding adds at most 1 % (`inflation`) to the sensitivity.

    Raises:
        PrivacyError: more than 32 would be needed.
    """
    for bits in range(2, 33):
        levels, _ = _levels(
            kind, noise_multiplier, dimension, clients, min_survivors - corrupt, bits, wrap, vectors
        )
        if levels and _inflation(levels, dimension) <= inflation:
            return bits
    raise PrivacyError(
        f"no ring of up to 32 bits holds {clients} clients at dimension {dimension} with noise multiplier "
        f"{noise_multiplier:g}; split the cohort or send fewer coordinates"
    )


def calibrate(
    kind: type[M],
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    dimension: int,
    clip: float,
    clients: int,
    min_survivors: int,
    corrupt: int = 0,
    bits: int = 16,
    vectors: int = 1,
    sample_rate: float = 1.0,
    wrap: float = WRAP,
) -> M:
    """The mechanism with the least noise, up to 0.1 %, whose `rounds` sums spend at most epsilon at delta.

    At client level sample_rate is 1: the server knows who takes part. At example level it is the rate of
    the secret Poisson sampling inside each client.

    Raises:
        PrivacyError: a target out of range or out of reach with these bits.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)) or rounds < 1:
        raise PrivacyError(
            f"calibration needs a finite epsilon > 0 and rounds >= 1, got {epsilon!r}, {rounds}"
        )

    def at(noise_multiplier: float, most_inflation: float = math.inf) -> M:
        return design(
            kind,
            dimension=dimension,
            clip=clip,
            noise_multiplier=noise_multiplier,
            clients=clients,
            min_survivors=min_survivors,
            corrupt=corrupt,
            bits=bits,
            vectors=vectors,
            wrap=wrap,
            most_inflation=most_inflation,
        )

    def within(noise_multiplier: float) -> bool:
        return epsilon_of([at(noise_multiplier).event(rounds, sample_rate)], delta) <= epsilon

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
    return at(enough, MOST_INFLATION)


def _inflation(levels: float, dimension: int) -> float:
    return math.sqrt(rounded_norm_squared(levels, dimension)) / levels


def _levels(
    kind: type[M],
    noise_multiplier: float,
    dimension: int,
    clients: int,
    honest: int,
    bits: int,
    wrap: float,
    vectors: int,
) -> tuple[float, float]:
    """The most levels, and one client's variance with them, such that the ring holds; (0, 0) if none do."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0) or honest < 1:
        raise PrivacyError(
            f"distributed noise needs noise_multiplier > 0 and corrupt < min_survivors, got {noise_multiplier!r} "
            f"and {honest} honest clients"
        )

    def variance(levels: float) -> float:
        return noise_multiplier**2 * rounded_norm_squared(levels, dimension) / honest * (1 + 2.0**-40)

    def holds(levels: float) -> bool:
        return (
            wrap_probability(kind.FAMILY, levels, variance(levels), clients, dimension, bits, vectors) <= wrap
        )

    low, high = 1e-3, MOST_LEVELS
    if not holds(low):
        return 0.0, 0.0
    if not holds(high):
        while high > low * (1 + 1e-6):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if holds(middle) else (low, middle)
        high = low
    return high, variance(high)
