"""Renyi and PRV accounting by Opacus; in this package the only file that knows it.

Import it lazily: it loads torch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp

from securefed.privacy.events import SampledGaussian

ORDERS: tuple[float, ...] = (
    *(1 + k / 20 for k in range(1, 20)),
    *(2 + k / 10 for k in range(90)),
    *range(11, 64),
    *(64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1000),
)


def rdp_epsilon(events: Sequence[SampledGaussian], delta: float) -> float:
    """An upper bound on epsilon by Renyi divergences (Mironov, Talwar and Zhang 2019, arXiv 1908.10530).

    For a sampled Gaussian the direction "remove" bounds both (theorem 5 there). Converted by Canonne,
    Kamath and Steinke 2020 (arXiv 2004.00010, proposition 12). Orders at which the series does not
    converge are left out, which only loosens.

    Raises:
        ArithmeticError: no order gives a finite bound.
    """
    if not events:
        return 0.0
    orders = np.array(ORDERS)
    total = np.zeros_like(orders)
    for event in events:
        total += event.steps * _step_divergences(event.noise_multiplier, event.sample_rate)
    bounds = total + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    finite = bounds[np.isfinite(bounds)]
    if finite.size == 0:
        raise ArithmeticError("no Renyi order gives a finite bound")
    return max(0.0, float(finite.min()))


@lru_cache(maxsize=1024)
def _step_divergences(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    values = np.array([_divergence(noise_multiplier, sample_rate, order) for order in ORDERS])
    values.setflags(write=False)
    return values


def _divergence(noise_multiplier: float, sample_rate: float, order: float) -> float:
    """One step's Renyi divergence of this order, infinite where Opacus cannot compute it."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = float(
                compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=float(order))
            )
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.inf
    if not (math.isfinite(value) and value >= 0):
        return math.inf
    # Opacus stops its series at terms of e^-30 and sums near one: what many steps would multiply is added.
    return value + 1e-12 / (order - 1) + 1e-14 * order


def prv_epsilon(events: Sequence[SampledGaussian], delta: float) -> float:
    """Opacus' PRV upper bound on epsilon (Gopi, Lee and Wutschitz 2021, arXiv 2106.02848), error 0.01.

    Raises:
        ArithmeticError: its discretization failed; known for large and for very small epsilons.
    """
    if not events:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError, OverflowError, IndexError, MemoryError, ZeroDivisionError) as error:
        raise ArithmeticError(f"the PRV accountant failed: {error}") from None
    if not math.isfinite(epsilon):
        raise ArithmeticError("the PRV accountant gave no number")
    return max(0.0, epsilon)
