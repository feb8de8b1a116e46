"""Renyi divergences of sampled Gaussians and PRV accounting by Opacus; in this package the only file that knows it.

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
from securefed.privacy.renyi import ORDERS

_ERROR, _MOST_STEPS = 0.01, 20_000


@lru_cache(maxsize=1024)
def step_divergences(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """Renyi divergences of one Poisson-sampled Gaussian step at `renyi.ORDERS`, upper bounds.

    Mironov, Talwar and Zhang 2019 (arXiv 1908.10530): the direction "remove" bounds both (theorem 5
    there). Orders at which the series does not converge are infinite, which only loosens.
    """
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
    """Opacus' PRV upper bound on epsilon (Gopi, Lee and Wutschitz 2021, arXiv 2106.02848).

    It adds its error, 0.01; where that is more than 0.8 % of epsilon it is asked again, for an error of 0.6 %
    (not below 0.0002), which costs in proportion; but not for more than `_MOST_STEPS` steps, where that takes
    a minute and a gigabyte.

    Raises:
        ArithmeticError: its discretization failed; known for large and for very small epsilons.
    """
    if not events:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    epsilon = _asked(accountant, delta, _ERROR)
    if 0.008 * epsilon >= _ERROR or sum(e.steps for e in events) > _MOST_STEPS:
        return epsilon
    try:
        return min(epsilon, _asked(accountant, delta, max(0.006 * epsilon, 2e-4)))
    except ArithmeticError:  # the coarser answer is a bound as well
        return epsilon


def _asked(accountant: PRVAccountant, delta: float, error: float) -> float:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(delta, eps_error=error))
    except (ValueError, RuntimeError, OverflowError, IndexError, MemoryError, ZeroDivisionError) as failure:
        raise ArithmeticError(f"the PRV accountant failed: {failure}") from None
    if not math.isfinite(epsilon):
        raise ArithmeticError("the PRV accountant gave no number")
    return max(0.0, epsilon)
