"""The inverse questions: how much noise for a target epsilon, and how many steps it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import Accountant, Event, SampledGaussian, merge

LEAST_NOISE, MOST_NOISE = 0.05, 1e6
_TOLERANCE = 1e-3


@lru_cache(maxsize=1024)
def calibrate_noise(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant = "pld"
) -> float:
    """The smallest noise multiplier, up to 0.1 %, with which the whole schedule spends at most epsilon.

    Args:
        epsilon: target, > 0; the result never spends more, by the same accountant.
        delta: in (0, 1). sample_rate: in (0, 1]. steps: of the whole schedule, >= 1.

    Raises:
        PrivacyError: an argument out of range; a target no noise reaches with this accountant (RDP and
            PRV have a floor); one so high that noise multiplier 0.05 would do.

    >>> 1.28 < calibrate_noise(3.0, 1e-5, 0.05, 200) < 1.29
    True
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise PrivacyError(f"a target epsilon is a finite number above 0, got {epsilon!r}")
    if steps < 1:
        raise PrivacyError(f"calibration needs steps >= 1, got {steps!r}")

    def within(noise_multiplier: float) -> bool:
        event = SampledGaussian(noise_multiplier, sample_rate, steps)
        return epsilon_of((event,), delta, accountant) <= epsilon

    enough = 1.0
    while not within(enough):
        enough *= 2
        if enough > MOST_NOISE:
            raise PrivacyError(
                f"epsilon={epsilon:g} at delta={delta:g} is out of reach for {steps} steps at sample_rate="
                f'{sample_rate:g} by {accountant}; raise epsilon, take fewer steps, or use accountant = "pld"'
            )
    too_little = enough / 2
    while within(too_little):
        enough, too_little = too_little, too_little / 2
        if too_little < LEAST_NOISE:
            raise PrivacyError(
                f"epsilon={epsilon:g} asks for a noise multiplier below {2 * LEAST_NOISE:g}, which protects "
                "nobody; lower epsilon or give noise_multiplier itself"
            )
    while enough > too_little * (1 + _TOLERANCE):
        middle = math.sqrt(too_little * enough)
        enough, too_little = (middle, too_little) if within(middle) else (enough, middle)
    return enough


def max_steps(
    noise_multiplier: float,
    sample_rate: float,
    epsilon: float,
    delta: float,
    accountant: Accountant = "pld",
    spent: tuple[Event, ...] = (),
) -> int:
    """The most steps of this sampled Gaussian that spend at most epsilon, on top of `spent`.

    0 if not even one step fits. Spending grows with steps, so every smaller number fits too. The answer
    is remembered.

    Raises:
        PrivacyError: an argument out of range.
    """
    SampledGaussian(noise_multiplier, sample_rate, 1)  # its ranges
    return _max_steps(noise_multiplier, sample_rate, epsilon, delta, accountant, merge(spent))


@lru_cache(maxsize=1024)
def _max_steps(
    noise_multiplier: float,
    sample_rate: float,
    epsilon: float,
    delta: float,
    accountant: Accountant,
    spent: tuple[Event, ...],
) -> int:
    def fits(steps: int) -> bool:
        events = (*spent, SampledGaussian(noise_multiplier, sample_rate, steps))
        return epsilon_of(events, delta, accountant) <= epsilon

    return _last_that(fits)


def _last_that(fits: Callable[[int], bool]) -> int:
    """The last n >= 0 for which `fits` holds, 0 if 1 does not; `fits` changes once, from True to False."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
