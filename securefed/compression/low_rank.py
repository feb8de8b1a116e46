"""Low rank: of every matrix M of the update only its product with a thin public basis is sent.

Vogels, Karimireddy and Jaggi 2019, "PowerSGD" (arXiv 1905.13727): one step of subspace iteration a round, the
basis taken over from the round before ("warm start"). PowerSGD sums twice in a step; here one sum is enough,
because sides take turns: a round sends M Q with the public Q (in x r), and its sum, made orthonormal, is the
U (out x r) of the next, which sends M^T U, and so on. A basis has orthonormal columns, so the map is linear, the
same for all clients, and a projection. Vectors, and matrices that it would not make smaller, travel whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.compression.contract import Linear, Memory, Occasion
from securefed.layout import Layout
from securefed.types import Vector

_WHAT = 0x10A4
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LowRank(Linear):
    """Projections on a thin basis.

    Attributes:
        rank: columns of the basis, at least 1. error_feedback: clients keep what was not sent.
        warm: take the basis from the last sum instead of drawing it anew: better, and each client must hear that
            sum beside the model.
    """

    rank: int = 2
    error_feedback: bool = True
    warm: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, found {self.rank}")

    @property
    def feedback(self) -> bool:
        return self.error_feedback

    def size(self, shared: Layout, round: int) -> int:
        return sum(self._sent_size(shape, right=True) for shape in shared.shapes)

    def project(self, vector: Vector, occasion: Occasion) -> Vector:
        parts = [
            np.concatenate([(matrix @ basis).ravel(), np.zeros(spare)])
            if basis is not None
            else matrix.ravel()
            for matrix, basis, spare in self._matrices(vector, occasion)
        ]
        return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)

    def lift(self, sent: Vector, occasion: Occasion) -> Vector:
        start, parts = 0, []
        for i, (shape, size) in enumerate(self._pieces(occasion.shared)):
            piece = sent[start : start + size].astype(np.float64)
            start += size
            basis, right = self._basis(occasion, i, shape)
            if basis is not None:
                rows = shape[0] if right else math.prod(shape[1:])
                found = piece[: rows * self.rank].reshape(rows, self.rank) @ basis.T
                piece = (found if right else found.T).ravel()
            parts.append(piece)
        return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)

    def receive(self, mean: Vector, occasion: Occasion) -> tuple[Vector, Memory]:
        update = self.lift(mean, occasion)
        if not self.warm:
            return update, occasion.memory
        turn = np.float32(0.0 if self._is_right(occasion) else 1.0)  # what the next round sends
        return update, {**occasion.memory, self._name(occasion): np.append(mean, turn).astype(np.float32)}

    def down(self, occasion: Occasion) -> int:
        return len(occasion.memory.get(self._name(occasion), ()))

    def _name(self, occasion: Occasion) -> str:
        return f"basis.{occasion.key}"

    def _is_right(self, occasion: Occasion) -> bool:
        """Whether this round sends M Q (basis on the right) rather than M^T U."""
        stored = occasion.memory.get(self._name(occasion))
        return stored is None or bool(stored[-1])

    def _shrinks(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        rows, columns = shape[0], math.prod(shape[1:])
        return self.rank * max(rows, columns) < rows * columns

    def _sent_size(self, shape: tuple[int, ...], right: bool) -> int:
        """Numbers sent of one tensor: the longer side's in both turns, so that m is the same in every round."""
        if not self._shrinks(shape):
            return math.prod(shape)
        return self.rank * max(shape[0], math.prod(shape[1:]))

    def _pieces(self, shared: Layout) -> list[tuple[tuple[int, ...], int]]:
        return [(shape, self._sent_size(shape, True)) for shape in shared.shapes]

    def _matrices(self, vector: Vector, occasion: Occasion) -> Iterator[tuple[Matrix, Matrix | None, int]]:
        """(matrix to multiply from the right, basis or None, zeros behind the product) of each tensor."""
        for i, (shape, size) in enumerate(self._pieces(occasion.shared)):
            start = occasion.shared.offsets[i]
            flat = vector[start : start + math.prod(shape)].astype(np.float64)
            basis, right = self._basis(occasion, i, shape)
            if basis is None:
                yield flat, None, 0
                continue
            matrix = flat.reshape(shape[0], -1)
            turned = matrix if right else matrix.T
            yield turned, basis, size - turned.shape[0] * self.rank

    def _basis(self, occasion: Occasion, i: int, shape: tuple[int, ...]) -> tuple[Matrix | None, bool]:
        """(orthonormal basis of tensor i in this round, whether it is on the right); None where M travels whole."""
        right = self._is_right(occasion)
        if not self._shrinks(shape):
            return None, right
        rows, columns = shape[0], math.prod(shape[1:])
        stored = occasion.memory.get(self._name(occasion)) if self.warm else None
        seed = occasion.generator(_WHAT, i, *([] if self.warm else [occasion.round]))
        fresh = seed.standard_normal((columns if right else rows, self.rank))
        if stored is not None:  # the last product lives on the side that this round multiplies
            start = sum(size for _, size in self._pieces(occasion.shared)[:i])
            length = columns if right else rows
            last = stored[start : start + length * self.rank].astype(np.float64).reshape(length, self.rank)
            # a direction that the last sum did not have is drawn, so that the basis never loses a column
            fresh = last + 1e-6 * float(np.abs(last).max(initial=0) + 1e-12) * fresh
        return np.linalg.qr(fresh)[0], right
