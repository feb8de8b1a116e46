"""The cost of a search: against dp-accounting, against searches whose output law is known, and sampled."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import chi2

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon, epsilon_of
from securefed.privacy.events import (
    BestOf,
    NonPrivate,
    SampledGaussian,
    SkellamSum,
    from_json,
    merge,
    repeat,
    to_json,
)
from securefed.privacy.renyi import ORDERS
from securefed.privacy.tuning import TrialCount, _probabilities, tuned_curve
from securefed.privacy.words import describe, relation_of
from tests.entropy import SeededEntropy

VECTORS = Path(__file__).parents[2] / "vectors" / "dp_accounting_tuning.json"
STORED: dict[str, Any] = json.loads(VECTORS.read_text())
COUNTS = [
    (1.0, 1.0),
    (4.0, 0.0),
    (10.0, 1.0),
    (10.0, 0.5),
    (3.0, -0.5),
    (6.0, 3.0),
    (5.0, math.inf),
    (0.4, math.inf),
]


def test_the_oracles_orders_are_ours() -> None:
    assert STORED["orders"] == list(ORDERS)


@pytest.mark.parametrize(
    "case", STORED["cases"], ids=lambda c: f"{c['trial']}-{c['mean']}-{c['shape']}-{c['delta']}"
)
def test_epsilon_agrees_with_dp_accounting(case: dict[str, Any]) -> None:
    shape = math.inf if case["shape"] is None else case["shape"]
    event = TrialCount(case["mean"], shape).event([SampledGaussian(*case["trial"])])
    spent = epsilon([event], case["delta"])
    assert spent.accountant == "rdp"
    assert spent.epsilon == pytest.approx(case["rdp"], rel=5e-3)


@pytest.mark.parametrize(("mean", "shape"), COUNTS)
def test_the_law_of_the_number_of_trials_has_its_mean_and_adds_up(mean: float, shape: float) -> None:
    p = np.array(_probabilities(mean, shape))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p * np.arange(len(p))).sum() == pytest.approx(mean, rel=1e-9)
    assert (p[0] == 0) == (shape != math.inf)


def test_the_laws_are_the_papers() -> None:
    geometric = np.array(_probabilities(10.0, 1.0))[1:30]
    assert geometric == pytest.approx(0.1 * 0.9 ** np.arange(29), rel=1e-9)
    logarithmic = np.array(_probabilities(4.0, 0.0))[1:30]
    ratio = logarithmic[1] / logarithmic[0] * 2  # (1 - gamma)^k / k
    assert logarithmic == pytest.approx(logarithmic[0] * ratio ** np.arange(29) / np.arange(1, 30), rel=1e-9)
    poisson = np.array(_probabilities(5.0, math.inf))[:20]
    assert poisson == pytest.approx([math.exp(-5) * 5**k / math.factorial(k) for k in range(20)], rel=1e-9)


@pytest.mark.parametrize(("mean", "shape"), [(10.0, 1.0), (4.0, 0.0), (5.0, math.inf)])
def test_drawn_numbers_follow_the_law(mean: float, shape: float) -> None:
    law, stream, n = TrialCount(mean, shape), SeededEntropy(0).stream("k"), 20_000
    seen = Counter(law.draw(stream) for _ in range(n))
    p = _probabilities(mean, shape)
    kept = [k for k in range(len(p)) if p[k] * n > 20]
    statistic = sum((seen[k] - n * p[k]) ** 2 / (n * p[k]) for k in kept)
    assert chi2.sf(statistic, len(kept)) > 1e-4
    wrong = _probabilities(mean * 1.1, shape)
    statistic = sum((seen[k] - n * wrong[k]) ** 2 / (n * wrong[k]) for k in kept)
    assert chi2.sf(statistic, len(kept)) < 1e-4


def best_of(law: np.ndarray, p: tuple[float, ...]) -> np.ndarray:
    """Exact law of the best of K draws from `law` over 0 < 1 < ...: f(F(y)) - f(F(y-1)), f the p.g.f. of K."""
    below = np.concatenate([[0.0], np.cumsum(law)])
    powers = np.power(below[:, None], np.arange(len(p))[None, :]) @ np.array(p)
    return np.concatenate([[p[0]], np.diff(powers)])  # K = 0 is an outcome of its own


def divergence(p: np.ndarray, q: np.ndarray, order: float) -> float:
    kept = (p > 0) & (q > 0)
    return float(logsumexp(order * np.log(p[kept]) + (1 - order) * np.log(q[kept]))) / (order - 1)


@pytest.mark.parametrize(("mean", "shape"), COUNTS)
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31))
def test_the_exact_divergence_of_small_searches_is_below_the_bound(
    mean: float, shape: float, seed: int
) -> None:
    """One trial: a random law over six outcomes, ordered by score, and a neighbour's."""
    rng = np.random.default_rng(seed)
    left = rng.dirichlet(np.ones(6)) * 0.9 + 0.1 / 6
    right = left * np.exp(rng.uniform(-0.5, 0.5, 6))
    right /= right.sum()
    for p, q in ((left, right), (right, left)):
        curve = np.array([max(divergence(p, q, a), divergence(q, p, a)) for a in ORDERS])
        bound = tuned_curve(curve, mean, shape)
        counts = _probabilities(mean, shape)
        best = best_of(p, counts), best_of(q, counts)
        for index in (0, 10, 19, 40, 109, 140):
            assert divergence(*best, ORDERS[index]) <= bound[index] * (1 + 1e-9) + 1e-12


