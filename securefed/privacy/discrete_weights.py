"""Probabilities of the discrete Gaussian and of Skellam on a coarse grid, to about seventy digits.

Weights are decimals, relative to each other; whoever uses them normalises. Everything is positive
arithmetic or has its cancellation paid for with digits, so that no error reaches 2^-192.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Literal

Family = Literal["gaussian", "skellam"]

DIGITS = 100
_LEAST = Decimal(2) ** -220
"""Weights below this share of the middle's are left to the tail bound."""


def half_weights(family: Family, variance: Fraction, stride: int) -> tuple[list[Decimal], Decimal]:
    """Weights at 0, stride, 2 stride, ... and a bound on the weight of all that follow (one side).

    The law is symmetric. Relative to each other they are P(j stride) of N_Z(0, variance) or of
    Skellam with that variance.

    Raises:
        ValueError: a Skellam with stride above 1 and a variance too small for its expansion.
    """
    with localcontext(Context(prec=DIGITS)):
        terms = _gaussian(variance, stride) if family == "gaussian" else _skellam(variance, stride)
        weights = [next(terms)]
        for weight in terms:
            if weight < weights[0] * _LEAST:
                ratio = weight / weights[-1]  # ratios fall outwards: both laws are log-concave
                return weights, weight / (1 - ratio)
            weights.append(weight)
    raise AssertionError("a law's weights never end")


def _gaussian(variance: Fraction, stride: int) -> Iterator[Decimal]:
    """exp(-(j stride)^2 / (2 variance)) by q^((j+1)^2) = q^(j^2) q^(2j+1); the error grows as j^2."""
    exponent = Fraction(stride * stride) / (2 * variance)
    q = (-_decimal(exponent)).exp()
    weight, factor = Decimal(1), q
    while True:
        yield weight
        weight *= factor
        factor *= q * q


def _skellam(variance: Fraction, stride: int) -> Iterator[Decimal]:
    return _by_recurrence(variance) if stride == 1 else _by_expansion(variance, stride)


def _by_recurrence(variance: Fraction) -> Iterator[Decimal]:
    """P(k) = exp(-mu) I_k(mu), by Miller's backward recurrence I_(k-1) = I_(k+1) + (2k/mu) I_k.

    Started where the probability is below 2^-700: the start's error has died out long before the
    weights that are kept, and everything added is positive.
    """
    mu = float(variance)
    start = 2
    while mu * rate(start / mu) < 700 * math.log(2):
        start = math.ceil(start * 1.1)
    twice = 2 / _decimal(variance)
    after, here = Decimal(0), Decimal(1)
    down = [here]
    for k in range(start, 0, -1):
        after, here = here, after + k * twice * here
        down.append(here)
    yield from reversed(down)
    yield Decimal(0)


def rate(y: float) -> float:
    """integral of asinh over (0, y): P(Skellam(mu) >= mu y) <= exp(-mu rate(y)), by Chernoff's bound.

    From the moment generating function exp(mu (cosh t - 1)) at t = asinh y.
    """
    if y < 1e-3:  # y^2/2 - y^4/24 + ..., alternating: below it, without cancellation
        return y * y / 2 - y**4 / 24
    return y * math.asinh(y) - y * y / (math.hypot(1, y) + 1)


_TERMS = 24
_LEAST_VARIANCE = 10_000  # the last term is then below 10^-70


def _by_expansion(variance: Fraction, stride: int) -> Iterator[Decimal]:
    """P(x) up to a constant, by the expansion of I_x(mu) uniform in x (Debye's; DLMF 10.41.3).

    With R = sqrt(mu^2 + x^2) and p = x / R: exp(R - x asinh(x/mu)) / sqrt(R) sum_k V_k(p^2) / R^k, where
    V_k(p^2) = U_k(p) / p^k. The first term left out bounds the error up to a small factor.
    """
    if variance < _LEAST_VARIANCE:
        raise ValueError(f"the expansion needs a variance of at least {_LEAST_VARIANCE}, got {variance}")
    mu = _decimal(variance)
    terms = 1
    while terms < _TERMS and float(variance) ** -terms * math.gamma(terms + 1) > 1e-70:
        terms += 1
    polynomials = [[_decimal(c) for c in reversed(poly)] for poly in _debye(terms)]
    j = 0
    while True:
        x = Decimal(j * stride)
        radius = (mu * mu + x * x).sqrt()
        log = radius - mu - (x * ((x + radius) / mu).ln() if j else 0)
        square, inverse, power, total = (
            (x / radius) ** 2 if j else Decimal(0),
            1 / radius,
            Decimal(1),
            Decimal(0),
        )
        for polynomial in polynomials:
            value = Decimal(0)
            for coefficient in polynomial:
                value = value * square + coefficient
            total += value * power
            power *= inverse
        yield log.exp() * (mu * inverse).sqrt() * total
        j += 1


@lru_cache(maxsize=4)
def _debye(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """V_k's coefficients in p^2, ascending, from DLMF 10.41.9:

    U_(k+1)(p) = p^2 (1 - p^2) U_k'(p) / 2 + (1/8) integral_0^p (1 - 5 t^2) U_k(t) dt.
    """
    rows: list[tuple[Fraction, ...]] = [(Fraction(1),)]
    for k in range(terms - 1):
        following = [Fraction(0)] * (k + 2)
        for m, c in enumerate(rows[-1]):
            e = k + 2 * m  # the term c p^e of U_k
            following[m] += c * Fraction(e, 2) + c / (8 * (e + 1))
            following[m + 1] -= c * Fraction(e, 2) + 5 * c / (8 * (e + 3))
        rows.append(tuple(following))
    return tuple(rows)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)
