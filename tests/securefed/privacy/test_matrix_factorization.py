"""Banded factors against dense linear algebra; streamed noise against C^-1 z."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon
from securefed.privacy.correlated_noise import CorrelatedNoise, check_participation, correlated_noise
from securefed.privacy.events import CorrelatedGaussian, SampledGaussian
from securefed.privacy.matrix_factorization import (
    BandedToeplitz,
    Participation,
    best_bands,
    independent,
    optimized,
    square_root,
)
from tests.entropy import SeededEntropy


def dense(factor: BandedToeplitz) -> np.ndarray:
    n = factor.participation.rounds
    matrix = np.zeros((n, n))
    for j, c in enumerate(factor.coefficients):
        matrix += c * np.eye(n, k=-j)
    return matrix


def patterns(p: Participation) -> list[tuple[int, ...]]:
    """All sets of rounds that one client may take part in."""
    return [
        rounds
        for size in range(1, p.most + 1)
        for rounds in itertools.combinations(range(p.rounds), size)
        if all(b - a >= p.separation for a, b in itertools.pairwise(rounds))
    ]


def worst_contribution(matrix: np.ndarray, p: Participation) -> float:
    """sup ||C x||_F by brute force over patterns, at unit updates of the worst signs (rank one)."""
    worst = 0.0
    for rounds in patterns(p):
        for signs in itertools.product((1, -1), repeat=len(rounds)):
            x = np.zeros(p.rounds)
            x[list(rounds)] = signs
            worst = max(worst, float(np.linalg.norm(matrix @ x)))
    return worst


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.data())
def test_the_sensitivity_is_the_worst_over_all_participations(
    rounds: int, separation: int, most: int, data: st.DataObject
) -> None:
    p = Participation(rounds, separation, most)
    bands = data.draw(st.integers(1, max(1, min(separation, rounds))))
    factor = square_root(p, bands)
    assert factor.sensitivity == pytest.approx(worst_contribution(dense(factor), p), rel=1e-12)


def test_rounds_closer_than_the_bands_would_exceed_the_claim_and_are_refused() -> None:
    close = Participation(8, 1, 3)
    with pytest.raises(PrivacyError, match="use fewer bands"):
        square_root(close, 3)
    claimed = square_root(Participation(8, 3, 3), 3)
    assert worst_contribution(dense(claimed), close) > 1.2 * claimed.sensitivity


@pytest.mark.parametrize(("rounds", "bands"), [(1, 1), (7, 1), (12, 4), (40, 40), (30, 8)])
def test_errors_are_those_of_dense_linear_algebra(rounds: int, bands: int) -> None:
    factor = square_root(Participation(rounds, max(bands, 1), 2), bands)
    b = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(dense(factor))
    assert factor.round_deviations == pytest.approx(np.linalg.norm(b, axis=1), rel=1e-10)
    assert factor.total_error == pytest.approx(
        factor.sensitivity * np.linalg.norm(b) / math.sqrt(rounds), rel=1e-10
    )
    assert factor.max_error == pytest.approx(factor.sensitivity * np.linalg.norm(b[-1]), rel=1e-10)


def test_the_full_square_root_squares_to_the_running_sum() -> None:
    c = dense(square_root(Participation(25, 25, 1), 25))
    assert np.allclose(c @ c, np.tril(np.ones((25, 25))))


def test_one_participation_beats_independent_noise_by_a_known_factor() -> None:
    """Total error over 1,000 rounds, a client once in the run: independent noise grows with the root of time,
    the square root's with its logarithm (1 + log(n) / pi about)."""
    p = Participation(1000, 1000, 1)
    alone, together = independent(p), square_root(p, 1000)
    assert alone.max_error == pytest.approx(math.sqrt(1000))
    assert together.max_error < 1 + math.log(1000) / math.pi + 0.5
    assert together.total_error < alone.total_error / 5


@pytest.mark.parametrize(("rounds", "separation", "most"), [(100, 20, 5), (64, 8, 8), (30, 30, 1)])
def test_optimized_is_at_least_as_good_as_the_square_root_and_better_than_independent(
    rounds: int, separation: int, most: int
) -> None:
    p = Participation(rounds, separation, most)
    bands = min(8, separation)
    best = optimized(p, bands)
    assert best.total_error <= square_root(p, bands).total_error
    assert best.total_error < 0.8 * independent(p).total_error
    if bands < rounds:
        assert best.total_error < 0.999 * square_root(p, bands).total_error


def test_more_bands_are_not_always_better_and_the_best_number_is_found() -> None:
    p = Participation(60, 30, 2)
    errors = {b: square_root(p, b).total_error for b in range(1, 31)}
    assert best_bands(p).bands == min(errors, key=lambda b: errors[b])


