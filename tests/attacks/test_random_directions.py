"""The random-direction estimate: right on the mechanism it is derived for, zero on nothing, and never a bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from securefed_attacks.canaries import Isotropic, draw_canaries
from securefed_attacks.gaussian_bounds import gaussian_epsilon
from securefed_attacks.random_directions import Estimate, estimate_epsilon, normal_epsilon

DELTA = 1e-5


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 1.0), (1.0, 1.2), (1.0, 0.8), (-1.0, 1.1), (0.0, 1.5), (0.0, 0.6)]
)
def test_epsilon_between_two_normals_is_that_of_numerical_integration(mean: float, std: float) -> None:
    epsilon = normal_epsilon(mean, std, 1e-3)
    p, q = stats.norm(mean, std), stats.norm()

    def delta(first: Any, second: Any) -> float:
        def excess(x: float) -> float:
            return max(0.0, float(first.pdf(x) - math.exp(epsilon) * second.pdf(x)))

        return float(integrate.quad(excess, -12, 12, limit=400, points=[-4, -2, 0, 2, 4])[0])

    assert max(delta(p, q), delta(q, p)) == pytest.approx(1e-3, rel=2e-2)


def test_equal_spreads_are_the_gaussian_mechanism() -> None:
    for mu in (0.3, 1.0, 2.0):
        assert normal_epsilon(mu, 1.0, DELTA) == pytest.approx(gaussian_epsilon(mu, DELTA), abs=1e-4)
        assert normal_epsilon(-mu, 1.0 + 1e-12, DELTA) == pytest.approx(gaussian_epsilon(mu, DELTA), abs=1e-3)
    assert normal_epsilon(0.0, 1.0, DELTA) == 0.0


def release(
    noise_multiplier: float, seed: int, d: int = 10_000, k: int = 200
) -> tuple[Isotropic, np.ndarray]:
    generator = np.random.default_rng(seed)
    canaries = draw_canaries(k, d, generator, "isotropic")
    assert isinstance(canaries, Isotropic)
    total = canaries.directions[canaries.included].sum(0, dtype=np.float64)
    return canaries, total + noise_multiplier * generator.standard_normal(d)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_the_estimate_is_near_the_epsilon_of_a_gaussian_release(mu: float) -> None:
    """100 directions give the mean of their cosines to 0.1 null deviations: a mean of four, to 0.05."""
    found = [estimate_epsilon(*release(1 / mu, seed), delta=DELTA) for seed in range(4)]
    shift = np.mean([e.mean / e.null_std for e in found])
    assert shift == pytest.approx(
        mu / math.sqrt(1 + 200 * mu**2 / 20_000), abs=0.15
    )  # they disturb each other
    truth = gaussian_epsilon(mu, DELTA)
    assert 0.6 * truth < np.mean([e.epsilon for e in found]) < 1.6 * truth


def test_it_lies_on_either_side_of_the_truth_and_so_is_no_bound() -> None:
    found = [estimate_epsilon(*release(2.0, seed, 5000, 100), delta=DELTA).epsilon for seed in range(20)]
    assert min(found) < gaussian_epsilon(0.5, DELTA) < max(found)
    fields = set(Estimate.__dataclass_fields__)
    assert not fields & {"bound", "verdict", "confidence", "claimed"}
    assert "no bound" in str(estimate_epsilon(*release(2.0, 0, 5000, 100), delta=DELTA))


def test_directions_that_were_not_sent_look_like_nothing() -> None:
    canaries, total = release(1.0, 3)
    others = draw_canaries(200, 10_000, np.random.default_rng(99), "isotropic")
    assert isinstance(others, Isotropic)
    strangers = estimate_epsilon(others, total, delta=DELTA)
    assert abs(strangers.mean / strangers.null_std) < 0.5  # 5 deviations
    assert strangers.epsilon < 0.3 * estimate_epsilon(canaries, total, delta=DELTA).epsilon


def test_what_cannot_be_estimated_is_refused() -> None:
    canaries, total = release(1.0, 0, 500, 8)
    with pytest.raises(ValueError, match="10 directions"):
        estimate_epsilon(canaries, total, delta=DELTA)
    with pytest.raises(ValueError, match="not zero"):
        estimate_epsilon(release(1.0, 0, 500, 60)[0], np.zeros(500), delta=DELTA)
    with pytest.raises(ValueError, match="above 0"):
        normal_epsilon(1.0, 0.0, DELTA)
