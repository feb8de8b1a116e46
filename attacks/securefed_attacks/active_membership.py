"""Active membership by the server: it climbs the loss of the records it asks about, and looks who brings it down again.

Nasr, Shokri and Houmansadr, "Comprehensive Privacy Analysis of Deep Learning", IEEE S&P 2019 (arXiv 1812.00910), section
III-C: before a round the server adds the gradient of the target records' loss to the model that it sends out. A client
that has a record reduces its loss strongly, because the step made it stand out; on other records training has no reason to.

Adversary: a malicious server. It sends a model of its own making, and sees the client's update. Under a secure sum it must
send the same model to everybody (parties compare a digest of it), and sees the mean of n updates: who has the
record is then hidden among n, that somebody has it is not. DP at the level of examples bounds what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.types import Vector, View
from securefed_attacks.views import update_seen

Floats = NDArray[np.float64]
Losses = Callable[[Vector], Floats]
"""Model (d,) -> loss of each record that is asked about, (n,), in evaluation mode."""
SMALLEST = 1e-12
Slope = Callable[[Vector], Vector]
"""Model (d,) -> gradient of the mean loss of those records, (d,)."""


@dataclass(frozen=True)
class ActiveMembership:
    """The attack and its strength.

    Attributes:
        step: length of an ascent step, in lengths of the model's parameters; the direction is the gradient's.
        steps: ascent steps before the model is sent.
    """

    step: float = 0.01
    steps: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.step < float("inf") or self.steps < 1:
            raise ValueError(
                f"active membership needs step > 0 and steps >= 1; got {self.step}, {self.steps}"
            )

    def ascend(self, model: Vector, slope: Slope) -> Vector:
        """The model that is sent instead, (d,): the loss of the records asked about is higher under it.

        Args:
            model: the honest global model (d,), unchanged.

        Raises:
            ValueError: a gradient of zero or one that is not finite has no direction.
        """
        length = self.step * float(np.linalg.norm(model))
        raised = np.array(model, np.float64)
        for _ in range(self.steps):
            direction = np.asarray(slope(raised.astype(np.float32)), np.float64)
            norm = float(np.linalg.norm(direction))
            if not np.isfinite(norm) or norm == 0:
                raise ValueError(f"a gradient of norm {norm} has no direction to climb")
            raised += length / norm * direction
        return raised.astype(np.float32)

    def __call__(self, views: View | Sequence[View], client: int, losses: Losses) -> Floats:
        """A score for each record, (n,): how much lower the log of its loss is after this client's training than after the others'.

        Every record asked about was lifted to a high loss; what is low again was trained on. Records differ in how
        easily anybody's training brings them down, so the mean over other clients is taken off where they are seen (own).

        Args:
            views: of rounds that began from `ascend`ed models (`View.before`). client: whose data is asked about.

        Raises:
            ValueError: no round, or a loss that is not finite.
        """
        rounds = [views] if isinstance(views, View) else list(views)
        if not rounds:
            raise ValueError("needs a view of at least one round")
        score: Floats = np.sum([_lower(view, client, losses) for view in rounds], axis=0, dtype=np.float64)
        return score


def _lower(view: View, client: int, losses: Losses) -> Floats:
    others = [c for c in view.updates if c != client]
    mine = _left(view, client, losses)
    if not others:  # a sum: nobody stands beside anybody
        return -mine
    beside: Floats = np.mean([_left(view, c, losses) for c in others], axis=0)
    return beside - mine


def _left(view: View, client: int, losses: Losses) -> Floats:
    """Log of the loss that is left, (n,)."""
    found = losses(np.asarray(view.before + update_seen(view, client), np.float32))
    if not np.isfinite(found).all():
        raise ValueError(f"a loss of round {view.round} is not finite; a model that diverged says nothing")
    logs: Floats = np.log(np.maximum(found, SMALLEST))  # else one record of huge loss outweighs all others
    return logs
