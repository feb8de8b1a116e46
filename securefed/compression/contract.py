"""The two kinds of compression. Which one it is decides what may carry it, so it is a type.

`Linear`: every client sends the same public linear map of its update, R^d -> R^m. The map of a sum is the sum of
the maps, so masking, CKKS and groups carry it as they carry any vector, of m numbers instead of d.

`Coding`: each client's bytes depend on its own update (which coordinates are large, which way a number was
rounded). Two such messages cannot be added before they are read, so the server must see each one: `plain` alone.

Error feedback (Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory", arXiv 1809.07599, algorithm 1;
Karimireddy et al. 2019, arXiv 1901.09847): what a message leaves out is kept at home and added to the next update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from securefed.layout import Layout
from securefed.types import Vector

Memory = Mapping[str, Vector]
"""What the server carries from round to round, named vectors; it follows from released sums, so it is public."""


@dataclass(frozen=True, slots=True)
class Occasion:
    """What every party knows of one round.

    Attributes:
        seed: of the job. round: 0-based. shared: layout of the update, d coordinates.
        memory: the server's, as it was when the round began.
    """

    seed: int
    round: int
    shared: Layout
    memory: Memory = field(default_factory=dict, repr=False)

    def generator(self, *what: int) -> np.random.Generator:
        """Public randomness of this job, these coordinates and `what`; the same at every party."""
        words = [int(self.shared.digest[i : i + 8], 16) for i in range(0, 64, 8)]
        return np.random.Generator(np.random.PCG64([self.seed, *words, *what]))

    @property
    def key(self) -> str:
        """Names what belongs to these coordinates in `memory`."""
        return self.shared.digest[:16]


class Compression(ABC):
    """What both kinds have. Instances are frozen dataclasses of public options.

    Attributes:
        linear: whether messages may be added before they are read.
        feedback: whether clients keep what a message left out.
        adds_rows: whether what was sent can be put back into (d,) client by client, for a rule that compares them.
    """

    linear: ClassVar[bool]
    adds_rows: ClassVar[bool] = True

    @property
    @abstractmethod
    def feedback(self) -> bool: ...


class Linear(Compression):
    """A public linear map (d,) -> (m,), the same for all clients of a round."""

    linear = True

    @abstractmethod
    def size(self, shared: Layout, round: int) -> int:
        """m, the numbers that a client sends."""

    @abstractmethod
    def project(self, vector: Vector, occasion: Occasion) -> Vector:
        """What is sent of an update (d,): float32 (m,), linear in the update."""

    @abstractmethod
    def lift(self, sent: Vector, occasion: Occasion) -> Vector:
        """The update (d,) that stands for what was sent (m,), float32."""

    def receive(self, mean: Vector, occasion: Occasion) -> tuple[Vector, Memory]:
        """The round's update (d,) from the mean of what was sent (m,), and the server's new memory."""
        return self.lift(mean, occasion), occasion.memory

    def down(self, occasion: Occasion) -> int:
        """Numbers that each client must hear beside the model to build the map."""
        return 0


class Coding(Compression):
    """Bytes of one update, of a length that follows from d alone: a message's size tells nothing."""

    linear = False

    @abstractmethod
    def bytes_of(self, d: int) -> int:
        """The length of a coded update of d coordinates."""

    @abstractmethod
    def encode(self, vector: Vector, generator: np.random.Generator) -> bytes:
        """The bytes of an update, float32 (d,), finite."""

    @abstractmethod
    def decode(self, payload: bytes, d: int) -> Vector:
        """The update, float32 (d,), finite.

        Raises:
            ProtocolError: bytes that no client's `encode` gives.
        """


def require_share(name: str, share: float) -> None:
    """Raises ValueError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise ValueError(
            f"share is the part of the coordinates that is sent, in (0, 1], found {share} ({name})"
        )


def count(share: float, d: int) -> int:
    """How many of d coordinates a share is: at least one, none of none."""
    return min(d, max(1, round(share * d)))
