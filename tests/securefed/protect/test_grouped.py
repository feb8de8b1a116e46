"""Masked sums inside fixed groups: who is in which, what ends a group, and what a rule gets."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from securefed.aggregation import aggregate, row_ids, row_weights
from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange
from securefed.errors import ProtocolError
from securefed.protect.drawing import (
    NONCE,
    commitment,
    cut,
    group_sizes,
    joint_seed,
    thin_group_probability,
)
from securefed.protect.group_sessions import part_of, untagged
from securefed.protect.grouped import Grouped, OpenGrouped
from securefed.types import Collected, RoundContext, RoundParameters, Update
from securefed_defenses import AGGREGATORS
from tests.securefed.protect.cast import LEVELS, D, base, exact_sum, update

CONFIG = Grouped(size=3, value_range=1.0, max_weight=1.0, levels=LEVELS)
ROSTER = bytes(range(32))


def opening(n: int = 9, config: Grouped = CONFIG) -> OpenGrouped:
    return config.open("run", range(n), SystemEntropy())


def collect(opened: OpenGrouped, n: int = 9, gone: tuple[int, ...] = ()) -> Collected:
    updates = {k: update(k) for k in range(n) if k not in gone}
    return exchange(opened, base(n), updates, SystemEntropy())


# ------------------------------------------------------------------------------------------ the sums


def test_the_server_learns_the_sum_of_each_group_exactly_and_a_rule_gets_their_means() -> None:
    opened = opening()
    collected = collect(opened)
    assert collected.updates is None
    assert collected.groups is not None
    assert [g.members for g in collected.groups.values()] == list(opened.groups)
    for group in collected.groups.values():
        np.testing.assert_array_equal(group.total, exact_sum(group.members))
    np.testing.assert_array_equal(collected.total, exact_sum(range(9)))
    context = RoundContext(3, row_ids(collected), row_weights(collected, public=True), "x")
    assert (context.clients, context.weights) == ((0, 1, 2), (3.0, 3.0, 3.0))
    found, _ = aggregate(AGGREGATORS["median"](), collected, context, None)
    means = torch.tensor(np.array([exact_sum(g) / 3 for g in opened.groups]))
    np.testing.assert_allclose(found, means.median(dim=0).values.numpy(), atol=1e-6)


def test_what_a_group_claims_to_weigh_counts_only_where_weights_are_public() -> None:
    collected = collect(opening())
    assert collected.groups is not None
    heavy = replace(collected.groups[0], weight=1e6)
    claimed = replace(collected, groups={**collected.groups, 0: heavy})
    assert row_weights(claimed, public=False) == (3.0, 3.0, 3.0)


def test_a_group_in_which_anybody_drops_out_gives_no_sum_and_the_others_do() -> None:
    opened = opening()
    gone = opened.groups[1][0]
    collected = collect(opened, gone=(gone,))
    assert collected.groups is not None
    assert tuple(collected.groups) == (0, 2)
    assert set(collected.survivors) == set(opened.groups[0]) | set(opened.groups[2])
    assert set(collected.refused) == set(opened.groups[1])
    assert all("group 1 has no sum" in why for why in collected.refused.values())
    np.testing.assert_array_equal(collected.total, exact_sum(collected.survivors))


def test_a_round_in_which_no_group_is_whole_has_no_result_and_says_why() -> None:
    opened = opening()
    with pytest.raises(ProtocolError, match="no group has a sum: group 0"):
        collect(opened, gone=tuple(group[0] for group in opened.groups))


def test_clients_refuse_a_server_that_would_do_with_a_part_of_their_group() -> None:
    """The floor is the client's: a server that proposes fewer survivors is refused by all members."""
    opened = opening()
    careless = replace(
        opened, config=replace(CONFIG, size=4, whole_groups=False), groups=cut(range(9), 4, ROSTER)
    )
    honest = replace(careless, masking=replace(opened.masking, config=replace(CONFIG, size=4)))
    with pytest.raises(ProtocolError, match="min_survivors=3 is below this client's floor of"):
        collect(honest)


def test_a_message_for_another_group_is_refused_before_masking_sees_it() -> None:
    opened = opening()
    server, k = opened.server(base(9)), opened.groups[0][0]
    messages = {m.receiver: m.payload for m in server.start().send}
    client = opened.client(base(9), k, SystemEntropy())
    with pytest.raises(ProtocolError, match="not a version 1 message of group 0"):
        client.receive(messages[opened.groups[1][0]])
    with pytest.raises(ProtocolError):
        untagged(0, b"")
    wrong = opened.client(base(9), opened.groups[1][0], SystemEntropy())
    wrong.submit(update(opened.groups[1][0]))
    payload = wrong.receive(messages[opened.groups[1][0]]).send[0].payload
    assert server.receive(k, payload).send == ()


