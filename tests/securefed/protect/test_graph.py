"""The graph is k-regular and everybody's; its numbers keep the two probabilities that they promise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from securefed.errors import ProtocolError
from securefed.protect.graph import leak_chance, neighbourhood, regular_graph, stuck_chance

TABLE = {
    64: (16, 18, 24, 34),
    100: (18, 22, 30, 40),
    500: (30, 40, 58, 88),
    1000: (34, 44, 66, 100),
}
"""k for gamma = .05, .1, .2, .33 at 10 % drops: the smallest of another program that searched the same bounds,
but for two rows (500 and 1000 at .2; 56 and 64 there): that program forgot that a client that is gone no longer
holds a share of its own secret."""


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
    gone_owner = stats.hypergeom(n - 1, gone - 1, found.k).sf(found.k - found.threshold)
    assert (n - gone) * stuck + gone * gone_owner <= 2.0**-20 * (1 + 1e-6)
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


RING = regular_graph(range(10), 4, b"a graph to count on")


def _stuck(graph: Mapping[int, tuple[int, ...]], threshold: int, gone: set[int]) -> bool:
    """Whether some secret, of a survivor or of a client that is gone, keeps too few living holders."""
    return any(len({owner, *graph[owner]} - gone) < threshold for owner in graph)


@pytest.mark.parametrize(("threshold", "gone"), [(3, 3), (4, 2), (4, 3), (5, 1)])
def test_the_chance_of_a_stuck_round_is_bounded_as_every_set_of_drops_shows(
    threshold: int, gone: int
) -> None:
    sets = [set(s) for s in combinations(range(10), gone)]
    share = sum(_stuck(RING, threshold, s) for s in sets) / len(sets)
    assert 0 < share <= stuck_chance(10, 4, threshold, gone)


def test_a_secret_whose_owner_is_gone_counts_too() -> None:
    """With one drop and all five holders needed, every set of drops is stuck: by the gone client's own secret alone."""
    assert all(_stuck({c: RING[c]}, 5, {c}) for c in RING)
    assert stuck_chance(10, 4, 5, 1) >= 1


@pytest.mark.parametrize(("threshold", "corrupt"), [(2, 2), (3, 3), (3, 4), (4, 4)])
def test_the_chance_of_an_opened_secret_is_bounded_as_every_set_of_colluders_shows(
    threshold: int, corrupt: int
) -> None:
    sets = [set(s) for s in combinations(range(10), corrupt)]
    caught = sum(any(len(set(RING[c]) & s) >= threshold for c in RING if c not in s) for s in sets)
    assert 0 < caught / len(sets) <= leak_chance(10, 4, threshold, corrupt, 0)


def _reached(graph: Mapping[int, tuple[int, ...]], start: int, inside: set[int]) -> set[int]:
    seen, todo = {start}, [start]
    while todo:
        for other in graph[todo.pop()]:
            if other in inside and other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


@pytest.mark.parametrize(("chosen_drops", "falls_apart"), [(False, True), (True, False)])
def test_a_server_that_chooses_the_drops_can_cut_an_arc_off_only_below_the_higher_threshold(
    chosen_drops: bool, falls_apart: bool
) -> None:
    """It silences the honest of two runs of k/2 places around an arc; colluders stand where it helps most."""
    n, gamma = 200, 0.1
    found = neighbourhood(n, gamma, chosen_drops=chosen_drops)
    graph = regular_graph(range(n), found.k, b"any seed of this graph")
    half, circle = found.k // 2, _around(graph)
    runs = [circle[:half], circle[n // 2 : n // 2 + half]]
    helpers = 4  # colluders in each run, who stay; at gamma = 0.1 chance puts 1.6 into a run of 16 places
    colluders = {c for run in runs for c in run[:helpers]}
    silenced = {c for run in runs for c in run[helpers:]}
    alive = set(graph) - silenced
    # every client that looks isolated has its share refused, so the server must count it out as well
    while weak := {c for c in alive - colluders if len({c, *graph[c]} & alive) < found.threshold}:
        alive -= weak
    honest = alive - colluders
    apart = bool(honest) and len(_reached(graph, min(honest), honest)) < len(honest)
    assert apart is falls_apart


def _around(graph: Mapping[int, tuple[int, ...]]) -> list[int]:
    """The clients in the order of the circle: next to each stands whoever shares most neighbours with it."""
    circle = [min(graph)]
    while len(circle) < len(graph):
        last = {circle[-1], *graph[circle[-1]]}
        left = [c for c in graph[circle[-1]] if c not in circle]
        circle.append(max(left, key=lambda c: len(last & {c, *graph[c]})))
    return circle
