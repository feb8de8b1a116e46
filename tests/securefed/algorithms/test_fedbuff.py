"""FedBuff's schedule: what a buffer may hold, from which version, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.algorithms.clock import Clock
from securefed.algorithms.fedbuff import FedBuff, timeline, turns_of
from securefed.config import ClockConfig, load_config
from securefed.config.check import check_against_shards
from securefed.errors import ConfigError

JOB: dict[str, Any] = {
    "rounds": 5,
    "clients_per_round": 3,
    "algorithm": {"name": "fedbuff", "concurrency": 4},
    "data": {"name": "digits", "clients": 6, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 2},
    "clock": {"seconds": 10.0},
}


@settings(max_examples=60, deadline=None)
@given(
    clients=st.integers(1, 12),
    k=st.integers(1, 12),
    concurrency=st.integers(1, 12),
    bound=st.integers(0, 4),
    slowdown=st.sampled_from([1.0, 5.0, 50.0]),
    seed=st.integers(0, 50),
)
def test_every_buffer_is_full_of_different_clients_whose_work_fits_the_clock(
    clients: int, k: int, concurrency: int, bound: int, slowdown: float, seed: int
) -> None:
    k, concurrency = min(k, clients), min(concurrency, clients)
    algorithm = FedBuff(concurrency=concurrency, max_staleness=bound)
    clock = Clock(ClockConfig(seconds=1.0, stragglers=0.3, slowdown=slowdown), seed, clients)
    buffers = timeline(algorithm, clock, k, 8)
    assert len(buffers) == 8
    ends = [0.0, *(b.seconds for b in buffers)]
    assert ends == sorted(ends)
    turns = [0] * clients
    for version, buffer in enumerate(buffers):
        assert len({a.client for a in buffer.taken}) == len(buffer.taken) == k
        assert buffer.seconds == buffer.taken[-1].seconds
        assert all(0 <= version - a.version <= bound for a in buffer.taken)
        assert all(version - a.version > bound for a in buffer.late)
        for arrival in sorted((*buffer.taken, *buffer.late), key=lambda a: a.seconds):
            worked = clock.duration(arrival.client, turns[arrival.client])
            turns[arrival.client] += 1
            began = arrival.seconds - worked  # it held the version that was the newest when it began
            assert ends[arrival.version] - 1e-6 <= began
            assert (
                began <= (ends[arrival.version + 1] if arrival.version < version else buffer.seconds) + 1e-6
            )


def test_with_everybody_at_work_and_a_buffer_of_all_it_is_synchronous() -> None:
    clock = Clock(ClockConfig(seconds=1.0, stragglers=0.5), 0, 4)
    buffers = timeline(FedBuff(concurrency=4), clock, 4, 5)
    assert all({a.client for a in b.taken} == {0, 1, 2, 3} for b in buffers)
    assert all(a.version == r for r, b in enumerate(buffers) for a in b.taken)
    synchronous = 0.0
    for round, buffer in enumerate(buffers):
        synchronous += clock.round_seconds(range(4), round)
        assert buffer.seconds == pytest.approx(synchronous)


def test_stragglers_delay_buffers_far_less_than_rounds() -> None:
    clock = Clock(ClockConfig(seconds=1.0, spread=0.0, jitter=0.0, stragglers=0.1, slowdown=20.0), 0, 20)
    buffers = timeline(FedBuff(concurrency=20), clock, 5, 40)
    assert buffers[-1].seconds < 0.2 * sum(clock.round_seconds(range(20), r) for r in range(40)) / 4


def test_weights_fall_with_staleness_and_never_exceed_one() -> None:
    algorithm = FedBuff(concurrency=1)
    assert [algorithm.weight(s) for s in (0, 3)] == [1.0, 0.5]
    assert FedBuff(concurrency=1, exponent=0.0).weight(9) == 1.0
    assert all(algorithm.weight(s + 1) < algorithm.weight(s) <= 1 for s in range(30))


def test_the_versions_kept_are_those_that_later_buffers_train_from() -> None:
    job = load_config(JOB, {"rounds": 12, "clock.stragglers": 0.4})
    algorithm = FedBuff(concurrency=4)
    for round in range(12):
        later = {a.version for r in range(round + 1, 12) for a in algorithm.buffer(job, 6, r).taken}
        assert algorithm.needed_later(job, 6, round) == {v for v in later if v <= round}


def test_a_turn_that_ends_too_late_counts_as_a_turn() -> None:
    job = load_config(
        JOB, {"rounds": 30, "clock.stragglers": 0.3, "clock.slowdown": 30.0, "algorithm.max_staleness": 2}
    )
    algorithm = FedBuff(concurrency=4, max_staleness=2)
    late = [k for r in range(30) for k in algorithm.late(job, 6, r)]
    assert late
    assert sum(turns_of(algorithm, job, 6).values()) == 30 * 3 + len(late)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"clients_per_round": 7}, "a buffer has a client once: lower clients_per_round"),
        ({"clients_per_round": 0}, "set clients_per_round to how many updates make one step"),
        ({"clock.seconds": 0.0}, "set clock.seconds"),
        ({"algorithm.concurrency": 0}, "set algorithm.concurrency"),
        ({"algorithm.concurrency": 7}, "more than data.clients=6; lower it, or add clients"),
        ({"algorithm.concurrency": 2, "protection": "masking"}, "raise concurrency to 3"),
        ({"algorithm.exponent": -1.0}, "exponent must be 0"),
        ({"algorithm.max_staleness": -1}, "max_staleness must be 0"),
        ({"algorithm.head_rounds": 2}, "no option 'head_rounds'"),
        ({"clock.stragglers": 1.5}, "clock.stragglers is a share"),
        ({"clock.slowdown": 0.5}, "clock.slowdown must be at least 1"),
        ({"clock.jitter": -0.1}, "clock.jitter must be 0"),
        ({"clock.spread": -0.1}, "clock.spread must be 0"),
        ({"clock.seconds": -1.0}, "clock.seconds must be 0"),
        ({"clock.secnds": 1.0}, "did you mean clock.seconds"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_with_the_way_out(
    overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(JOB, overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_concurrency_below_the_buffer_works_where_updates_travel_one_by_one() -> None:
    job = load_config(JOB, {"algorithm.concurrency": 1})
    assert len(FedBuff(concurrency=1).buffer(job, 6, 4).taken) == 3


def test_more_at_work_than_the_data_has_clients_is_refused_when_the_shards_are_known() -> None:
    job = load_config(JOB, {"data.clients": 0})
    with pytest.raises(ConfigError, match="concurrency=4 but only 3 clients have data"):
        check_against_shards(job, [9, 9, 9])
