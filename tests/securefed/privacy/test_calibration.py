"""Noise for a target epsilon, steps for a target epsilon."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import PrivacyError
from securefed.privacy import accounting
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.calibration import calibrate_noise, max_steps
from securefed.privacy.events import NonPrivate, SampledGaussian


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 20), st.floats(0.01, 1), st.integers(1, 500))
def test_noise_is_enough_and_not_more_than_needed(epsilon: float, q: float, steps: int) -> None:
    noise = calibrate_noise(epsilon, 1e-5, q, steps)
    assert epsilon_of([SampledGaussian(noise, q, steps)], 1e-5) <= epsilon
    assert epsilon_of([SampledGaussian(noise / 1.002, q, steps)], 1e-5) > epsilon


def test_known_calibrations() -> None:
    # Opacus' RDP and dp-accounting's PLD, epsilon 3, delta 1e-5, sample rate 0.05, 200 steps.
    assert calibrate_noise(3.0, 1e-5, 0.05, 200) == pytest.approx(1.2868, rel=2e-3)
    assert calibrate_noise(3.0, 1e-5, 0.05, 200, "rdp") == pytest.approx(1.3745, rel=2e-3)


def test_the_quickstart_is_calibrated_in_under_three_seconds() -> None:
    accounting._epsilon.cache_clear()
    calibrate_noise.cache_clear()
    start = time.process_time()
    calibrate_noise(3.0, 1e-5, 0.135, 63)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(("epsilon", "steps"), [(0, 1), (-1, 1), (math.inf, 1), (math.nan, 1), (1, 0)])
def test_arguments_out_of_range_are_refused(epsilon: float, steps: int) -> None:
    with pytest.raises(PrivacyError):
        calibrate_noise(epsilon, 1e-5, 0.1, steps)


def test_a_target_below_the_floor_of_rdp_is_refused_with_a_way_out() -> None:
    with pytest.raises(PrivacyError, match=r"out of reach.*pld"):
        calibrate_noise(1e-3, 1e-10, 0.1, 10, "rdp")


def test_a_target_that_asks_for_no_noise_is_refused() -> None:
    with pytest.raises(PrivacyError, match="protects nobody"):
        calibrate_noise(1e4, 1e-5, 0.1, 1)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.5, 5), st.floats(0.02, 1), st.floats(0.5, 10))
def test_max_steps_is_the_last_that_fits(noise: float, q: float, epsilon: float) -> None:
    steps = max_steps(noise, q, epsilon, 1e-5)
    assert epsilon_of([SampledGaussian(noise, q, steps)], 1e-5) <= epsilon
    assert epsilon_of([SampledGaussian(noise, q, steps + 1)], 1e-5) > epsilon


def test_what_was_spent_before_leaves_fewer_steps() -> None:
    alone = max_steps(1.3, 0.135, 3.0, 1e-5)
    after = max_steps(1.3, 0.135, 3.0, 1e-5, spent=(SampledGaussian(2.0, 0.5, 5),))
    assert 0 < after < alone
    assert max_steps(1.3, 0.135, 3.0, 1e-5, spent=(NonPrivate(),)) == 0
    assert max_steps(0.0, 0.135, 3.0, 1e-5) == 0
