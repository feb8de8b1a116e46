"""Intervals: against tables, against simulation, and that too few seeds are said."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from securefed_benchmarks.bench.estimates import mean_interval, paired, quantile, worst


def test_quantiles_are_those_of_the_printed_table() -> None:
    for degrees, wanted in ((1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)):
        assert quantile(degrees) == pytest.approx(wanted, abs=5e-4)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for values in rng.normal(3.0, 2.0, (2000, 5)):
        e = mean_interval(values.tolist())
        hits += e.low <= 3.0 <= e.high
    assert 0.93 < hits / 2000 < 0.97  # 0.95 with a deviation of 0.005: four of them


def test_a_normal_quantile_in_its_place_would_be_noticed() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for values in rng.normal(3.0, 2.0, (2000, 5)):
        e = mean_interval(values.tolist())
        half = e.half * 1.96 / quantile(4)
        hits += abs(e.mean - 3.0) <= half
    assert hits / 2000 < 0.92


def test_one_seed_gives_no_interval_and_few_seeds_are_said() -> None:
    one = mean_interval([0.5])
    assert (one.how, one.half, one.few) == ("none", math.inf, "one seed: no interval")
    assert mean_interval([0.5, 0.6]).few == "only 2 seeds"
    assert mean_interval([0.5] * 5).few == ""


def test_pairing_takes_away_what_both_share() -> None:
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 10, 8)
    a = {s: luck[s] + 1 + rng.normal(0, 0.01) for s in range(8)}
    b = {s: luck[s] + rng.normal(0, 0.01) for s in range(9) if s < 8}
    found = paired(a, b)
    assert found.mean == pytest.approx(1, abs=0.02)
    assert found.half < 0.03
    assert mean_interval(list(a.values())).half > 1


def test_only_seeds_that_both_have_are_paired() -> None:
    assert paired({0: 1.0, 1: 2.0, 5: 9.0}, {0: 0.0, 1: 1.0, 7: 100.0}).seeds == 2
    with pytest.raises(ValueError, match="no seed in common"):
        paired({0: 1.0}, {1: 1.0})


def test_a_ratio_is_taken_seed_by_seed() -> None:
    assert paired({0: 2.0, 1: 20.0}, {0: 1.0, 1: 10.0}, "ratio").mean == 2.0


def test_the_worst_case_is_the_attack_with_the_lowest_mean_not_the_unluckiest_seed() -> None:
    attacks = {"strong": {0: 0.5, 1: 0.52, 2: 0.48}, "lucky once": {0: 0.1, 1: 0.9, 2: 0.9}}
    name, found = worst(attacks)
    assert name == "strong"
    assert found.mean == pytest.approx(0.5)
    assert found.how == "t"
    assert worst(attacks, lowest=False)[0] == "lucky once"


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_worst_case_is_never_above_any_attacks_mean(table: list[list[float]]) -> None:
    attacks = {str(k): dict(enumerate(values)) for k, values in enumerate(table)}
    _, found = worst(attacks)
    assert all(found.mean <= sum(v) / 4 + 1e-12 for v in table)
    assert found.low <= found.mean <= found.high


def covering(interval: Callable[[NDArray[np.float64]], tuple[float, float]], k: int, apart: float) -> float:
    """How often an interval of three seeds holds the worst true mean, zero, of k attacks."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(1000):
        luck = 0.7 * rng.normal(size=(1, 3))
        low, high = interval(apart * np.arange(k)[:, None] + luck + 0.7 * rng.normal(size=(k, 3)))
        hits += low <= 0 <= high
    return hits / 1000


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("apart", [0.0, 3.0])
@pytest.mark.parametrize("lowest", [True, False])
def test_the_worst_cases_interval_covers_with_three_seeds(k: int, apart: float, lowest: bool) -> None:
    def ours(table: NDArray[np.float64]) -> tuple[float, float]:
        sign = 1 if lowest else -1
        attacks = {str(i): dict(enumerate(sign * row)) for i, row in enumerate(table)}
        found = worst(attacks, lowest=lowest)[1]
        return (found.low, found.high) if lowest else (-found.high, -found.low)

    assert covering(ours, k, apart) > 0.93  # 0.95 with a deviation of 0.007: three of them


def test_a_bootstrap_of_the_lowest_mean_would_not() -> None:
    rng = np.random.default_rng(4)

    def bootstrap(table: NDArray[np.float64]) -> tuple[float, float]:
        lowest = table[:, rng.integers(0, 3, (200, 3))].mean(2).min(0)
        low, high = np.quantile(lowest, [0.025, 0.975])
        return float(low), float(high)

    assert covering(bootstrap, 5, 0.0) < 0.6


def test_a_ratio_to_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="to zero, in seed 1"):
        paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 0.0}, "ratio")
