"""How likely a coordinate of a noised integer sum leaves the ring's range, bounded.

A sum that wraps around is a wrong result, not a leak: reducing modulo 2^b comes after the noise.
"""

from __future__ import annotations

import math

from securefed.privacy.discrete_weights import Family
from securefed.privacy.rotation import span


def wrap_probability(
    family: Family,
    levels: float,
    noise_variance: float,
    clients: int,
    dimension: int,
    bits: int,
    vectors: int = 1,
) -> float:
    """Bound on the probability that any coordinate of one round's sum wraps around in Z_(2^bits).

    A coordinate is the sum of three parts: the rotated sum of the clients' vectors, sub-Gaussian with
    variance (clients vectors levels)^2 / m over the rotation's signs, however the vectors are aligned; the roundings,
    at most 1 a vector; and the noise, whose moment generating function at t is at most exp(v t^2 / 2) for
    sums of discrete Gaussians (Canonne, Kamath and Steinke 2020, arXiv 2004.00010) and exp(v (cosh t - 1))
    for Skellam. Chernoff's bound on their sum, two sides, union over coordinates.

    Args:
        levels: clipping norm in steps of the quantizer. noise_variance: one client's.
        clients: most clients in a sum. dimension: of the vectors. bits: of the ring.
        vectors: most clipped vectors that one client adds up.
    """
    room = 2.0 ** (bits - 1) - 1 - clients * vectors
    if room <= 0:
        return 1.0
    # a hair for float32 in clipping and rotating
    signal = (clients * vectors * levels) ** 2 / span(dimension) * (1 + 1e-5)
    exponent = _exponent(family, signal, clients * noise_variance, room)
    return min(1.0, 2 * dimension * math.exp(-min(exponent, 700.0)))


def _exponent(family: Family, signal: float, noise: float, room: float) -> float:
    """max over t of t room - signal t^2 / 2 - (log moment generating function of the noise)."""
    if family == "gaussian":
        return room * room / (2 * (signal + noise))
    low, high = 0.0, room / (signal + noise)  # sinh t >= t, so the slope is negative from here on
    for _ in range(60):
        middle = (low + high) / 2
        if signal * middle + noise * math.sinh(min(middle, 700.0)) < room:
            low = middle
        else:
            high = middle
    return low * room - signal * low * low / 2 - noise * 2 * math.sinh(min(low, 700.0) / 2) ** 2
