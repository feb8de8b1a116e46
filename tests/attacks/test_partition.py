"""Groups drawn anew give slowly changing updates away; groups that stay do not. Sums come from the real protocol."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange
from securefed.layout import vector_digest
from securefed.protect.drawing import Groups, cut, partition_rank
from securefed.protect.grouped import Grouped, OpenGrouped
from securefed.types import Collected, GroupSum, RoundParameters, Update
from securefed_attacks.partition import equations, regress

N, D, ROUNDS, DRIFT = 9, 40, 12, 0.05
CONFIG = Grouped(size=3, value_range=8.0, max_weight=1.0)
TRUTH = np.random.default_rng(1).standard_normal((N, D))


def drifting(round: int) -> NDArray[np.float32]:
    """Updates that persist up to a small change a round."""
    change = np.random.default_rng([2, round]).standard_normal((N, D))
    return (TRUTH + DRIFT * change).astype(np.float32)


def collect(opened: OpenGrouped, round: int, present: tuple[int, ...] = tuple(range(N))) -> Collected:
    vectors = drifting(round)
    digest = vector_digest(np.zeros(1, np.float32))
    parameters = RoundParameters("run", round, tuple(range(N)), D, digest, digest, (1.0,) * N)
    updates = {k: Update(k, round, vectors[k]) for k in present}
    return exchange(opened, parameters, updates, SystemEntropy())


def opening(seed: int, config: Grouped = CONFIG) -> OpenGrouped:
    groups = cut(range(N), config.size, bytes([seed]) * 32)  # repeatable; the keys are not
    return config.open("run", range(N), SystemEntropy()).with_groups(groups)


def errors(found: Mapping[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array([np.linalg.norm(found[k] - TRUTH[k]) / np.linalg.norm(TRUTH[k]) for k in range(N)])


def test_groups_drawn_anew_each_round_give_every_client_away() -> None:
    found = regress([collect(opening(round), round) for round in range(ROUNDS)])
    assert (found.rank, found.identified) == (N, tuple(range(N)))
    assert errors(found.updates).max() < 0.25


def test_groups_that_stay_give_the_group_mean_and_no_more_however_long_the_run() -> None:
    opened = opening(0)
    found = regress([collect(opened, round) for round in range(ROUNDS)])
    assert (found.rank, found.identified, found.equations) == (3, (), 3 * ROUNDS)
    assert errors(found.updates).min() > 0.5
    for group in opened.groups:
        same = [found.updates[k] for k in group]
        np.testing.assert_allclose(same, np.broadcast_to(np.mean(same, axis=0), (len(group), D)), atol=1e-9)


def test_a_member_that_drops_out_is_given_away_where_groups_may_be_partial_and_not_where_they_are_whole() -> (
    None
):
    loose = Grouped(size=4, value_range=8.0, max_weight=1.0, whole_groups=False)
    for config, expected in ((loose, True), (Grouped(size=4, value_range=8.0, max_weight=1.0), False)):
        opened = opening(3, config)
        gone = opened.groups[0][0]
        others = tuple(k for k in range(N) if k != gone)
        found = regress([collect(opened, 0), collect(opened, 1, others)])
        assert (gone in found.identified) is expected


def test_the_rank_of_partitions_is_what_the_server_can_solve() -> None:
    one: Groups = ((0, 1, 2), (3, 4, 5))
    other: Groups = ((0, 1, 3), (2, 4, 5))
    assert [partition_rank(p) for p in ([one], [one] * 9, [one, other])] == [2, 2, 3]
    fresh = [cut(range(20), 5, bytes([i]) * 32) for i in range(12)]
    assert [partition_rank(fresh[:r]) for r in (1, 2, 12)] == [4, 7, 20]


def test_without_group_sums_there_is_nothing_to_solve() -> None:
    with pytest.raises(ValueError, match="reveal none"):
        regress([Collected((0,), np.zeros(2), 1.0)])
    assert regress([Collected((0,), np.zeros(2), 1.0, groups={0: GroupSum((0,), np.ones(2), 1.0)})]).rank == 1


def test_member_lists_alone_say_whose_updates_can_be_told_apart() -> None:
    """Groups that stay: m equations for ever. Groups drawn anew: n of them after a few rounds, and everybody is known."""
    opened = opening(0)
    stay = equations([collect(opened, round) for round in range(3)])
    assert (stay.rank, len(stay.matrix), stay.identified) == (3, 9, ())
    moving = equations([collect(opening(round), round) for round in range(ROUNDS)])
    assert (moving.rank, moving.identified) == (N, tuple(range(N)))
