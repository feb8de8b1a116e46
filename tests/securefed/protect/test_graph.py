"""The graph is k-regular and everybody's; its numbers keep the two probabilities that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from securefed.errors import ProtocolError
from securefed.protect.graph import neighbourhood, regular_graph

TABLE = {
    64: (16, 18, 24, 34),
    100: (18, 22, 30, 40),
    500: (30, 40, 56, 88),
    1000: (34, 44, 64, 100),
}
"""k for gamma = .05, .1, .2, .33 at 10 % drops: the smallest of another program that searched the same bounds."""


@pytest.mark.parametrize("n", TABLE)
def test_the_rule_gives_the_table(n: int) -> None:
    assert tuple(neighbourhood(n, gamma).k for gamma in (0.05, 0.1, 0.2, 0.33)) == TABLE[n]


@pytest.mark.parametrize("n", [40, 100, 1000])
@pytest.mark.parametrize("gamma", [0.05, 0.2])
def test_the_promised_probabilities_are_kept_by_an_independent_count(n: int, gamma: float) -> None:
    found = neighbourhood(n, gamma)
    corrupt, gone = math.floor(gamma * n), math.floor(0.1 * n)
    caught = stats.hypergeom(n - 1, corrupt, found.k).sf(found.threshold - 1)
    assert n * caught <= 2.0**-40 * (1 + 1e-6)
    stuck = stats.hypergeom(n - 1, gone, found.k).sf(found.k + 1 - found.threshold)
    assert n * stuck <= 2.0**-20 * (1 + 1e-6)
    weaker = stats.hypergeom(n - 1, corrupt, found.k).sf(found.threshold - 2)
    assert n * weaker > 2.0**-40, "the threshold is the smallest"


@pytest.mark.parametrize("n", [2, 3, 16, 32])
def test_small_cohorts_are_complete_and_their_threshold_is_a_majority(n: int) -> None:
    found = neighbourhood(n, 0.1)
    assert found.k == n - 1
    assert found.threshold > n / 2


@settings(max_examples=50)
@given(n=st.integers(2, 300), gamma=st.floats(0, 0.4))
def test_two_quorums_always_share_an_honest_client(n: int, gamma: float) -> None:
    try:
        found = neighbourhood(n, gamma)
    except ProtocolError:
        return
    corrupt = math.floor(gamma * n + 1e-9)
    assert 2 * found.quorum - n > corrupt
    assert found.threshold > 0
    assert found.threshold <= found.k + 1


@settings(max_examples=40)
@given(n=st.integers(4, 60), data=st.data(), seed=st.binary(max_size=8))
def test_everybody_has_k_neighbours_and_neighbours_are_mutual(
    n: int, data: st.DataObject, seed: bytes
) -> None:
    k = 2 * data.draw(st.integers(1, (n - 2) // 2))
    clients = data.draw(st.lists(st.integers(0, 10**6), min_size=n, max_size=n, unique=True))
    graph = regular_graph(clients, k, seed)
    assert set(graph) == set(clients)
    for client, others in graph.items():
        assert len(set(others)) == k
        assert client not in others
        assert all(client in graph[other] for other in others)
    assert regular_graph(list(reversed(clients)), k, seed) == graph, "the same for all who know the seed"


def test_the_complete_graph_needs_no_seed() -> None:
    assert (
        regular_graph([3, 1, 2], 2, b"a")
        == {3: (1, 2), 1: (2, 3), 2: (1, 3)}
        == regular_graph([3, 1, 2], 2, b"b")
    )


def test_graphs_of_different_seeds_are_different_and_even() -> None:
    """Each pair is joined about equally often: chi-square over 2,000 seeds."""
    n, k, seeds = 12, 4, 2000
    joined = np.zeros((n, n))
    for i in range(seeds):
        for client, others in regular_graph(range(n), k, i.to_bytes(4, "little")).items():
            joined[client, list(others)] += 1
    pairs = joined[np.triu_indices(n, 1)]
    expected = seeds * k / (n - 1)
    statistic = ((pairs - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2(len(pairs) - 1).ppf(0.9999)
    fixed = np.zeros((n, n))
    for client, others in regular_graph(range(n), k, b"always").items():
        fixed[client, list(others)] += seeds
    biased = fixed[np.triu_indices(n, 1)]
    assert ((biased - expected) ** 2 / expected).sum() > 100 * statistic, (
        "a seed that never changes is noticed"
    )


@pytest.mark.parametrize(
    ("n", "k", "said"), [(10, 3, "even k"), (10, 0, "even k"), (10, 10, "even k"), (3, 1, "even k")]
)
def test_a_graph_that_cannot_be_is_refused(n: int, k: int, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        regular_graph(range(n), k, b"")


def test_what_no_rule_can_give_is_refused() -> None:
    with pytest.raises(ProtocolError, match="listed twice"):
        regular_graph([1, 1, 2], 2, b"")
    with pytest.raises(ProtocolError, match="needs n >= 2"):
        neighbourhood(1, 0.1)
    with pytest.raises(ProtocolError, match="lower gamma or drop"):
        neighbourhood(10, 0.4, 0.6)
