"""Every interval is held against simulated audits whose truth is known; every number against a slow oracle."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from securefed_attacks import statistics
from securefed_attacks.statistics import (
    Interval,
    auc,
    auc_interval,
    balanced_accuracy,
    bootstrap_interval,
    exposure,
    fpr_interval,
    roc,
    tpr_at_fpr,
    tpr_interval,
)

AUDITS = 1000
small = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


def both(inside: list[float], outside: list[float]) -> tuple[list[float], list[int]]:
    return [*inside, *outside], [1] * len(inside) + [0] * len(outside)


@given(inside=small, outside=small)
def test_auc_counts_every_pair(inside: list[float], outside: list[float]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(inside, outside)]
    assert auc(*both(inside, outside)) == pytest.approx(np.mean(pairs))


@given(inside=small, outside=small)
def test_auc_is_the_area_under_the_curve(inside: list[float], outside: list[float]) -> None:
    curve = roc(*both(inside, outside))
    area = np.trapezoid(curve.tpr, curve.fpr)
    assert auc(*both(inside, outside)) == pytest.approx(area)
    assert (curve.tpr[0], curve.fpr[0], curve.tpr[-1], curve.fpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(curve.tpr) >= 0).all()
    assert (np.diff(curve.fpr) >= 0).all()


@given(inside=small, outside=small, fpr=st.floats(0, 1))
def test_tpr_at_fpr_is_the_best_threshold_that_keeps_it(
    inside: list[float], outside: list[float], fpr: float
) -> None:
    scores, members = both(inside, outside)
    best = 0.0
    for threshold in [*scores, math.inf]:
        if np.mean([s >= threshold for s in outside]) <= fpr + 1e-12:
            best = max(best, float(np.mean([s >= threshold for s in inside])))
    assert tpr_at_fpr(scores, members, fpr) == pytest.approx(best)


def test_a_false_positive_rate_below_one_over_n_cannot_be_resolved() -> None:
    scores, members = both([5.0, 1.0], [float(x) for x in range(4)])
    assert roc(scores, members).smallest_fpr == 0.25
    assert tpr_at_fpr(scores, members, 0.2) == tpr_at_fpr(scores, members, 0.0) == 0.5


def test_the_public_names_are_here() -> None:
    assert statistics.clopper_pearson(5, 10)[0] == pytest.approx(stats.binomtest(5, 10).proportion_ci().low)
    assert statistics.one_run_epsilon(10, 10, 10, 0.0) > 0


@pytest.mark.parametrize(("members", "nonmembers", "shift"), [(40, 40, 0.3), (200, 60, 1.0), (60, 400, 2.0)])
def test_the_auc_interval_covers(members: int, nonmembers: int, shift: float) -> None:
    rng = np.random.default_rng([members, nonmembers])
    truth = float(stats.norm.cdf(shift / math.sqrt(2)))
    labels = np.repeat([1, 0], [members, nonmembers])
    covered = 0
    for _ in range(AUDITS):
        scores = rng.normal(0, 1, members + nonmembers) + shift * labels
        found = auc_interval(scores, labels)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / AUDITS <= 0.975


def test_the_auc_interval_of_perfect_scores_is_not_a_point() -> None:
    found = auc_interval(*both([3.0, 4.0, 5.0], [0.0, 1.0, 2.0]))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low < 0.4  # three of three prove little
    assert auc_interval(*both([0.0, 1.0, 2.0], [3.0, 4.0, 5.0])).high > 0.6


@pytest.mark.parametrize("fpr", [0.01, 0.1])
def test_the_tpr_interval_covers_the_rate_of_its_threshold(fpr: float) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([1, 0], [150, 200])
    tpr_covered = fpr_covered = 0
    for _ in range(AUDITS):
        scores = rng.normal(0, 1, 350) + labels
        outside = np.sort(scores[150:])[::-1]
        threshold = outside[math.floor(fpr * 200)]
        found = tpr_interval(scores, labels, fpr)
        tpr_covered += found.low <= stats.norm.sf(threshold - 1) <= found.high
        of_threshold = fpr_interval(scores, labels, fpr)
        fpr_covered += of_threshold.low <= stats.norm.sf(threshold) <= of_threshold.high
    assert tpr_covered / AUDITS >= 0.95 - 0.014  # two standard errors below; Clopper-Pearson is conservative
    assert fpr_covered / AUDITS >= 0.95 - 0.014


def test_scores_that_know_nothing_seldom_look_like_a_leak() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([1, 0], [1000, 1000])
    alarms = 0
    for _ in range(AUDITS // 4):
        found = tpr_interval(rng.normal(0, 1, 2000), labels, 0.01)
        alarms += found.low > 0.1  # the verdict LEAKS: the lower end above ten times the rate
    assert alarms == 0


def test_exposure_is_the_log_of_the_rank_and_chance_without_training() -> None:
    assert exposure(0.1, np.arange(1, 1024)) == 10
    assert exposure(9.0, [1.0, 2.0, 3.0]) == 0
    assert exposure(1.0, [1.0]) == pytest.approx(1 - math.log2(1.5))  # a tie is half a rank
    rng = np.random.default_rng(3)
    found = [exposure(x[0], x[1:]) for x in rng.normal(0, 1, (AUDITS, 512))]
    assert np.mean(found) == pytest.approx(math.log2(math.e), abs=0.15)


def test_the_bootstrap_interval_covers() -> None:
    rng = np.random.default_rng(4)
    found = [bootstrap_interval(rng.normal(3, 1, 30), rng, repeats=400) for _ in range(AUDITS)]
    assert np.mean([f.low <= 3 <= f.high for f in found]) >= 0.91


def test_balanced_accuracy_is_half_for_equal_scores_and_one_for_perfect() -> None:
    assert balanced_accuracy(*both([1.0, 1.0], [1.0, 1.0])) == 0.5
    assert balanced_accuracy(*both([2.0], [1.0])) == 1.0


def test_an_interval_reads_well() -> None:
    assert str(Interval(0.5, 0.25, 0.75, 0.95)) == "0.500 (0.250 to 0.750)"


@pytest.mark.parametrize(
    ("scores", "members", "said"),
    [
        ([1.0], [1, 0], "one membership per score"),
        ([1.0, 2.0], [1, 1], "2 members and 0 non-members"),
        ([1.0, float("nan")], [1, 0], "1 of 2 scores"),
        ([1.0, 2.0], [1, 2], "0 and 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores: list[float], members: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        auc(scores, members)


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="lies in"):
        tpr_at_fpr([1.0, 0.0], [1, 0], 1.5)
    with pytest.raises(ValueError, match="strictly between"):
        auc_interval([1.0, 0.0], [1, 0], 1.0)
    with pytest.raises(ValueError, match="at least one reference"):
        exposure(1.0, [])
    with pytest.raises(ValueError, match="at least 2 values"):
        bootstrap_interval([1.0], np.random.default_rng(0))
