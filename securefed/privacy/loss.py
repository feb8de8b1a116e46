"""The privacy loss of one Poisson-sampled Gaussian step, discretized so that it can only be overstated.

With s the noise multiplier and q the sample rate, one record changes the release from N(0, s^2) to the
mixture (1-q) N(0, s^2) + q N(1, s^2). Direction "remove" takes the loss log(mixture/noise) under the
mixture, "add" takes log(noise/mixture) under the noise (Zhu, Dong and Wang 2022, arXiv 2106.08567).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from securefed.privacy.events import SampledGaussian

Array = NDArray[np.float64]
Direction = Literal["remove", "add"]

_NORMAL_ERROR = 2e-13  # relative error of ndtr, rounding of its argument included, with room (Cephes: 6e-14)
_UNIT = 2.0**-53
_LOW_DEVIATIONS = 8.0  # lower losses rise to this edge; their mass is 6e-16


@dataclass(frozen=True, eq=False)
class Losses:
    """A discrete privacy loss distribution: mass `exp(log_masses[i])` at loss `step * indices[i]`.

    Attributes:
        infinite: mass of infinite loss. drift: bound on how far rounding may have lowered the losses.
    """

    step: float
    indices: NDArray[np.int64] = field(repr=False)
    log_masses: Array = field(repr=False)
    infinite: float
    drift: float

    def tilted(self, tilt: float) -> tuple[Array, float]:
        """Masses times e^(tilt x loss), scaled to sum to one, and the logarithm of that sum."""
        exponents = (tilt * self.step) * self.indices + self.log_masses
        top = float(exponents.max())
        weights = np.exp(exponents - top)
        total = float(weights.sum())
        return weights / total, top + math.log(total)

    def log_moment(self, tilt: float) -> float:
        """log E[e^(tilt x loss)] over the finite losses."""
        return self.tilted(tilt)[1]


def support(event: SampledGaussian, direction: Direction, infinite: float) -> tuple[float, float]:
    """Losses between which all but mass `infinite` (above) and a negligible mass (below) lies."""
    s, reach = event.noise_multiplier, -float(ndtri(infinite))
    if direction == "remove":
        ends = np.array([-_LOW_DEVIATIONS * s, 1 + reach * s])
        low, high = _log_ratio(event, ends)
    else:
        ends = np.array([_LOW_DEVIATIONS * s, -reach * s])
        low, high = -_log_ratio(event, ends)
    return float(low), float(high)


def moments(event: SampledGaussian, direction: Direction) -> tuple[float, float]:
    """Mean and variance of one step's loss, by quadrature: a guide for the grid, no part of the bound."""
    s, q = event.noise_multiplier, event.sample_rate
    x = np.linspace(-9 * s, 1 + 9 * s, 4001)
    noise, shifted = np.exp(-0.5 * (x / s) ** 2), np.exp(-0.5 * ((x - 1) / s) ** 2)
    ratio = _log_ratio(event, x)
    weights, losses = ((1 - q) * noise + q * shifted, ratio) if direction == "remove" else (noise, -ratio)
    weights = weights / weights.sum()
    mean = float(weights @ losses)
    return max(mean, 0.0), float(weights @ (losses - mean) ** 2)


def discretize(event: SampledGaussian, direction: Direction, step: float, infinite: float) -> Losses:
    """One step's losses on the multiples of `step`, stochastically at least as large as they are.

    Connect the dots (arXiv 2207.04380): a cell [a, a + step] with mass U of the distribution the loss is
    drawn from and V of the other gives its upper end the share (1 - e^a V/U) / (1 - e^-step), which keeps
    both masses. Rounding errors of U and of the share are added on top.
    """
    low, high = support(event, direction, infinite)
    first = math.floor(low / step)
    indices = np.arange(first, max(math.ceil(high / step), first + 1) + 1)
    losses: Array = np.multiply(indices, step, dtype=np.float64)
    edges = _point_of_loss(event, losses if direction == "remove" else -losses)
    if direction == "remove":
        upper, lower = _mixture(event, edges), _noise(event, edges)
    else:
        upper, lower = (m.reversed() for m in (_noise(event, edges[::-1]), _mixture(event, edges[::-1])))

    mass = upper.cells + _NORMAL_ERROR * upper.error
    weight = np.exp(losses[:-1])
    excess = upper.cells - lower.cells * weight + _NORMAL_ERROR * (upper.error + lower.error * weight)
    room = -math.expm1(-step) * upper.cells
    share = np.clip(np.divide(excess, room, out=np.ones_like(excess), where=room > 0), 0, 1)
    masses = np.zeros(len(losses))
    masses[1:] += share * mass
    masses[:-1] += (1 - share) * mass
    masses[0] += upper.before * (1 + _NORMAL_ERROR)
    kept = masses > 0
    farthest = float(np.abs(edges[np.isfinite(edges)]).max(initial=0.0))
    drift = 32 * _UNIT * (1 + (1 + farthest) / event.noise_multiplier**2)  # error of the edges, as loss
    return Losses(step, indices[kept], np.log(masses[kept]), upper.after * (1 + _NORMAL_ERROR), drift)


def _log_ratio(event: SampledGaussian, x: Array) -> Array:
    """log(mixture/noise) at x."""
    q = event.sample_rate
    exponent = (2 * x - 1) / (2 * event.noise_multiplier**2)
    without: float = math.log1p(-q) if q < 1 else -math.inf
    ratio: Array = np.logaddexp(without, math.log(q) + exponent)
    return ratio


def _point_of_loss(event: SampledGaussian, losses: Array) -> Array:
    """The x at which log(mixture/noise) takes these values; -inf where it is always larger."""
    s, q = event.noise_multiplier, event.sample_rate
    # Two forms of (e^loss - (1 - q)) / q, each free of cancellation where it is used.
    odds = np.where(losses < -0.7, (np.exp(losses) - (1 - q)) / q, 1 + np.expm1(losses) / q)
    exponent = np.full_like(odds, -math.inf)
    np.log(odds, out=exponent, where=odds > 0)
    points: Array = s * s * exponent + 0.5
    return points


@dataclass(frozen=True, eq=False)
class _Masses:
    """Mass before the first edge, of each cell, after the last edge; `error` x 2e-13 bounds a cell's error."""

    before: float
    cells: Array
    after: float
    error: Array

    def reversed(self) -> _Masses:
        return _Masses(self.after, self.cells[::-1], self.before, self.error[::-1])


def _normal(z: Array) -> _Masses:
    """Masses of the standard Gaussian between ascending edges, from the smaller tail on either side."""
    below, above = ndtr(z), ndtr(-z)
    right = z[:-1] > 0
    cells = np.maximum(np.where(right, above[:-1] - above[1:], below[1:] - below[:-1]), 0.0)
    return _Masses(float(below[0]), cells, float(above[-1]), np.where(right, above[:-1], below[1:]))


def _noise(event: SampledGaussian, edges: Array) -> _Masses:
    return _normal(edges / event.noise_multiplier)


def _mixture(event: SampledGaussian, edges: Array) -> _Masses:
    q = event.sample_rate
    without, having = _noise(event, edges), _normal((edges - 1) / event.noise_multiplier)
    return _Masses(
        (1 - q) * without.before + q * having.before,
        (1 - q) * without.cells + q * having.cells,
        (1 - q) * without.after + q * having.after,
        (1 - q) * without.error + q * having.error,
    )
