"""Random-k: k of the d coordinates, drawn anew each round from a seed that all parties share.

Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory" (arXiv 1809.07599), the operator rand_k. All clients
send the same coordinates, so the map is linear, no index travels, and a secure sum carries it as it is. A
projection: the norm of what is sent is never above the update's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.compression.contract import Linear, Occasion, count, require_share
from securefed.layout import Layout
from securefed.types import Vector


@dataclass(frozen=True)
class RandomK(Linear):
    """The same random coordinates of every client.

    Attributes:
        share: k / d, in (0, 1]. error_feedback: clients keep what was not sent and add it to their next update
            (the paper's memory). Without it what is sent counts d / k times, which is right on average and noisy;
            in runs of fewer than some d / k rounds that was still the better way (docs/compression.md).
    """

    share: float = 1 / 16
    error_feedback: bool = False

    def __post_init__(self) -> None:
        require_share("random_k", self.share)

    @property
    def feedback(self) -> bool:
        return self.error_feedback

    def size(self, shared: Layout, round: int) -> int:
        return count(self.share, shared.size)

    def project(self, vector: Vector, occasion: Occasion) -> Vector:
        return vector[self._places(occasion)]

    def lift(self, sent: Vector, occasion: Occasion) -> Vector:
        d = occasion.shared.size
        out = np.zeros(d, np.float32)
        factor = 1.0 if self.error_feedback or not len(sent) else d / len(sent)
        out[self._places(occasion)] = sent * np.float32(factor)
        return out

    def _places(self, occasion: Occasion) -> NDArray[np.int64]:
        d = occasion.shared.size
        drawn = occasion.generator(occasion.round).choice(d, count(self.share, d), replace=False)
        return np.sort(drawn)
