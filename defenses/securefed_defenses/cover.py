"""The n - f rows with the smallest diameter, exactly and without listing subsets.

Rows further apart than t are in conflict. A set of n - f rows of diameter <= t exists if and only if f
rows can be taken away so that no conflict is left: a vertex cover of size f. A search tree answers that,
exponential in f only (either the row with the most conflicts goes, or all its partners go) and cut where
more conflicts are left than the rows left to take can end. A binary search over the distances that occur
finds the diameter; the same search below it settles which of several optima is returned.

Sets of rows are bits of an integer; a graph is a list with each row's partners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Distances: TypeAlias = Sequence[Sequence[float]]
Graph: TypeAlias = list[int]
Pair: TypeAlias = tuple[int, int]


def tightest_subset(distances: Distances, size: int) -> list[int]:
    """The subset of `size` rows with the smallest largest distance; ties by the second largest, and so on.

    Args:
        distances: symmetric (n, n); any increasing function of the distance. size: 1 ... n.

    Returns:
        Indices, ascending. Only exactly equal distances leave a choice, which is then arbitrary.
    """
    n, f = len(distances), len(distances) - size
    order = sorted(((i, j) for i in range(n) for j in range(i)), key=lambda p: -distances[p[0]][p[1]])
    kept, agreed, start = 0, set[Pair](), 0
    while True:
        end = _most_conflicts(order, start, agreed, kept, n, f)
        graph = _graph(order[:end], agreed, n)
        cover = cover_of(graph, kept, f)
        assert cover is not None  # the search ended on a feasible prefix
        if end == len(order) or _is_only_one(graph, cover, kept, f):
            return [v for v in range(n) if not cover >> v & 1][:size]
        pair = order[end]  # it cannot be in conflict as well, so every optimum holds both its rows
        agreed.add(pair)
        kept |= 1 << pair[0] | 1 << pair[1]
        start = end + 1


def _most_conflicts(order: Sequence[Pair], start: int, agreed: set[Pair], kept: int, n: int, f: int) -> int:
    """The largest end so that the pairs before it, the agreed ones left out, can all be torn apart."""
    low, high = start, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if cover_of(_graph(order[:middle], agreed, n), kept, f) is None:
            high = middle - 1
        else:
            low = middle
    return low


def _graph(pairs: Sequence[Pair], agreed: set[Pair], n: int) -> Graph:
    graph = [0] * n
    for i, j in pairs:
        if (i, j) not in agreed:
            graph[i] |= 1 << j
            graph[j] |= 1 << i
    return graph


def _is_only_one(graph: Graph, cover: int, kept: int, f: int) -> bool:
    """Whether every cover of size f is this one: none of its rows could stay."""
    if cover.bit_count() < f:
        return False
    return all(cover_of(graph, kept | 1 << v, f) is None for v in _bits(cover))


def cover_of(graph: Graph, kept: int, budget: int) -> int | None:
    """At most `budget` rows, none of them kept, that touch every conflict; None where there are none."""
    gone = 0
    for v in _bits(kept):
        gone |= graph[v]
    if gone & kept or gone.bit_count() > budget:
        return None
    rest = _search(graph, (1 << len(graph)) - 1 & ~gone, budget - gone.bit_count())
    return None if rest is None else gone | rest


def _search(graph: Graph, alive: int, budget: int) -> int | None:
    """A cover of the conflicts among the rows alive, in at most `budget` rows."""
    taken = 0
    while True:
        degrees = {v: d for v in _bits(alive) if (d := (graph[v] & alive).bit_count())}
        if not degrees:
            return taken
        top = max(degrees.values())
        if budget <= 0 or sum(degrees.values()) > 2 * budget * top:
            return None
        leaf = next((v for v, d in degrees.items() if d == 1), None)
        if leaf is None:
            break
        partner = graph[leaf] & alive  # taking the partner of a leaf is never worse than taking the leaf
        taken, alive, budget = taken | partner, alive & ~partner, budget - 1
    v = max(degrees, key=degrees.__getitem__)
    with_v = _search(graph, alive & ~(1 << v), budget - 1)
    if with_v is not None:
        return taken | 1 << v | with_v
    partners = graph[v] & alive
    if partners.bit_count() > budget:
        return None
    without_v = _search(graph, alive & ~partners & ~(1 << v), budget - partners.bit_count())
    return None if without_v is None else taken | partners | without_v


def _bits(mask: int) -> list[int]:
    """The indices of a set."""
    out = []
    while mask:
        low = mask & -mask
        out.append(low.bit_length() - 1)
        mask ^= low
    return out
