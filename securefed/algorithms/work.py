"""What an algorithm asks of one client in one round, and what the client has when it is done.

The words between an algorithm's file, which says what is trained in which order, and `securefed.training`, which
trains: batches, the job's optimizer and, under example-level DP, clipping and noise in every step of every phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from securefed.layout import Layout
from securefed.types import Vector


class Training(Protocol):
    """Trains one client's model on its own shard; each call is one phase of its round."""

    @property
    def layout(self) -> Layout:
        """Of the whole model, whose vectors it takes and gives."""
        ...

    def __call__(
        self,
        start: Vector,
        names: Sequence[str],
        *,
        steps: int = 0,
        towards: Vector | None = None,
        mu: float | None = None,
        rate: float = 1.0,
    ) -> Vector:
        """The model after local steps from `start`, float32 (d,) over the whole layout.

        Args:
            names: the tensors that train. steps: how many; 0 takes the job's steps or epochs.
            towards: adds the gradient of mu/2 |w - towards|^2; None: towards `start`.
            mu: its strength; None takes the job's `train.proximal_mu`.
            rate: on every learning rate of the job.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Worked:
    """The end of one client's round, both float32 (d,) over the whole layout.

    Attributes:
        vector: what it trained of the model it was sent; its change over `share` is what leaves.
        own: from which its local part is taken; None where that is `vector` too.
    """

    vector: Vector = field(repr=False)
    own: Vector | None = field(default=None, repr=False)