def test_a_cohort_that_breaks_the_groups_is_refused() -> None:
    opened = opening()
    with pytest.raises(ProtocolError, match="a cohort of 8 breaks groups that are fixed for all 9"):
        opened.server(base(8))
    weights = tuple(float(k + 1) for k in range(9))
    parts = part_of(replace(base(9), weights=weights), opened.groups)
    assert [p.weights for p in parts] == [tuple(k + 1.0 for k in group) for group in opened.groups]


# ---------------------------------------------------------------------------------------- the drawing


def test_two_runs_of_the_same_clients_have_other_groups_and_one_run_keeps_its_own() -> None:
    assert len({opening(30).groups for _ in range(3)}) == 3
    opened = opening(30)
    other = opening(30)
    assert other.with_groups(opened.groups).groups == opened.groups
    with pytest.raises(ProtocolError, match="not of this job's clients"):
        other.with_groups(opening(9).groups)


def test_one_honest_nonce_changes_the_groups_and_an_unopened_commitment_ends_the_ceremony() -> None:
    nonces = {k: bytes([k]) * NONCE for k in range(12)}
    promised = {k: commitment(v, k, "run", ROSTER) for k, v in nonces.items()}
    seed = joint_seed("run", ROSTER, promised, nonces)
    fresh = {**nonces, 7: b"\xff" * NONCE}
    other = joint_seed("run", ROSTER, {**promised, 7: commitment(fresh[7], 7, "run", ROSTER)}, fresh)
    assert cut(range(12), 3, seed) != cut(range(12), 3, other)
    for wrong in (fresh, {k: v for k, v in nonces.items() if k != 7}, {**nonces, 7: b""}):
        with pytest.raises(ProtocolError, match="client 7 did not open its commitment"):
            joint_seed("run", ROSTER, promised, wrong)
    with pytest.raises(ProtocolError):
        joint_seed("another name, chosen later", ROSTER, promised, nonces)


def test_every_client_is_in_one_group_of_at_least_the_size() -> None:
    for n, size in itertools.product(range(6, 40), (3, 4, 5)):
        if n < 2 * size:
            with pytest.raises(ProtocolError, match="make no two groups"):
                group_sizes(n, size)
            continue
        groups = cut(range(n), size, ROSTER)
        assert sorted(k for g in groups for k in g) == list(range(n))
        assert tuple(len(g) for g in groups) == group_sizes(n, size)
        assert min(len(g) for g in groups) >= size


def test_a_cut_is_uniform_over_pairs() -> None:
    """Two clients share a group of 3 among 9 with probability 2/8; 2000 cuts, five standard deviations."""
    together = sum(
        any({0, 1} <= set(g) for g in cut(range(9), 3, i.to_bytes(32, "little"))) for i in range(2000)
    )
    assert abs(together / 2000 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2000)


def test_the_probability_of_a_thin_group_is_that_of_all_placements_counted() -> None:
    sizes = (4, 3, 3)
    group_of = [j for j, g in enumerate(sizes) for _ in range(g)]
    for corrupt, honest in itertools.product((0, 1, 2, 3, 5), (2, 3)):
        placements = list(itertools.combinations(range(10), corrupt))
        thin = sum(
            any(g - sum(group_of[c] == j for c in placed) < honest for j, g in enumerate(sizes))
            for placed in placements
        )
        found = thin_group_probability(sizes, corrupt, honest)
        assert found == pytest.approx(thin / len(placements), abs=1e-12)


def test_the_facts_state_the_anonymity_set_the_liars_the_thin_groups_and_the_rank() -> None:
    facts = Grouped(size=5).facts_of(52)
    assert facts["Anonymity set"].startswith("5 clients")
    assert facts["Liars tolerated"].startswith("at most 4, each of whom may poison one of the 10 groups")
    expected = thin_group_probability(group_sizes(52, 5), 5, 3)
    assert 0 < expected < 1
    assert f"{expected:.3g}" in facts["Thin groups"]
    assert facts["Rank of all partitions"] == "10 equations in 52 updates, however many rounds"
    assert "every set of drops" in Grouped(whole_groups=False).facts_of(52)["Rank of all partitions"]


@pytest.mark.parametrize(
    ("options", "word"), [({"size": 2}, "size"), ({"size": 4, "min_cohort": 5}, "min_cohort")]
)
def test_groups_that_are_too_small_are_refused(options: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Grouped(**options)  # type: ignore[arg-type]  # options of one type


def test_a_liar_moves_its_groups_mean_and_the_median_of_groups_holds() -> None:
    opened = opening()
    liar = opened.groups[2][0]
    updates = {k: Update(k, 3, np.full(D, -1.0 if k == liar else 0.25, np.float32)) for k in range(9)}
    parameters: RoundParameters = base(9)
    collected = exchange(opened, parameters, updates, SystemEntropy())
    context = RoundContext(3, row_ids(collected), row_weights(collected, public=True), "x")
    found, _ = aggregate(AGGREGATORS["median"](), collected, context, None)
    np.testing.assert_allclose(found, 0.25, atol=1e-6)
    assert (collected.total / collected.weight < 0.2).all()