def test_streamed_noise_is_the_inverse_times_the_fresh_noise() -> None:
    rounds, d = 9, 5
    factor = optimized(Participation(rounds, 4, 2), 4)
    state = correlated_noise(factor, clip=0.5, noise_multiplier=2.0, dimension=d)
    fresh = np.stack([SeededEntropy(0).stream("z", t).normal(d) for t in range(rounds)])
    streamed = []
    for t in range(rounds):
        noise, state = state.step(SeededEntropy(0).stream("z", t))
        streamed.append(noise)
        assert len(state.recent) <= 3
    scale = 0.5 * 2.0 * factor.sensitivity
    assert np.allclose(np.stack(streamed), np.linalg.inv(dense(factor)) @ (scale * fresh), atol=1e-12)


def test_running_sums_have_the_stated_deviation_and_a_tenth_of_the_noise_is_noticed() -> None:
    factor = square_root(Participation(30, 6, 5), 6)
    d = 4000
    state = correlated_noise(factor, clip=1.0, noise_multiplier=1.5, dimension=d)
    total = np.zeros(d)
    for t in range(30):
        noise, state = state.step(SeededEntropy(1).stream("z", t))
        total += noise
    claimed = 1.5 * factor.max_error
    assert total.std() == pytest.approx(claimed, rel=0.06)  # standard error 1.1 %
    assert (total / 10).std() < 0.5 * claimed


def test_the_event_is_one_gaussian_of_the_whole_run() -> None:
    factor = square_root(Participation(100, 10, 4), 10)
    event = factor.event(2.0)
    assert event == CorrelatedGaussian(2.0, 1.0, 1, rounds=100, bands=10, separation=10, participations=4)
    assert epsilon([event], 1e-5) == epsilon([SampledGaussian(2.0, 1.0, 1)], 1e-5)
    assert epsilon([factor.event(2.0)], 1e-5).accountant == "pld"
    # Independent noise, the same way: k rounds of one client are one Gaussian of sensitivity sqrt(k).
    alone = independent(Participation(100, 10, 4))
    assert alone.sensitivity == 2.0
    assert epsilon([alone.event(1.0)], 1e-5).epsilon == pytest.approx(
        epsilon([SampledGaussian(2.0, 1.0, 4)], 1e-5).epsilon, rel=1e-3
    )


def test_a_state_is_carried_over_a_restart_and_only_to_its_own_mechanism() -> None:
    factor = square_root(Participation(10, 3, 2), 3)
    start = correlated_noise(factor, 1.0, 1.0, dimension=6)
    state = start
    for t in range(4):
        _, state = state.step(SeededEntropy(2).stream("z", t))
    again = start.restored(state.secret_bytes())
    assert again.round == 4
    left, right = (s.step(SeededEntropy(2).stream("z", 4))[0] for s in (state, again))
    assert (left == right).all()
    other = correlated_noise(factor, 2.0, 1.0, dimension=6)
    for target, secret in (
        (other, state.secret_bytes()),
        (start, state.secret_bytes()[:-8]),
        (start, b"rubbish"),
        (start, b""),
    ):
        with pytest.raises(PrivacyError):
            target.restored(secret)


def test_the_state_shows_itself_nowhere() -> None:
    state = correlated_noise(square_root(Participation(10, 3, 2), 3), 1.0, 1.0, dimension=3)
    noise, state = state.step(SeededEntropy(0).stream("z"))
    assert "recent" not in repr(state)
    assert not any(f"{v:.6f}"[:7] in repr(state) for v in noise)
    with pytest.raises(PrivacyError, match="never pickled"):
        pickle.dumps(state)


def test_no_more_rounds_than_charged_and_no_state_with_a_gap() -> None:
    factor = square_root(Participation(2, 2, 1), 2)
    state = correlated_noise(factor, 1.0, 1.0, dimension=2)
    for t in range(2):
        _, state = state.step(SeededEntropy(0).stream("z", t))
    with pytest.raises(PrivacyError, match="charged for 2 rounds"):
        state.step(SeededEntropy(0).stream("z", 2))
    with pytest.raises(PrivacyError, match="a lost state ends the run"):
        CorrelatedNoise(factor, 1.0, 2, round=1)


def test_participation_is_checked() -> None:
    factor = square_root(Participation(20, 5, 2), 5)
    check_participation(factor, [], 3, client=7)
    check_participation(factor, [3], 8, client=7)
    for taken, round in (([3], 7), ([3, 8], 19)):
        with pytest.raises(PrivacyError, match="client 7 may take part at most 2 times"):
            check_participation(factor, taken, round, client=7)


@pytest.mark.parametrize("coefficients", [(), (0.5,), (1.0, 1.1), (1.0, -0.1), (1.0, 0.2, 0.3)])
def test_factors_without_the_shape_that_the_proof_needs_are_refused(coefficients: tuple[float, ...]) -> None:
    with pytest.raises(PrivacyError, match="coefficients"):
        BandedToeplitz(coefficients, Participation(5, 5, 1))
