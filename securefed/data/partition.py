"""Who gets which record where the data itself does not say: iid, Dirichlet label skew, quantity skew.

Every function returns one array of row numbers per client; together they hold every row once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.errors import DataError

Rows = NDArray[np.int64]


def apportion(total: int, shares: Sequence[float] | NDArray[np.float64]) -> Rows:
    """Whole numbers in proportion to `shares` that sum to `total` (largest remainders; ties to the first).

    >>> apportion(10, [1, 1, 1]).tolist()
    [4, 3, 3]
    """
    weights = np.asarray(shares, np.float64)
    if weights.sum() <= 0:
        weights = np.ones_like(weights)
    exact = total * weights / weights.sum()
    whole: Rows = np.floor(exact).astype(np.int64)
    rest = total - int(whole.sum())
    whole[np.argsort(-(exact - whole), kind="stable")[:rest]] += 1
    return np.asarray(whole, np.int64)


def cut(rows: Rows, sizes: Rows) -> list[Rows]:
    """Consecutive pieces of these sizes, each in ascending order."""
    return [np.sort(piece) for piece in np.split(rows, np.cumsum(sizes)[:-1])]


def iid(n: int, clients: int, generator: np.random.Generator) -> list[Rows]:
    """A random deal into sizes that differ by at most one."""
    return cut(generator.permutation(n), apportion(n, np.ones(clients)))


def quantity(n: int, clients: int, alpha: float, floor: int, generator: np.random.Generator) -> list[Rows]:
    """A random deal into unequal sizes: the floor for everyone, the rest in Dirichlet(alpha) shares."""
    check_floor(n, clients, floor)
    sizes = floor + apportion(n - clients * floor, generator.dirichlet(np.full(clients, alpha)))
    return cut(generator.permutation(n), sizes)


def dirichlet(
    labels: Rows, classes: int, clients: int, alpha: float, floor: int, generator: np.random.Generator
) -> list[Rows]:
    """Label skew: each class is divided among the clients in Dirichlet(alpha) shares.

    M. Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019,
    section 4; where the usual code draws again until no client is too small, `raise_to_floor` moves
    records, which always ends.
    """
    check_floor(len(labels), clients, floor)
    shares = generator.dirichlet(np.full(clients, alpha), size=classes)
    totals = np.bincount(labels, minlength=classes)
    counts = np.stack([apportion(int(t), s) for t, s in zip(totals, shares, strict=True)])
    return deal_counts(labels, raise_to_floor(counts, shares, floor), generator)


def raise_to_floor(counts: Rows, shares: NDArray[np.float64], floor: int) -> Rows:
    """`counts` (classes, clients) with every client at `floor` or more, by moving single records.

    The receiver takes from the largest client, of the class among that one's in which its own drawn
    share is highest, so that its mix stays as skewed as it was drawn. Class totals do not change.
    """
    counts = counts.copy()
    for client in np.flatnonzero(counts.sum(0) < floor):
        while counts[:, client].sum() < floor:
            donor = int(np.argmax(counts.sum(0)))  # above the floor, for the floors fit in the total
            available = counts[:, donor] > 0
            taken = int(np.argmax(np.where(available, shares[:, client], -1)))
            counts[taken, donor] -= 1
            counts[taken, client] += 1
    return counts


def deal_counts(labels: Rows, counts: Rows, generator: np.random.Generator) -> list[Rows]:
    """Random rows of each class in these counts (classes, clients)."""
    pieces: list[list[Rows]] = [[] for _ in range(counts.shape[1])]
    for label, sizes in enumerate(counts):
        rows = generator.permutation(np.flatnonzero(labels == label))
        for mine, piece in zip(pieces, cut(rows, sizes), strict=True):
            mine.append(piece)
    return [np.sort(np.concatenate(mine)) for mine in pieces]


def same_mix(labels: Rows, counts: Rows, generator: np.random.Generator) -> list[Rows]:
    """Test rows dealt like the training records in `counts` (classes, clients), class by class."""
    totals = np.bincount(labels, minlength=len(counts))
    return deal_counts(
        labels, np.stack([apportion(int(t), c) for t, c in zip(totals, counts, strict=True)]), generator
    )


def check_floor(n: int, clients: int, floor: int) -> None:
    """Raises DataError where n records cannot give each client `floor` of them."""
    if clients * floor > n:
        raise DataError(
            f"{clients} clients with at least {floor} records each need {clients * floor}, the training set has {n}; "
            "lower data.clients or data.min_examples, or raise data.limit"
        )
