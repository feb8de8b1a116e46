"""Conditional rounding: right on average, and never longer than the sensitivity that is claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import PrivacyError
from securefed.privacy import rounding
from securefed.privacy.rounding import l1_bound, round_within, rounded_norm_squared
from tests.entropy import SeededEntropy


def vector_of_norm(norm: float, dimension: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(dimension)
    return (x * (norm / np.linalg.norm(x)) * (1 - 1e-6)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 1e4), st.integers(1, 400), st.integers(0, 10**6))
def test_no_rounded_vector_is_longer_than_its_bound(levels: float, dimension: int, seed: int) -> None:
    bound = rounded_norm_squared(levels, dimension)
    stream = SeededEntropy(seed).stream("round")
    rounded = round_within(vector_of_norm(levels, dimension, seed), bound, stream)
    assert int((rounded**2).sum()) <= bound
    assert np.abs(rounded).sum() <= l1_bound(bound, dimension) + 1e-9


def test_each_value_goes_to_a_neighbour_and_is_right_on_average() -> None:
    x = np.array([0.25, -0.75, 3.0, 0.0, -2.5], np.float32)
    stream = SeededEntropy(0).stream("round")
    draws = np.stack([round_within(x, 100, stream) for _ in range(4000)])
    assert (np.abs(draws - x) < 1).all()
    assert np.abs(draws.mean(0) - x).max() < 4.5 * 0.5 / math.sqrt(4000)


def test_whole_numbers_and_zero_stay_as_they_are() -> None:
    x = np.array([0, 0, 5, -7, 0], np.float32)
    assert (round_within(x, 74, SeededEntropy(0).stream("round")) == x).all()


def test_a_bound_that_forgets_rounding_would_be_exceeded() -> None:
    """The fault: claiming the clipping norm itself. Plain stochastic rounding breaks that claim nearly always."""
    x = np.full(10_000, 0.05, np.float32)  # norm 5; rounded to about 500 ones: norm 22
    stream = SeededEntropy(0).stream("round")
    plain = round_within(x, 10**9, stream)
    assert int((plain**2).sum()) > 5**2
    assert (round_within(x, 25, stream) == 0).all()  # every draw is refused: towards zero, within the bound
    honest = rounded_norm_squared(5.0, 10_000)
    assert 5**2 + 400 < honest < (5 + 100) ** 2


def test_the_bound_is_the_formula_with_floors() -> None:
    assert rounded_norm_squared(10.0, 1) == math.floor(
        min(100 + 0.25 + 1.0 * (10 + 0.5), 11.0**2)  # sqrt(2 log(1/beta)) = 1 for beta = e^-1/2
    )
    assert rounded_norm_squared(0.01, 1) == 1  # never 0, to which no noise could be scaled
    assert rounded_norm_squared(0.5, 4) == math.floor(min(0.25 + 1 + 1.5, 2.5**2))


def test_refusals_are_as_rare_as_the_bound_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the norm itself at most beta = 0.61 of draws are refused; with 200 vectors that seldom needs 30 tries."""
    monkeypatch.setattr(rounding, "_TRIES", 30)
    x = np.full(400, 0.5, np.float32)
    stream = SeededEntropy(5).stream("round")
    rounded = [round_within(x, rounded_norm_squared(10.0, 400), stream) for _ in range(200)]
    assert all(r.any() for r in rounded)  # the fallback would give zeros


@pytest.mark.parametrize("levels", [0.0, -1.0, math.nan, 2.0**31])
def test_levels_out_of_range_are_refused(levels: float) -> None:
    with pytest.raises(PrivacyError, match="levels"):
        rounded_norm_squared(levels, 10)


@pytest.mark.parametrize("x", [[100.0, 0.0], [math.nan, 0.0], [math.inf, 0.0]])
def test_a_vector_that_was_not_clipped_is_refused(x: list[float]) -> None:
    with pytest.raises(PrivacyError, match="clip it first"):
        round_within(np.array(x, np.float32), 100, SeededEntropy(0).stream("round"))
