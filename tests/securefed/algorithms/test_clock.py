"""The simulated clock: a function of the public seed, with the spread and the stragglers that were asked for."""

from __future__ import annotations

import numpy as np

from securefed.algorithms.clock import Clock, slowness
from securefed.config import ClockConfig


def test_the_same_seed_gives_the_same_times_and_another_seed_others() -> None:
    config = ClockConfig(seconds=10.0)
    a, b, c = (Clock(config, seed, 5) for seed in (0, 0, 1))
    assert [a.duration(k, 3) for k in range(5)] == [b.duration(k, 3) for k in range(5)]
    assert a.duration(2, 0) != c.duration(2, 0)
    assert a.duration(2, 0) != a.duration(2, 1)


def test_without_spread_stragglers_and_jitter_every_turn_takes_the_same_time() -> None:
    clock = Clock(ClockConfig(seconds=7.0, spread=0.0, jitter=0.0), 0, 6)
    assert {clock.duration(k, t) for k in range(6) for t in range(4)} == {7.0}


def test_stragglers_are_as_many_and_as_slow_as_asked() -> None:
    clock = Clock(ClockConfig(seconds=1.0, spread=0.0, jitter=0.0, stragglers=0.25, slowdown=8.0), 3, 20)
    assert sorted(slowness(clock)) == [1.0] * 15 + [8.0] * 5


def test_the_median_client_takes_the_median_time_and_logarithms_spread_as_told() -> None:
    """2,000 clients: the log's mean has deviation 0.011, its deviation 0.008; bounds lie at five of each."""
    logs = np.log(slowness(Clock(ClockConfig(seconds=1.0, spread=0.5), 1, 2000)))
    assert abs(logs.mean()) < 0.056
    assert abs(logs.std() - 0.5) < 0.04


def test_a_synchronous_round_waits_for_its_slowest() -> None:
    clock = Clock(ClockConfig(seconds=1.0), 0, 4)
    assert clock.round_seconds((0, 2, 3), 5) == max(clock.duration(k, 5) for k in (0, 2, 3))
    assert clock.round_seconds((), 5) == 0.0
