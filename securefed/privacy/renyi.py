"""Renyi accounting: one curve of divergences per event, added up and converted to (epsilon, delta).

The accountant that covers every event, so mixed ledgers compose by it. Each curve is an upper bound at
the orders `ORDERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefed.privacy.events import (
    BestOf,
    DiscreteGaussianSum,
    SampledGaussian,
    SkellamSum,
    Stepped,
    mechanism,
)

ORDERS: tuple[float, ...] = (
    *(1 + k / 20 for k in range(1, 20)),
    *(2 + k / 10 for k in range(90)),
    *range(11, 64),
    *(64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1000),
)

Curve = NDArray[np.float64]
_ROUNDS = 8


def rdp_epsilon(events: Sequence[Stepped], delta: float) -> float:
    """An upper bound on epsilon at delta for the composition of these events.

    What samplers of integer noise are off by is charged first: if the ideal mechanism is (epsilon, delta')
    and the real one's output is within `slack` of it for either data set, the real one is
    (epsilon, delta' + (1 + e^epsilon) slack). Infinite if that charge exceeds delta.

    Raises:
        ArithmeticError: no order gives a finite bound.
    """
    if not events:
        return 0.0
    curve = total_curve(events)
    slack = sum(event.steps * getattr(event, "slack", 0.0) for event in events)
    epsilon = to_epsilon(curve, delta)
    if slack == 0:
        return epsilon
    for _ in range(_ROUNDS):  # the charge grows with epsilon: allow twice what the last answer asked for
        if epsilon > 600:
            break
        charge = 2 * (1 + math.exp(epsilon)) * slack
        if charge >= delta:
            break
        epsilon = to_epsilon(curve, delta - charge)
        if (1 + math.exp(min(epsilon, 700))) * slack <= charge:
            return epsilon
    return math.inf


def total_curve(events: Iterable[Stepped]) -> Curve:
    """The composition's divergences: their sum over all steps of all events."""
    return sum((event.steps * divergences(event) for event in events), np.zeros(len(ORDERS)))


def to_epsilon(curve: Curve, delta: float) -> float:
    """The least epsilon over orders (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12).

    Raises:
        ArithmeticError: no order gives a finite bound.
    """
    orders = np.array(ORDERS)
    bounds = curve + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    finite = bounds[np.isfinite(bounds)]
    if finite.size == 0:
        raise ArithmeticError("no Renyi order gives a finite bound")
    return max(0.0, float(finite.min()))


def divergences(event: Stepped) -> Curve:
    """Upper bounds on one step's Renyi divergence, both directions, at `ORDERS`; read-only."""
    return _divergences(mechanism(event))


@lru_cache(maxsize=1024)
def _divergences(event: Stepped) -> Curve:
    if isinstance(event, SkellamSum | DiscreteGaussianSum):
        values = discrete_curve(event)
    elif isinstance(event, BestOf):
        from securefed.privacy.tuning import tuned_curve

        values = tuned_curve(total_curve(event.trial), event.mean, event.shape)
    else:
        values = _sampled_gaussian(event)
    values.setflags(write=False)
    return values


def _sampled_gaussian(event: SampledGaussian) -> Curve:
    if event.sample_rate == 1:
        return np.array(ORDERS) / (2 * event.noise_multiplier**2)
    from securefed.privacy.opacus_accountants import step_divergences

    return step_divergences(event.noise_multiplier, event.sample_rate)


def discrete_curve(event: SkellamSum | DiscreteGaussianSum) -> Curve:
    """Divergences of a sum with integer noise at `ORDERS`, from whole orders, sampled if records are."""
    whole = np.arange(2, int(max(ORDERS)) + 1, dtype=np.float64)
    if isinstance(event, SkellamSum):
        values = skellam(whole, event.sensitivity, event.sensitivity_l1, event.variance)
    else:
        values = discrete_gaussians(whole, event.sensitivity, event.dimension, event.variance, event.shares)
        if event.sample_rate == 1:  # valid at every order
            return discrete_gaussians(
                np.array(ORDERS), event.sensitivity, event.dimension, event.variance, event.shares
            )
    if event.sample_rate == 1:
        return np.array([_between_whole_orders(lambda a: float(values[a - 2]), order) for order in ORDERS])
    sampled = {1: 0.0}

    def at(order: int) -> float:
        if order not in sampled:
            sampled[order] = poisson_sampled(values, event.sample_rate, order)
        return sampled[order]

    return np.array([_between_whole_orders(at, order) for order in ORDERS])


def skellam(orders: Curve, sensitivity: float, sensitivity_l1: float, variance: float) -> Curve:
    """Divergences of the Skellam mechanism with integer inputs, at whole orders.

    For a > 1, variance mu and sensitivities D2 (L2), D1 (L1):
    a D2^2 / (2 mu) + min(((2a - 1) D2^2 + 6 D1) / (4 mu^2), 3 D1 / (2 mu))
    (Agarwal, Kairouz and Liu 2021, arXiv 2110.04995v2, the theorem of section 3).
    """
    square = sensitivity * sensitivity
    first = ((2 * orders - 1) * square + 6 * sensitivity_l1) / (4 * variance * variance)
    second = 3 * sensitivity_l1 / (2 * variance)
    values: Curve = orders * square / (2 * variance) + np.minimum(first, second)
    return values


def poisson_sampled(values: Curve, rate: float, order: int) -> float:
    """A bound at a whole order when each record joins with this probability; for symmetric additive noise.

    With P the noise and Q the noise moved by one record, expanding ((1-q) P + q Q)^a P^(1-a) gives
    log(sum_(l=0)^a C(a, l) (1-q)^(a-l) q^l e^((l-1) D_l)) / (a - 1) in the direction "remove", D_l the unsampled
    divergences, values[l - 2]. Reflecting about half of the move swaps P and Q, and then this direction bounds
    both (Mironov, Talwar and Zhang 2019, arXiv 1908.10530, theorem 5).
    """
    ell = np.arange(order + 1)
    binomial = np.array(
        [math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1) for k in ell]
    )
    moments = np.concatenate([[0.0, 0.0], (ell[2:] - 1) * values[: order - 1]])
    terms = binomial + (order - ell) * math.log1p(-rate) + ell * math.log(rate) + moments
    highest = float(terms.max())
    total = highest + math.log(float(np.exp(terms - highest).sum()))
    # rounding near one, which many steps would multiply, is added
    return min(float(values[order - 2]), max(total, 0.0) / (order - 1) + 1e-13 * order)


def _between_whole_orders(at: Callable[[int], float], order: float) -> float:
    """(a - 1) D_a is convex in a and 0 at a = 1 (van Erven and Harremoes 2014, corollary 2): chords bound it."""
    low, high = math.floor(order), math.ceil(order)
    if low == high:
        return at(low)
    ends = (low - 1) * at(low) if low > 1 else 0.0, (high - 1) * at(high)
    return (ends[0] * (high - order) + ends[1] * (order - low)) / (order - 1)


def discrete_gaussians(
    orders: Curve, sensitivity: float, dimension: int, variance: float, shares: int
) -> Curve:
    """Divergences with the sum of `shares` discrete Gaussians N_Z(0, variance) in each coordinate.

    Concentrated DP with parameter e^2 / 2, e = D2 / sqrt(n variance) + tau sqrt(d), where
    tau = 10 sum_(k=1)^(n-1) exp(-2 pi^2 variance k / (k + 1)) is what the sum differs from one discrete
    Gaussian (Kairouz, Liu and Steinke 2021, arXiv 2102.06387v4, theorem 1 in section 1, its second bound).
    """
    root = sensitivity / math.sqrt(shares * variance) + mismatch(variance, shares) * math.sqrt(dimension)
    return orders * root * root / 2


def mismatch(variance: float, shares: int) -> float:
    """tau of the theorem: 0 for one share."""
    k = np.arange(1, shares)
    return float(10 * np.exp(-2 * math.pi**2 * variance * k / (k + 1)).sum())
