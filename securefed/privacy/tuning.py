"""What choosing the best of several private runs costs: hyper-parameter search inside the guarantee.

Run a private algorithm K times, each with hyper-parameters drawn at random, and release only the best run's
output. If K is random in the right way and stays secret, the search costs a few times one run, and
hardly more however many runs there are. What it asks for:

- K is drawn before by `TrialCount.draw`, is secret, and no trial is skipped or stopped because of results;
- each trial draws its hyper-parameters from a public distribution, independently;
- a trial's score is part of its private output (a noised score, or one on public data);
- of all trials only the best one's output leaves; the others' outputs, scores and times do not.

Trials that were looked at one by one are plain compositions: record each.

Papernot and Steinke 2022, "Hyperparameter Tuning with Renyi Differential Privacy" (arXiv 2110.03620v2),
theorem 2 (truncated negative binomial) and theorem 6 (Poisson).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError
from securefed.privacy.events import BestOf, Event, NonPrivate, merge
from securefed.privacy.renyi import ORDERS, Curve

_LARGEST = 10_000_000


@dataclass(frozen=True, slots=True)
class TrialCount:
    """The law of K, the number of trials.

    Attributes:
        mean: expected number, >= 1 (Poisson: > 0, and then K may be 0: nothing is released).
        shape: of a truncated negative binomial, > -1 (0: logarithmic, 1: geometric); infinity: Poisson.
            Smaller shapes cost less and spread more: often one trial, sometimes very many.

    Raises:
        PrivacyError: a field out of range.
    """

    mean: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and self.mean > 0 and self.shape > -1):
            raise PrivacyError(f"trials need mean > 0 and shape > -1, got {self.mean!r} and {self.shape!r}")
        if self.shape != math.inf and self.mean < 1:
            raise PrivacyError(f"a search has at least one trial, so mean >= 1, got {self.mean!r}")

    def event(self, trial: Sequence[Event]) -> BestOf:
        """What the whole search spends, if one trial spends `trial`; charge it before the first trial.

        Raises:
            PrivacyError: a trial with a release without noise, or with a search inside.
        """
        releases = tuple(e for e in merge(trial) if not isinstance(e, NonPrivate | BestOf))
        if len(releases) < len(merge(trial)):
            raise PrivacyError("a trial is made of noised releases only, and holds no search of its own")
        return BestOf(releases, float(self.mean), float(self.shape), 1)

    def draw(self, stream: Stream) -> int:
        """K, by inversion of a 53-bit uniform; secret, like the stream.

        Raises:
            PrivacyError: a law so wide that ten million trials would not cover the draw.
        """
        uniform, total, k = float(stream.uniform(1)[0]), 0.0, 0
        for k, probability in enumerate(_probabilities(self.mean, self.shape)):
            total += probability
            if uniform < total:
                return k
        if total < 1 - 1e-9:
            raise PrivacyError(f"a search of mean {self.mean:g} and shape {self.shape:g} is too wide to draw")
        return k


@lru_cache(maxsize=64)
def _probabilities(mean: float, shape: float) -> tuple[float, ...]:
    """P(K = 0), P(K = 1), ..., until 2^-53 is left, at most ten million terms."""
    if shape == math.inf:
        return _until(lambda k, p: p * mean / k, [math.exp(-mean)], mean)
    gamma = success(mean, shape)
    if gamma == 1:
        return (0.0, 1.0)
    # P(1) = (1 - gamma) eta / (gamma^-eta - 1); P(k + 1) / P(k) = (1 - gamma) (k + eta) / (k + 1)
    log = -math.log(gamma)
    scale = 1 / log if shape == 0 else shape / math.expm1(shape * log)
    first = [0.0, (1 - gamma) * scale]
    return _until(lambda k, p: p * (1 - gamma) * (k - 1 + shape) / k, first, mean)


def _until(following: Callable[[int, float], float], start: list[float], mean: float) -> tuple[float, ...]:
    values = list(start)
    while (len(values) < mean or values[-1] > 2.0**-60) and len(values) < _LARGEST:
        values.append(following(len(values), values[-1]))
    return tuple(values)


@lru_cache(maxsize=256)
def success(mean: float, shape: float) -> float:
    """gamma in (0, 1] of the truncated negative binomial with this mean; rounded down, the costly side."""
    if mean <= 1:
        return 1.0
    low, high = 0.0, 1.0
    while high > low * (1 + 1e-13):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _mean(middle, shape) >= mean else (low, middle)
    return low


def _mean(gamma: float, shape: float) -> float:
    """E[K]: eta (1 - gamma) / (gamma (1 - gamma^eta)), in the limit (1/gamma - 1) / log(1/gamma) at eta = 0."""
    log = math.log(gamma)
    if abs(shape * log) < 1e-12:
        return (1 / gamma - 1) / -log
    return shape * (1 - gamma) / (gamma * -math.expm1(shape * log))


def tuned_curve(curve: Curve, mean: float, shape: float) -> Curve:
    """Divergences of the search, at `ORDERS`, from one trial's.

    Truncated negative binomial (theorem 2): for any second order b,
    D(a) + (1 + eta) (1 - 1/b) D(b) + (1 + eta) log(1/gamma) / b + log(E K) / (a - 1); the best b is taken.
    Poisson (theorem 6): D(a) + mean delta + log(mean) / (a - 1), where one trial is (log(1 + 1/(a - 1)), delta)-DP.
    The outcome "no trial", of probability exp(-mean) whatever the data, is added to that: without it the
    formula falls below the truth for small means.

    Infinite where the theorem gives nothing.
    """
    orders = np.array(ORDERS)
    if shape == math.inf:
        deltas = np.array([_delta(curve, math.log1p(1 / (order - 1))) for order in ORDERS])
        some = (orders - 1) * (curve + mean * deltas) + math.log(mean)
        return _monotone(np.logaddexp(some, -mean) / (orders - 1))
    gamma = success(mean, shape)
    second = (1 - 1 / orders) * curve - math.log(gamma) / orders
    penalty = (1 + shape) * float(np.min(np.where(np.isfinite(second), second, math.inf)))
    expected = mean if gamma == 1 else max(mean, _mean(gamma, shape))
    return _monotone(curve + penalty + math.log(expected) / (orders - 1))


def _monotone(curve: Curve) -> Curve:
    """A divergence grows with its order, so a bound at a higher order holds at lower ones."""
    lowest: Curve = np.minimum.accumulate(curve[::-1])[::-1]
    return lowest


def _delta(curve: Curve, epsilon: float) -> float:
    """delta at epsilon (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12); at most 1."""
    orders = np.array(ORDERS)
    with np.errstate(invalid="ignore"):
        log = (orders - 1) * (curve - epsilon + np.log1p(-1 / orders)) - np.log(orders)
    finite = log[np.isfinite(log)]
    return math.exp(min(0.0, float(finite.min()))) if finite.size else 1.0
