"""Clipping and central noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from securefed.errors import PrivacyError
from securefed.privacy.client_level import clip_update, noisy_mean, noisy_share
from tests.entropy import SeededEntropy

FALSE_ALARM = 1e-6  # per test over all seeds; the seed is fixed
vectors = arrays(np.float32, st.integers(0, 30), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(vectors, st.floats(1e-3, 1e3))
def test_norm_after_rounding_is_at_most_the_sensitivity(vector: np.ndarray, max_norm: float) -> None:
    before = vector.copy()
    clipped = clip_update(vector, max_norm)
    assert clipped.sensitivity == max_norm
    assert clipped.vector.dtype == np.float32
    assert np.linalg.norm(clipped.vector.astype(np.float64)) <= max_norm
    assert (vector == before).all()


@given(vectors)
def test_a_short_vector_stays_as_it_is(vector: np.ndarray) -> None:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    assert (clip_update(vector, 2 * norm + 1).vector == vector).all()


def test_a_long_vector_keeps_its_direction_and_nearly_the_norm() -> None:
    clipped = clip_update(np.array([30, 40], np.float32), 1.0).vector
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        clip_update(np.array([1, bad], np.float32), 1.0)
    with pytest.raises(PrivacyError, match="not a finite vector"):
        noisy_mean(np.array([1, bad]), 1.0, 1.0, 1.0, SeededEntropy(0).stream())


@pytest.mark.parametrize("max_norm", [0, -1, math.nan, math.inf])
def test_a_clipping_norm_out_of_range_is_refused(max_norm: float) -> None:
    with pytest.raises(PrivacyError, match="max_norm"):
        clip_update(np.ones(2, np.float32), max_norm)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(PrivacyError, match="float32"):
        clip_update(np.ones(2), 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["sensitivity", "noise_multiplier", "denominator"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_noise_parameters_out_of_range_are_refused(field: str, value: float) -> None:
    parameters = {"sensitivity": 1.0, "noise_multiplier": 1.0, "denominator": 1.0} | {field: value}
    with pytest.raises(PrivacyError, match=field):
        noisy_mean(np.zeros(2), stream=SeededEntropy(0).stream(), **parameters)


@pytest.mark.parametrize(("factor", "accepted"), [(1, True), (2 / 3, False), (3 / 2, False)])
def test_noise_has_the_scale_that_the_accountant_is_told(factor: float, accepted: bool) -> None:
    total, d = np.full(20_000, 12.0), 20_000
    mean = noisy_mean(total, 0.5, 1.2, 4.0, SeededEntropy(3).stream("noise")).astype(np.float64)
    claimed = factor * 0.5 * 1.2 / 4.0
    low, high = stats.chi2.interval(1 - FALSE_ALARM, d)
    assert (low < ((mean - 3.0) ** 2).sum() / claimed**2 < high) == accepted
    assert abs(mean.mean() - 3.0) < 5 * 0.15 / math.sqrt(d)


def test_the_honest_shares_add_up_to_the_claimed_noise() -> None:
    """Seven shares of noise for seven honest clients; scaled for ten of them would be seen."""
    clipped = clip_update(np.zeros(20_000, np.float32), 2.0)
    shares = [noisy_share(clipped, 1.5, 7, SeededEntropy(0).stream("share", c)) for c in range(7)]
    total = np.sum(shares, axis=0, dtype=np.float64)
    assert total.std() == pytest.approx(3.0, rel=0.03)  # standard error 0.5 %; for ten it would be 2.5
    assert not np.array_equal(shares[0], shares[1])


@pytest.mark.parametrize(("noise_multiplier", "honest"), [(0.0, 3), (math.nan, 3), (1.0, 0)])
def test_shares_without_noise_are_refused(noise_multiplier: float, honest: int) -> None:
    clipped = clip_update(np.zeros(4, np.float32), 1.0)
    with pytest.raises(PrivacyError, match="share of noise"):
        noisy_share(clipped, noise_multiplier, honest, SeededEntropy(0).stream("share"))
