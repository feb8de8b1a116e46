"""What a server learns from sums over groups that change: least squares over the partitions it has seen.

Each group sum is one linear equation in the clients' updates. If updates persist from round to round (slow training,
or the same few records), the equations of different rounds are about the same unknowns: m groups drawn anew in
each round give up to m - 1 new equations a round, and n independent ones give every client's update. Sums of groups that
stay are the same m equations for ever; noise on the updates averages out, the unknowns stay hidden.

Adversary: the server, honest but curious. It needs the sums and the member lists of the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.types import Collected, View

IDENTIFIED = 1e-6
"""How far from 1 the resolution of a client may be that the equations determine."""


@dataclass(frozen=True, eq=False)
class Regression:
    """What the equations say of each client.

    Attributes:
        updates: client -> estimate of weight x update, float64 (d,): the one of least norm that fits best.
        identified: the clients whose unknown the equations determine, ascending.
        rank: independent equations, of n unknowns. equations: group sums seen.
    """

    updates: Mapping[int, NDArray[np.float64]] = field(repr=False)
    identified: tuple[int, ...]
    rank: int
    equations: int


@dataclass(frozen=True)
class Equations:
    """Group sums as linear equations in the clients' updates, without their right sides.

    Attributes:
        matrix: 1 where a client (column) is in a sum (row), float64. clients: of the columns, ascending.
        inverse: its pseudoinverse. identified, rank: as in `Regression`.
    """

    matrix: NDArray[np.float64] = field(repr=False)
    clients: tuple[int, ...]
    inverse: NDArray[np.float64] = field(repr=False)
    identified: tuple[int, ...]
    rank: int


def equations(seen: Sequence[Collected | View]) -> Equations:
    """What the member lists of all rounds alone say about who can be told apart.

    Raises:
        ValueError: no group sums at all.
    """
    sums = [group for collected in seen for group in (collected.groups or {}).values()]
    if not sums:
        raise ValueError("regress needs group sums; the rounds given reveal none")
    clients = tuple(sorted({k for group in sums for k in group.members}))
    matrix = np.array([[float(k in group.members) for k in clients] for group in sums])
    inverse = np.linalg.pinv(matrix)
    resolution = np.diag(inverse @ matrix)  # 1 where the unit vector of a client is in the row space
    known = tuple(k for k, r in zip(clients, resolution, strict=True) if abs(r - 1) < IDENTIFIED)
    return Equations(matrix, clients, inverse, known, int(np.linalg.matrix_rank(matrix)))


def regress(seen: Sequence[Collected | View]) -> Regression:
    """Solves the group sums of all rounds for the clients' updates, taken as the same in each round.

    Args:
        seen: what the server held after each round, with its group sums; or its views of the rounds.

    Raises:
        ValueError: no group sums at all.
    """
    found = equations(seen)
    totals = [group.total for collected in seen for group in (collected.groups or {}).values()]
    solved = found.inverse @ np.stack(totals)
    updates = dict(zip(found.clients, solved, strict=True))
    return Regression(updates, found.identified, found.rank, len(found.matrix))