def test_a_search_really_costs_more_than_one_trial_and_less_than_all_of_them() -> None:
    trial = SampledGaussian(4.0, 1.0, 4)
    one, all_ten = (epsilon_of([repeat(trial, k)], 1e-5, "rdp") for k in (1, 10))
    search = epsilon_of([TrialCount(10.0, 0.0).event([trial])], 1e-5)
    assert 1.3 * one < search < all_ten
    hundred = epsilon_of([TrialCount(100.0, 0.0).event([trial])], 1e-5)
    assert search < hundred < 1.4 * search


def test_claiming_one_trials_cost_for_the_best_of_many_is_false() -> None:
    """The fault: a search that is not charged. Its exact divergence exceeds one trial's bound."""
    left = np.array([0.6, 0.39, 0.01])
    right = np.array([0.6, 0.395, 0.005])
    curve = np.array([max(divergence(left, right, a), divergence(right, left, a)) for a in ORDERS])
    counts = _probabilities(30.0, 1.0)
    best = divergence(best_of(left, counts), best_of(right, counts), 2.0)
    index = ORDERS.index(2)
    assert curve[index] < best <= tuned_curve(curve, 30.0, 1.0)[index]


def test_the_event_is_kept_by_the_ledgers_encoding_and_merges() -> None:
    trial = [SampledGaussian(1, 0.5, 2), SkellamSum(3.0, 9.0, 40.0, 1, 1e-40), SampledGaussian(1.0, 0.5, 1)]
    for count in (TrialCount(10.0, 0.5), TrialCount(10.0, math.inf)):
        event = count.event(trial)
        assert from_json(to_json(event)) == event
        assert merge([event, event]) == (replace(event, steps=2),)
        assert merge([replace(event, trial=event.trial[::-1]), event]) == (replace(event, steps=2),)
        assert event.slack == pytest.approx(10 * 1e-40)
        assert epsilon_of([event, event], 1e-5) > epsilon_of([event], 1e-5)
    assert "only the best released" in describe(event)
    assert "by zero" in relation_of([event])


@pytest.mark.parametrize("accountant", ["pld", "prv"])
def test_only_rdp_has_a_theorem_for_searches(accountant: Any) -> None:
    with pytest.raises(PrivacyError, match="not valid for best-of"):
        epsilon([TrialCount(3.0).event([SampledGaussian(1.0, 0.1, 1)])], 1e-5, accountant)


def test_a_search_over_trials_without_noise_is_infinite_or_refused() -> None:
    assert epsilon_of([TrialCount(3.0).event([SampledGaussian(0.0, 1.0, 1)])], 1e-5) == math.inf
    inner = TrialCount(3.0).event([SampledGaussian(1.0, 1.0, 1)])
    for trial in ([NonPrivate()], [inner], []):
        with pytest.raises(PrivacyError):
            TrialCount(3.0).event(trial)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mean", "shape"),
    [(0.5, 1.0), (math.inf, 1.0), (math.nan, 1.0), (2.0, -1.0), (2.0, math.nan), (0.0, math.inf)],
)
def test_laws_out_of_range_are_refused(mean: float, shape: float) -> None:
    with pytest.raises(PrivacyError):
        TrialCount(mean, shape)
    with pytest.raises(PrivacyError):
        BestOf((SampledGaussian(1.0, 1.0, 1),), mean, shape, 1)
