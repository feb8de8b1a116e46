"""Adaptive clipping in a run: the round's clip, the noise that its bit costs, and how both outlive a crash.

What travels is the clipped update and, behind it, one more coordinate: whether the client's norm was within the
clip, centred (+-1/2). The coordinate has its own noise, of deviation `count_std` on the sum; the update's
noise is raised so that both together cost what the round's noise multiplier says.

Andrew, Thakkar, McMahan and Ramaswamy 2021, arXiv 1905.03871v5, algorithm 1 and theorem 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.privacy.adaptive_clip import AdaptiveClip, is_below, split_noise
from securefed.types import Vector

KEY = "clip:"
"""The clip's name among a checkpoint's named vectors."""

RANGE = 1000.0
"""The clip stays within this factor of the first one."""


def count_deviation(asked: float, cohort: float, noise_multiplier: float) -> float:
    """Deviation of the noise on the count of bits: as asked, or (0) a twentieth of the cohort, the paper's choice.

    In small cohorts that would cost the update too much: then twice the noise multiplier, which raises the
    update's noise by 3 %.
    """
    return asked or max(cohort / 20, 2 * noise_multiplier)


@dataclass
class MovingClip:
    """A run's clip.

    Attributes:
        rule: how it moves. count_std: of the noise on the count of bits.
        value: the clip of the round that is being played, public, a float32.
    """

    rule: AdaptiveClip
    count_std: float
    value: float = field(default=1.0)

    @classmethod
    def starting(cls, clip: float, quantile: float, learning_rate: float, count_std: float) -> MovingClip:
        """The clip of a new run."""
        rule = AdaptiveClip(quantile, learning_rate, least=clip / RANGE, most=clip * RANGE)
        return cls(rule, count_std, _float32(clip))

    def update_noise(self, noise_multiplier: float) -> float:
        """The update's own noise multiplier, where update and bit together have this one."""
        return split_noise(noise_multiplier, self.count_std)

    def payload(self, released: Vector, noisy_sum: float, cohort: float) -> Vector:
        """What is journaled: the released update and, behind it, the clip of the next round.

        Args:
            noisy_sum: of the centred bits. cohort: a public number of clients that it is over.
        """
        following = self.rule.step(self.value, 0.5 + noisy_sum / cohort)
        return np.append(released, np.float32(following)).astype(np.float32)

    def take(self, payload: Vector) -> Vector:
        """Moves to the next round's clip and gives the released update."""
        self.value = float(payload[-1])
        return payload[:-1]

    def pack(self) -> dict[str, Vector]:
        """The clip as a named vector, for a checkpoint."""
        return {KEY: np.array([self.value], np.float32)}

    def unpack(self, stored: Mapping[str, Vector]) -> None:
        """Takes back what `pack` stored."""
        if KEY in stored:
            self.value = float(stored[KEY][0])


def centred_bit(update: Vector, clip: float) -> float:
    """+1/2 where the update's norm is at most the clip, else -1/2. Private: it only leaves noised."""
    return 0.5 if is_below(update, clip) else -0.5


def without_bit(total: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(the update's coordinates, the bits' sum) of a sum that carries both."""
    return total[:-1], float(total[-1])


def _float32(value: float) -> float:
    return float(np.float32(value))
