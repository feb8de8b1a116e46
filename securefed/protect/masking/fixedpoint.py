"""Real numbers as integers of a ring, so that sums under masks are exact and never wrap.

A coordinate x is clipped to [-value_range, value_range], scaled to [-levels, levels] and rounded
stochastically: floor(x + u) with u uniform in [0, 1), which is unbiased and errs by less than one
step. The code is signed and centred at zero, modulo 2^bits. n clients fit as long as n x levels stays
below half the ring; `levels_for` gives the most that does.

Stochastic rounding enlarges the L2 norm of a vector by up to sqrt(d) steps: a sensitivity has to be
taken after rounding, not before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.types import Vector

Words = NDArray[np.uint32]
BLOCK = 1 << 16
"""Coordinates quantized at a time: the buffers stay in the second-level cache."""
_NEAR = 1 - 2.0**-30
TAIL_BITS = 40
"""Weights and counts travel as integers below 2^40, cut into limbs that fit the ring n times."""


def levels_for(n: int, bits: int) -> int:
    """The most levels for which n clients cannot wrap a ring of 2^bits: n x levels <= 2^(bits-1) - 1."""
    return ((1 << (bits - 1)) - 1) // n


@dataclass(frozen=True)
class Quantizer:
    """The map between coordinates in [-value_range, value_range] and codes in [-levels, levels].

    Attributes:
        bits: width of the ring, 16 to 32.
        levels: the code of `value_range`; one step is value_range / levels.
    """

    bits: int
    levels: int
    value_range: float

    @property
    def step(self) -> float:
        """Largest error of one client's coordinate, in units of the coordinate."""
        return self.value_range / self.levels

    def quantize(self, vector: Vector, scale: float, stream: Stream, out: Words) -> int:
        """Writes round(clip(vector) x scale) into `out`, modulo 2^32, and returns how many were clipped.

        Args:
            vector: float32 (d,), finite.
            scale: 0 <= scale <= 1, the client's weight over the largest allowed weight.
            out: uint32, at least d words; only the first d are written.
        """
        clipped, factor = 0, scale * self.levels / self.value_range
        real, coin = np.empty(BLOCK), np.empty(BLOCK)
        codes = out.view(np.int32)
        for start in range(0, len(vector), BLOCK):
            block = vector[start : start + BLOCK]
            x, u = real[: len(block)], coin[: len(block)]
            np.multiply(block, factor, out=x, dtype=np.float64)
            # a hair below the range already: rounding of the product must not pass `levels` either
            if max(float(block.max()), -float(block.min())) > self.value_range * _NEAR:
                clipped += int(np.count_nonzero(np.abs(block) > self.value_range))
                bound = scale * self.levels
                np.clip(x, -bound, bound, out=x)
            np.multiply(np.frombuffer(stream.bytes(4 * len(block)), "<u4"), 2.0**-32, out=u)
            np.add(x, u, out=x)
            np.floor(x, out=x)
            codes[start : start + len(block)] = x
        return clipped

    def dequantize(self, words: Words) -> NDArray[np.float64]:
        """The sums behind ring elements, float64, in units of coordinate x scale."""
        shift = np.uint32(32 - self.bits)
        signed = (words << shift).view(np.int32)  # the top bit of the narrow ring becomes the sign
        real: NDArray[np.float64] = np.multiply(signed, self.step * 2.0 ** -float(shift), dtype=np.float64)
        return real


@dataclass(frozen=True)
class Limbs:
    """Integers below 2^40 as words that n clients can add without a carry leaving its word.

    Attributes:
        width: bits of a limb; n x (2^width - 1) < 2^bits.
        count: limbs of one integer.
    """

    width: int
    count: int

    @classmethod
    def for_cohort(cls, n: int, bits: int) -> Limbs:
        """The widest limbs that n clients can add in a ring of 2^bits; n < 2^bits."""
        width = bits - (n - 1).bit_length()
        return cls(width, -(-TAIL_BITS // width))

    def encode(self, values: Sequence[int]) -> Words:
        """uint32 (len(values) x count,); each value in 0 .. 2^40 - 1, lowest limb first."""
        mask = (1 << self.width) - 1
        limbs = [(v >> (self.width * i)) & mask for v in values for i in range(self.count)]
        return np.array(limbs, np.uint32)

    def decode(self, words: Words) -> list[int]:
        """The sums of the encoded integers."""
        sums = [int(w) for w in words]
        starts = range(0, len(sums), self.count)
        return [sum(sums[s + i] << (self.width * i) for i in range(self.count)) for s in starts]


def weight_unit(max_weight: float) -> float:
    """The quantum of a travelling weight: a power of two, so that whole numbers are exact."""
    return 2.0 ** -(TAIL_BITS - 1 - math.ceil(math.log2(max(max_weight, 1.0))))
