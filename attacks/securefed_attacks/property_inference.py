"""A property of a client's data that nobody trains for, read from its update by a classifier of shadow updates.

Melis, Song, De Cristofaro and Shmatikov, "Exploiting unintended feature leakage in collaborative learning", IEEE S&P 2019
(arXiv 1805.04049), section 4.2 and algorithm 3: the adversary trains on auxiliary data with and without the property from
the very model that the victims began from, and learns to tell the updates apart. Neurons of one layer can be permuted
without a change of what a net computes; where clients begin from different nets, sorting them first makes their weights
comparable (Ganju, Wang, Yang, Gunter and Borisov, "Property inference attacks on fully connected neural networks using
permutation invariant representations", CCS 2018, section 4.1).

Adversary: the server, honest but curious; it sees updates, has the model and auxiliary data with the property known. Under
a secure sum of n clients the signal of one falls to a part in n, while a property that all share stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.types import Vector, View
from securefed_attacks.views import update_seen

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
FEWEST = 4
"""Shadow updates on each side below which a classifier has nothing to learn from."""


@dataclass(frozen=True, eq=False)
class PropertyInference:
    """The fitted classifier: a ridge of +-1 on standardized updates, which has a closed form for any d.

    Attributes:
        middle, spread: (d,), of the shadow updates. slope: (d,). offset: score where both sides are alike.
        held_out: (s,), the score of each shadow update by a classifier that was fitted without it.
    """

    middle: Floats = field(repr=False)
    spread: Floats = field(repr=False)
    slope: Floats = field(repr=False)
    offset: float
    held_out: Floats = field(repr=False)

    @classmethod
    def fitted(cls, shadows: Vector, has: Bools, ridge: float = 1.0) -> PropertyInference:
        """Learns from shadow updates which of them had the property.

        Args:
            shadows: (s, d). has: (s,). ridge: weight of the slope's square, in units of the kernel's mean diagonal.

        Raises:
            ValueError: other shapes, values that are not finite, or fewer than four on a side.
        """
        rows, side = np.asarray(shadows, np.float64), np.asarray(has, bool)
        if rows.ndim != 2 or side.shape != rows.shape[:1] or not np.isfinite(rows).all() or ridge <= 0:
            raise ValueError(
                f"needs finite shadows (s, d), has (s,) and ridge > 0; got {rows.shape}, {side.shape}, {ridge}"
            )
        if min(int(side.sum()), int((~side).sum())) < FEWEST:
            raise ValueError(
                f"needs at least {FEWEST} shadow updates with and without; got {int(side.sum())} of {len(side)}"
            )
        middle, spread = rows.mean(0), rows.std(0)
        unit = (rows - middle) / np.where(spread > 0, spread, 1)
        wanted = np.where(side, 1.0, -1.0)
        offset = float(wanted.mean())
        kernel = unit @ unit.T
        inverse = np.linalg.inv(kernel + ridge * float(kernel.diagonal().mean()) * np.eye(len(unit)))
        dual = inverse @ (wanted - offset)
        held_out = wanted - dual / inverse.diagonal()  # leave-one-out of a ridge, in closed form
        return cls(middle, np.where(spread > 0, spread, 1), unit.T @ dual, offset, held_out)

    def score(self, updates: Vector) -> Floats:
        """Higher where an update looks like those with the property: (n, d) -> (n,)."""
        found: Floats = ((np.asarray(updates, np.float64) - self.middle) / self.spread) @ self.slope
        return found + self.offset

    def __call__(self, views: Sequence[View], client: int) -> Floats:
        """The score of one client in each round that was seen, (r,): its update, or the mean of the sum it is in."""
        return self.score(np.stack([update_seen(view, client) for view in views]))


def shadow_updates(
    train: Callable[[bool, np.random.Generator], Vector], count: int, generator: np.random.Generator
) -> tuple[Vector, Bools]:
    """Shadow updates (count, d), every second one with the property, and which have it.

    Args:
        train: (with the property?, generator) -> the update (d,) of a client whose data the adversary made up.
    """
    has = np.arange(count) % 2 == 0
    return np.stack([train(bool(h), generator) for h in has]), has


def sorted_neurons(weight: Vector, bias: Vector, following: Vector) -> tuple[Vector, Vector, Vector]:
    """A layer (m, d), (m,) and the next one's weight (k, m) with neurons by the sum of their weights (Ganju et al. 2018).

    The net computes the same.
    """
    order = np.argsort(weight.sum(1) + bias, kind="stable")
    return weight[order], bias[order], following[:, order]
