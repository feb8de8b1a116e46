"""What a view shows of one client's update: its own, the mean of its group, or the mean of everybody.

The attacks on updates take a `View` through these two, so that the same attack is played on what a protection left over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.types import Vector, View


def update_seen(view: View, client: int) -> Vector:
    """The best that the view knows of a client's update, float32 (d,): new minus old.

    Its own where updates are revealed; else the weighted mean of the smallest sum it is in, which under a secure sum of n
    clients holds its update to one part in n.

    Raises:
        ValueError: the client took no part, or the view shows nothing of the round.
    """
    if client in view.updates:
        return view.updates[client]
    if client not in view.clients:
        raise ValueError(f"client {client} is not in this view of round {view.round}")
    for group in (view.groups or {}).values():
        if client in group.members:
            return _mean(group.total, group.weight)
    if view.total is not None:
        return _mean(view.total, view.weight)
    if view.after is not None:
        return np.asarray(view.after - view.before, np.float32)
    raise ValueError(f"this view of round {view.round} shows neither updates nor a sum nor the next model")


def updates_seen(view: View, clients: Sequence[int] | None = None) -> Vector:
    """`update_seen` of several clients (all of the view by default), float32 (c, d)."""
    found: Vector = np.stack([update_seen(view, c) for c in (view.clients if clients is None else clients)])
    return found


def _mean(total: NDArray[np.float64], weight: float) -> Vector:
    return np.asarray(total / weight, np.float32)
