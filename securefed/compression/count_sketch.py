"""Count-Sketch: every coordinate is added, with a random sign, into one cell of each of a few rows.

Rothchild et al. 2020, "FetchSGD: Communication-Efficient Federated Learning with Sketching" (arXiv 2007.07682),
algorithm 1, without momentum. The sketch is linear and the same for all clients and rounds, so secure sums carry
it and the error is kept where the sum is, at the server, in sketch space: S = error + mean of sketches; the k
largest coordinates that S estimates (median over rows) are the round's update; the error is S less their sketch.
Clients keep nothing, so it also suits clients that come once.

One difference: the update is scaled by the factor that fits the sum of sketches best (least squares). Where cells are
few, estimates are mostly collisions, and taking them at face value makes the error grow without bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.compression.contract import Linear, Memory, Occasion, count, require_share
from securefed.layout import Layout
from securefed.types import Vector

_WHAT = 0x5CE7C4


@dataclass(frozen=True)
class CountSketch(Linear):
    """A sketch of the update.

    Attributes:
        share: cells / d, in (0, 1]. rows: of the sketch, odd; its columns are share x d / rows.
        top: coordinates that move in a round, as a part of d, in (0, 1]; those that many cells can tell.
    """

    share: float = 1 / 4
    rows: int = 3
    top: float = 1 / 64

    adds_rows = False

    def __post_init__(self) -> None:
        require_share("count_sketch", self.share)
        if self.rows < 1 or self.rows % 2 == 0:
            raise ValueError(f"rows must be odd, so that their estimates have a median, found {self.rows}")
        if not 0 < self.top <= 1:
            raise ValueError(
                f"top is the part of the coordinates that move in a round, in (0, 1], found {self.top}"
            )

    @property
    def feedback(self) -> bool:
        return False  # the server's error stands for the clients' memory

    def size(self, shared: Layout, round: int) -> int:
        return self.rows * self._columns(shared.size)

    def project(self, vector: Vector, occasion: Occasion) -> Vector:
        columns = self._columns(len(vector))
        cells, signs = self._hashes(occasion)
        wide = vector.astype(np.float64)
        rows = [np.bincount(c, s * wide, columns) for c, s in zip(cells, signs, strict=True)]
        return np.concatenate(rows).astype(np.float32)

    def lift(self, sent: Vector, occasion: Occasion) -> Vector:
        """What the sketch says of every coordinate: the median over its rows, float32 (d,)."""
        cells, signs = self._hashes(occasion)
        rows = sent.reshape(self.rows, -1)
        found = np.median([s * row[c] for c, s, row in zip(cells, signs, rows, strict=True)], axis=0)
        estimate: Vector = found.astype(np.float32)
        return estimate

    def receive(self, mean: Vector, occasion: Occasion) -> tuple[Vector, Memory]:
        name = f"sketch.{occasion.key}"
        total = mean + occasion.memory.get(name, np.zeros_like(mean))
        estimate = self.lift(total, occasion)
        d = len(estimate)
        k = count(self.top, d)
        places = np.argpartition(np.abs(estimate), d - k)[d - k :]
        update = np.zeros(d, np.float32)
        update[places] = estimate[places]
        seen = self.project(update, occasion).astype(np.float64)
        fit = float(seen @ total) / max(
            float(seen @ seen), 1e-30
        )  # so the error never grows by what is taken out
        update = (update * np.float32(fit)).astype(np.float32)
        error = (total - fit * seen).astype(np.float32)
        return update, {**occasion.memory, name: error}

    def _columns(self, d: int) -> int:
        return max(1, round(self.share * d / self.rows))

    def _hashes(self, occasion: Occasion) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(cell, sign) of each coordinate in each row, (rows, d): one draw for the whole run."""
        d, generator = occasion.shared.size, occasion.generator(_WHAT)
        cells = generator.integers(0, self._columns(d), (self.rows, d))
        signs: NDArray[np.float64] = generator.integers(0, 2, (self.rows, d)).astype(np.float64) * 2 - 1
        return cells, signs
