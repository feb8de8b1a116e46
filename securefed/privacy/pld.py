"""Our own privacy-loss-distribution accountant for compositions of Poisson-sampled Gaussians.

The answer is an upper bound at every stage, floating point included:

1. *Discretization.* Each step's privacy loss is put on a grid by connecting the dots of its hockey-stick
   curve (Doroshenko, Ghazi, Kamath, Kumar and Manurangsi 2022, arXiv 2207.04380): the mass of a cell is
   split over its two ends so that both distributions keep their mass. The curve is convex in
   e^epsilon, so the polygon lies above it. Loss beyond the grid becomes infinite, below it rises to the
   lowest point.
2. *Composition* by FFT, of the exponentially tilted distribution: where the answer lies, the tilted
   masses are large, so that rounding errors are relative to delta and not to one. What wraps around from
   below only adds; what is lost above is charged to delta by Chernoff's bound.
3. *Rounding.* The FFT's error is bounded from the spectrum itself and added to every mass.

Both directions of add/remove are composed separately and the larger epsilon counts. That domination
survives composition is theorem 10 of Zhu, Dong and Wang 2022 (arXiv 2106.08567).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.optimize import minimize_scalar

from securefed.privacy.events import SampledGaussian
from securefed.privacy.loss import Direction, Losses, discretize, moments, support

Array = NDArray[np.float64]

_TAIL = 1e-6  # share of delta spent on each of: infinite loss, wrap-around
_TOLERANCE = 1e-4  # relative looseness of epsilon that the grid may cost
_LARGEST = 2**20  # points of the composed grid, a quarter of it per step; a coarser grid stays an upper bound
_SKETCH = 2**12  # points on which tilts are sought
_UNIT = 2.0**-53


def pld_epsilon(events: Sequence[SampledGaussian], delta: float) -> float:
    """An upper bound on epsilon at delta for the composition, add/remove relation, tight to about 0.01 %.

    Args:
        events: merged, with steps >= 1 and noise_multiplier > 0.
        delta: in (0, 1).

    Raises:
        ArithmeticError: losses too large for floating point (noise multipliers below about 0.05), or a
            bound that is not a number: the caller falls back to a cruder accountant.
    """
    if not events:
        return 0.0
    with np.errstate(over="raise", invalid="raise", divide="raise", under="ignore"):
        bounds = [_one_direction(events, delta, direction) for direction in ("remove", "add")]
    if not all(math.isfinite(bound) for bound in bounds):
        raise ArithmeticError("the privacy loss distribution gave no finite bound")
    return max(bounds)


@dataclass(frozen=True)
class _Composition:
    """Discretized steps on one grid, to be composed: losses are `step` x integers."""

    step: float
    parts: tuple[Losses, ...] = field(repr=False)
    times: tuple[int, ...]

    def log_moment(self, tilt: float) -> float:
        """log E[exp(tilt x total loss)] over the finite part."""
        return sum(t * part.log_moment(tilt) for part, t in zip(self.parts, self.times, strict=True))

    @property
    def infinite(self) -> float:
        """Bound on the mass of infinite total loss."""
        return sum(t * part.infinite for part, t in zip(self.parts, self.times, strict=True))

    @property
    def drift(self) -> float:
        """Bound on how far rounding may have moved the total loss downwards."""
        return sum(t * part.drift for part, t in zip(self.parts, self.times, strict=True))


def _one_direction(events: Sequence[SampledGaussian], delta: float, direction: Direction) -> float:
    infinite = _TAIL * delta / sum(event.steps for event in events)
    ranges = [support(event, direction, infinite) for event in events]
    widest = max(high - low for low, high in ranges)
    step = max(_grid_step(events, delta, direction), 4 * widest / _LARGEST)

    def on_grid(step: float) -> _Composition:
        parts = tuple(discretize(event, direction, step, infinite) for event in events)
        return _Composition(step, parts, tuple(event.steps for event in events))

    sketch = on_grid(max(step, widest / _SKETCH))
    tilt = _best_tilt(sketch, math.log(delta))
    while True:
        composition = on_grid(step)
        low, high = _window(composition, sketch, tilt, delta)
        if high - low <= _LARGEST * step:
            return _epsilon(composition, delta, tilt, low, high)
        step = 1.01 * (high - low) / _LARGEST


def _grid_step(events: Sequence[SampledGaussian], delta: float, direction: Direction) -> float:
    """The grid spacing that costs about `_TOLERANCE` of epsilon.

    Splitting a cell of width h adds about h^2/6 to a step's variance and h^2/12 to its mean, so that T
    steps move the quantile at z deviations by T h^2/12 (1 + z / deviation).
    """
    means, variances = zip(*(moments(event, direction) for event in events), strict=True)
    steps = [event.steps for event in events]
    mean = sum(t * m for t, m in zip(steps, means, strict=True))
    deviation = max(math.sqrt(sum(t * v for t, v in zip(steps, variances, strict=True))), 1e-8)
    z = math.sqrt(2 * math.log(1 / delta)) + 1
    square = 12 * _TOLERANCE * (mean + z * deviation) / (sum(steps) * (1 + z / deviation))
    return max(min(math.sqrt(square), 0.05 * deviation), 1e-9)


def _best_tilt(composition: _Composition, log_delta: float) -> float:
    """The tilt whose moment bound on epsilon is least; the tilted loss then lies about that epsilon.

    E[(1 - e^(epsilon - L))_+] <= E[e^(t L)] e^(-t epsilon) t^t / (1+t)^(1+t), the Renyi conversion of
    Canonne, Kamath and Steinke 2020 (arXiv 2004.00010, proposition 12) at order 1 + t.
    """

    def bound(t: float) -> float:
        constant = t * (math.log(t) - math.log1p(t)) - math.log1p(t)
        return (composition.log_moment(t) - log_delta + constant) / t

    return _minimizer(bound)


def _window(
    composition: _Composition, sketch: _Composition, tilt: float, delta: float
) -> tuple[float, float]:
    """Losses to keep: above them lies at most `_TAIL` of delta (Chernoff, at a tilt found on the sketch).

    After tilting, the mass that wraps around from either side is about e^-20, which only tightness needs.
    """
    log_mass = math.log(_TAIL * delta)

    def top(t: float, of: _Composition) -> float:
        return (of.log_moment(t) - log_mass) / t

    def beyond(t: float, side: int) -> float:
        return (sketch.log_moment(tilt + side * t) - sketch.log_moment(tilt) + 20) / t

    high = top(_minimizer(lambda t: top(t, sketch)), composition)
    high = max(high, beyond(_minimizer(lambda t: beyond(t, 1)), 1), 0.0)
    low = -beyond(_minimizer(lambda t: beyond(t, -1)), -1)
    return min(low, 0.0), high + composition.step


def _minimizer(bound: Callable[[float], float]) -> float:
    """Where a bound over tilts t > 0 is least, roughly: any t gives a valid bound."""
    found = minimize_scalar(
        lambda log_t: bound(math.exp(log_t)), bounds=(-7, 14), method="bounded", options={"xatol": 0.01}
    )
    return math.exp(float(found.x))


def _epsilon(composition: _Composition, delta: float, tilt: float, low: float, high: float) -> float:
    """The epsilon at which the composed hockey-stick bound falls to delta."""
    step, first = composition.step, math.floor(low / composition.step)
    size = next_fast_len(math.ceil(high / step) - first + 2, real=True)
    masses = np.roll(_tilted_masses(composition, tilt, size), -(first % size))
    log_scale = composition.log_moment(tilt)

    losses = step * np.arange(first, first + size)
    center = (log_scale - math.log(delta)) / tilt  # the masses are untilted about here
    near = (1 + tilt) * (center - losses) <= 600  # beyond, e^... overflows, and epsilon is larger anyway
    if not near.any():
        raise ArithmeticError("the privacy loss distribution's window misses epsilon")
    losses, masses = losses[near], masses[near]
    untilted = masses * np.exp(log_scale - tilt * center - tilt * (losses - center))
    # delta(epsilon) = mass - e^(epsilon - center) other, over losses from epsilon on
    rounding = 1e-9 + 1e-13 * sum(composition.times) + 4 * size * _UNIT
    mass = np.cumsum(untilted[::-1])[::-1] * (1 + rounding)
    other = np.cumsum((untilted * np.exp(center - losses))[::-1])[::-1]
    target = delta * (1 - _TAIL) - composition.infinite
    above = mass - np.exp(np.minimum(losses - center, 600)) * other <= target
    if target <= 0 or not above.any():
        raise ArithmeticError("the privacy loss distribution's window does not reach delta")
    k = int(np.argmax(above))  # the curve falls, so this is the first grid loss at or above epsilon
    epsilon = float(losses[k])
    if k > 0:  # inside its cell the curve is mass[k] - e^(epsilon - center) other[k]
        missing = float(mass[k]) - target
        within = center + math.log(missing / float(other[k])) if missing > 0 else -math.inf
        epsilon = min(epsilon, max(float(losses[k - 1]), within))
    return max(0.0, (epsilon + composition.drift) * (1 + 1e-12))


def _tilted_masses(composition: _Composition, tilt: float, size: int) -> Array:
    """Upper bounds on the composed tilted masses, loss k x step at index k mod size, wrapped around.

    Every FFT output is a sum of inputs times unit numbers through log2(size) levels, so its error is at
    most a few units per level times the inputs' sum, which is one (Higham 2002, section 24.1). The powers
    multiply it by steps; the mean over the spectrum is what reaches a mass.
    """
    error = 16 * _UNIT * (math.log2(size) + 2)
    log_power = np.zeros(size // 2 + 1)
    log_bound, phase, relative = np.zeros_like(log_power), np.zeros_like(log_power), np.zeros_like(log_power)
    for part, times in zip(composition.parts, composition.times, strict=True):
        weights, _ = part.tilted(tilt)
        spectrum = rfft(np.bincount(part.indices % size, weights, minlength=size))
        modulus = np.maximum(np.abs(spectrum), 1e-300)
        log_modulus = np.log(modulus)
        log_power += times * log_modulus
        log_bound += times * np.log(modulus + error)
        phase += times * np.angle(spectrum)
        relative += times * (error / (modulus + error) + _UNIT * (12 + 2 * np.abs(log_modulus)))
    power = np.exp(log_power) * np.exp(1j * phase)
    noise = 2 * float((np.exp(log_bound) * relative).sum()) / size
    noise += error * 2 * float(np.exp(log_power).sum()) / size
    masses: Array = irfft(power, size)
    if abs(float(masses.sum()) - 1) > 1e-6:
        raise ArithmeticError("the composed privacy loss distribution lost mass")
    return np.maximum(masses, 0.0) + noise
