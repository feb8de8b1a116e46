"""A job's compression made ready: the client's side, between training and protection, and the server's after the sum.

Under DP the order is the guarantee. Client level: an update is compressed first and **what is sent is clipped**, so
the sensitivity belongs to the very vector that is summed, whatever the map's norm and whatever the memory holds.
What the clip cuts off is not kept: a memory of it would grow without bound. Under the server's own noise the memory
depends on whether this client was drawn before, but not on this round's draw, so given the past each round is a
Gaussian release sampled at the same rate. Example level: compression sees the noised vector alone, so it, its
choice of coordinates and the memory are post-processing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from securefed.compression.contract import Coding, Compression, Linear, Memory, Occasion
from securefed.layout import Layout
from securefed.types import Collected, GroupSum, Vector

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDING = 0x0DD


@dataclass(frozen=True)
class Sending:
    """How updates of one job are sent; all of it is public."""

    compression: Compression
    seed: int

    @property
    def feedback(self) -> bool:
        """Whether clients keep what a message left out."""
        return self.compression.feedback

    def size(self, shared: Layout, round: int) -> int:
        """Numbers in the vector that a protection carries: m of a linear map, else d."""
        return self.compression.size(shared, round) if isinstance(self.compression, Linear) else shared.size

    def digest(self, shared: Layout, round: int) -> str:
        """Names the coordinates of what is sent, hex: the layout, the map and, where it changes, the round."""
        if not isinstance(self.compression, Linear):
            return shared.digest
        text = f"{shared.digest}:{self.compression!r}:{self.seed}:{round}"
        return hashlib.sha256(text.encode()).hexdigest()

    def sent(
        self, update: Vector, residual: Vector | None, shared: Layout, round: int, memory: Memory
    ) -> tuple[Vector, Vector | None]:
        """What one client hands to its protection, and what it keeps: float32 (m,), and (d,) or None.

        Args:
            update: float32 (d,). residual: what it kept from its rounds before, (d,); None for nothing.
        """
        occasion = self.occasion(shared, round, memory)
        whole = update if residual is None or not self.feedback else (update + residual).astype(np.float32)
        if isinstance(self.compression, Linear):
            sent = self.compression.project(whole, occasion)
            got = self.compression.lift(sent, occasion) if self.feedback else None
        else:
            assert isinstance(self.compression, Coding)
            sent = whole
            if self.feedback:
                sent = self.rounded(whole, shared, round)
            got = sent
        return sent, (whole - got).astype(np.float32) if self.feedback and got is not None else None

    def rounded(self, vector: Vector, shared: Layout, round: int) -> Vector:
        """What the server will read of a coded vector (a coding with memory is deterministic)."""
        assert isinstance(self.compression, Coding)
        generator = np.random.default_rng([self.seed, _ROUNDING, round])
        return self.compression.decode(self.compression.encode(vector, generator), len(vector))

    def occasion(self, shared: Layout, round: int, memory: Memory) -> Occasion:
        """What every party knows of this round."""
        return Occasion(self.seed, round, shared, memory)

    def received(self, mean: Vector, shared: Layout, round: int, memory: Memory) -> tuple[Vector, Memory]:
        """The round's update (d,) from the mean (or the noised release) of what was sent, and the new memory."""
        if not isinstance(self.compression, Linear):
            return mean, memory
        return self.compression.receive(mean, self.occasion(shared, round, memory))

    def remembered(self, update: Vector, shared: Layout, round: int, memory: Memory) -> Memory:
        """The server's new memory where a rule has made the update (d,) from lifted rows."""
        if not isinstance(self.compression, Linear):
            return memory
        occasion = self.occasion(shared, round, memory)
        return self.compression.receive(self.compression.project(update, occasion), occasion)[1]

    def lifted(self, collected: Collected, shared: Layout, round: int, memory: Memory) -> Collected:
        """The same with every vector in (d,), for rules that compare clients or groups."""
        if not isinstance(self.compression, Linear):
            return collected
        linear, occasion = self.compression, self.occasion(shared, round, memory)

        def total(sums: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
            mean = (sums / weight).astype(np.float32) if weight else np.zeros(len(sums), np.float32)
            return linear.lift(mean, occasion).astype(np.float64) * weight

        def group(g: GroupSum) -> GroupSum:
            return GroupSum(g.members, total(g.total, g.weight), g.weight)

        rows, groups = collected.updates, collected.groups
        return replace(
            collected,
            total=total(collected.total, collected.weight),
            updates=None if rows is None else {k: linear.lift(v, occasion) for k, v in rows.items()},
            groups=None if groups is None else {k: group(g) for k, g in groups.items()},
        )

    def down_bytes(self, shared: Layout, round: int, memory: Memory) -> int:
        """Bytes that each client must hear beside the model to build the map."""
        linear = self.compression
        return 4 * linear.down(self.occasion(shared, round, memory)) if isinstance(linear, Linear) else 0


def residual_of(
    residuals: Mapping[int, Vector], client: int, layout: Layout, shared: Layout
) -> Vector | None:
    """A client's memory over the coordinates of this round, (d,); None where it has none."""
    return layout.gather(residuals[client], shared) if client in residuals else None


def keep(
    residuals: Mapping[int, Vector], found: Mapping[int, Vector], layout: Layout, shared: Layout
) -> dict[int, Vector]:
    """The clients' memories over the whole layout after a round; coordinates that were not shared stay."""
    empty = np.zeros(layout.size, np.float32)
    changed = {k: layout.scatter(v, shared, residuals.get(k, empty)) for k, v in found.items()}
    return {**residuals, **changed}
