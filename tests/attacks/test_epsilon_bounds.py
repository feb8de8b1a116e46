"""Bounds on epsilon fail as seldom as they say, on mechanisms that spend exactly what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from securefed_attacks.canaries import one_run_audit
from securefed_attacks.epsilon_bounds import (
    best_guesses,
    canaries_needed,
    clopper_pearson,
    epsilon_from_counts,
    one_run_ceiling,
    one_run_epsilon,
    one_run_epsilon_of_scores,
    one_run_p_value,
)

AUDITS = 1000


@given(n=st.integers(1, 40), data=st.data(), confidence=st.floats(0.5, 0.999))
def test_clopper_pearson_ends_where_the_tails_are_half_of_what_is_left(
    n: int, data: st.DataObject, confidence: float
) -> None:
    k = data.draw(st.integers(0, n))
    low, high = clopper_pearson(k, n, confidence)
    tail = (1 - confidence) / 2
    if k > 0:
        assert stats.binom.sf(k - 1, n, low) == pytest.approx(tail, rel=1e-6)
    if k < n:
        assert stats.binom.cdf(k, n, high) == pytest.approx(tail, rel=1e-6)
    assert low <= k / n <= high


def test_the_p_value_is_the_theorem_read_aloud() -> None:
    correct, guesses, m, epsilon, delta = 40, 50, 80, 1.0, 1e-3
    success = math.exp(epsilon) / (1 + math.exp(epsilon))
    pmf = [math.comb(guesses, b) * success**b * (1 - success) ** (guesses - b) for b in range(guesses + 1)]
    alpha = max(sum(pmf[max(0, correct - i) : correct]) / i for i in range(1, m + 1))
    assert one_run_p_value(correct, guesses, m, epsilon, delta) == pytest.approx(
        sum(pmf[correct:]) + 2 * m * delta * alpha, rel=1e-9
    )


@pytest.mark.parametrize(
    ("m", "ceiling"), [(100, 3.49), (300, 4.59), (1000, 5.78), (3000, 6.83), (10000, 7.83)]
)
def test_the_ceiling_of_perfect_guesses(m: int, ceiling: float) -> None:
    assert one_run_ceiling(m, 1e-5) == pytest.approx(ceiling, abs=0.006)


def test_the_canaries_needed_are_the_fewest() -> None:
    m = canaries_needed(5.0, 1e-5)
    assert one_run_ceiling(m, 1e-5) > 5.0 >= one_run_ceiling(m - 1, 1e-5)
    with pytest.raises(ValueError, match="no audit of a million"):
        canaries_needed(40.0, 1e-5)


def randomized_response(rng: np.random.Generator, epsilon: float, m: int) -> tuple[np.ndarray, np.ndarray]:
    """(coins, answers): each answer is right with probability e^epsilon / (1 + e^epsilon): exactly epsilon-DP."""
    coins = rng.random(m) < 0.5
    right = rng.random(m) < 1 / (1 + math.exp(-epsilon))
    return coins, coins == right


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_a_true_claim_is_refuted_in_at_most_five_of_a_hundred_audits(epsilon: float) -> None:
    rng = np.random.default_rng(7)
    m, false_alarms = 300, 0
    for _ in range(AUDITS):
        coins, answers = randomized_response(rng, epsilon, m)
        correct = int((coins == answers).sum())
        false_alarms += one_run_p_value(correct, m, m, epsilon, 0.0) <= 0.05
    assert 0.02 <= false_alarms / AUDITS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / AUDITS)


def test_trying_eight_thresholds_does_not_refute_true_claims_more_often() -> None:
    rng = np.random.default_rng(8)
    epsilon, m, false_alarms = 1.0, 200, 0
    for _ in range(300):
        coins, answers = randomized_response(rng, epsilon, m)
        scores = answers + rng.random(m) / 2  # the mechanism's answer, ties broken at random
        false_alarms += one_run_epsilon_of_scores(scores, coins, 0.0) > epsilon
    assert false_alarms / 300 <= 0.05


def test_a_false_claim_is_refuted() -> None:
    rng = np.random.default_rng(9)
    coins, answers = randomized_response(rng, 4.0, 1000)
    bound = one_run_epsilon(int((coins == answers).sum()), 1000, 1000, 1e-5)
    assert 2.5 < bound < 4.0
    assert one_run_epsilon_of_scores(answers + rng.random(1000) / 2, coins, 1e-5) > 2.0


def test_guesses_by_chance_bound_nothing() -> None:
    assert one_run_epsilon(500, 1000, 1000, 1e-5) == 0.0
    assert one_run_epsilon(0, 0, 10, 1e-5) == 0.0


@given(correct=st.integers(0, 50), more=st.integers(0, 50), delta=st.sampled_from([0.0, 1e-6, 1e-3]))
def test_more_right_guesses_never_lower_the_bound(correct: int, more: int, delta: float) -> None:
    low = one_run_epsilon(correct, 100, 100, delta)
    assert one_run_epsilon(correct + more, 100, 100, delta) >= low - 1e-5


def test_counts_of_many_runs_bound_epsilon_and_hold() -> None:
    rng = np.random.default_rng(10)
    epsilon, runs = 1.0, 400
    success = 1 / (1 + math.exp(-epsilon))
    bounds = [
        epsilon_from_counts(
            int(rng.binomial(runs, success)), runs, int(rng.binomial(runs, 1 - success)), runs, 0.0
        )
        for _ in range(AUDITS)
    ]
    assert np.mean([b > epsilon for b in bounds]) <= 0.05
    assert np.median(bounds) > 0.7


def test_the_complement_bounds_too() -> None:
    """A test that is never wrong about members but often about others says as much as its mirror image."""
    mirrored = epsilon_from_counts(99, 100, 10, 100, 1e-5)
    assert mirrored == pytest.approx(epsilon_from_counts(90, 100, 1, 100, 1e-5))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: clopper_pearson(3, 2), "0 <= k <= n"),
        (lambda: one_run_epsilon(3, 2, 5, 0.0), "correct <= guesses"),
        (lambda: one_run_epsilon(3, 6, 5, 0.0), "guesses <= m"),
        (lambda: one_run_epsilon(1, 2, 5, 1.0), "delta lies in"),
        (lambda: one_run_epsilon(1, 2, 5, 0.1, 1.0), "strictly between"),
        (lambda: one_run_epsilon_of_scores([1.0, math.nan], [1, 0], 0.0), "a number"),
    ],
)
def test_what_makes_no_sense_is_refused(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()  # type: ignore[operator]  # every entry is a function


def test_equal_scores_guess_nothing_from_the_order_of_the_canaries() -> None:
    """Handed over sorted by their coins, which scores that say nothing must not find out."""
    for coins in (np.repeat([False, True], 500), np.repeat([True, False], 500)):
        for share in (0.1, 0.5, 1.0):
            correct, guesses = best_guesses(np.zeros(1000), coins, share)
            assert abs(correct - guesses / 2) < 3 * guesses**0.5 / 2
        assert one_run_audit(np.zeros(1000), coins, delta=1e-5, claimed=1.0).bound < 0.1
