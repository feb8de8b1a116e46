"""Quantized updates: every coordinate rounded at random to one of a few levels, right on average.

Alistarh et al. 2017, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding" (arXiv 1610.02132):
stochastic rounding to `levels` steps in buckets of coordinates. Two differences, for bytes of a known length: a
bucket is scaled by its largest magnitude instead of its norm, and the 2 levels + 1 digits are packed with a fixed
width (several to a byte) instead of Elias codes, whose length would tell about the update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from securefed.compression.contract import Coding
from securefed.errors import ProtocolError
from securefed.types import Vector

MOST_LEVELS = 127
"""Above it a digit does not fit a byte; float32 sent whole is then nearly as small."""


@dataclass(frozen=True)
class Quantized(Coding):
    """Stochastic rounding, unbiased: no memory is needed.

    Attributes:
        levels: steps between 0 and a bucket's largest magnitude, in 1 .. 127; 1 sends -1, 0 or 1, five to a byte.
        bucket: coordinates that share a scale, at least 1.
    """

    levels: int = 1
    bucket: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MOST_LEVELS:
            raise ValueError(f"levels must be in 1 .. {MOST_LEVELS}, found {self.levels}")
        if self.bucket < 1:
            raise ValueError(f"bucket must be at least 1 coordinate, found {self.bucket}")

    @property
    def feedback(self) -> bool:
        return False

    @property
    def _base(self) -> int:
        return 2 * self.levels + 1

    @property
    def _per_byte(self) -> int:
        return int(math.log(256.5) / math.log(self._base))

    def bytes_of(self, d: int) -> int:
        return 4 * -(-d // self.bucket) + -(-d // self._per_byte)

    def encode(self, vector: Vector, generator: np.random.Generator) -> bytes:
        scales = self._scales(vector)
        wide = np.repeat(scales.astype(np.float64), self.bucket)[: len(vector)]
        share = np.divide(np.abs(vector), wide, out=np.zeros(len(vector)), where=wide > 0) * self.levels
        low = np.floor(share)
        steps = low + (generator.random(len(vector)) < share - low)
        digits = (np.sign(vector) * np.minimum(steps, self.levels)).astype(np.int64) + self.levels
        return scales.astype("<f4").tobytes() + self._pack(digits.astype(np.uint8))

    def decode(self, payload: bytes, d: int) -> Vector:
        if len(payload) != self.bytes_of(d):
            raise ProtocolError(
                f"quantized: expected {self.bytes_of(d)} bytes for d={d}, found {len(payload)}"
            )
        buckets = -(-d // self.bucket)
        scales = np.frombuffer(payload, "<f4", buckets)
        if not bool(np.isfinite(scales).all()) or bool((scales < 0).any()):
            raise ProtocolError("quantized: a scale is no finite number of 0 or more")
        steps = self._unpack(payload[4 * buckets :], d) - self.levels
        wide = np.repeat(scales.astype(np.float64), self.bucket)[:d]
        return (steps * wide / self.levels).astype(np.float32)

    def _scales(self, vector: Vector) -> Vector:
        if not len(vector):
            return np.empty(0, np.float32)
        scales: Vector = np.maximum.reduceat(np.abs(vector), np.arange(0, len(vector), self.bucket))
        return scales

    def _pack(self, digits: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bytes:
        """Digits of base 2 levels + 1, as many to a byte as fit; the last byte is filled with zeros."""
        width = self._per_byte
        rows = np.zeros(-(-len(digits) // width) * width, np.int64)
        rows[: len(digits)] = digits
        powers = self._base ** np.arange(width)
        return (rows.reshape(-1, width) @ powers).astype(np.uint8).tobytes()

    def _unpack(self, payload: bytes, d: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        words = np.frombuffer(payload, np.uint8).astype(np.int64)
        digits = words[:, None] // self._base ** np.arange(self._per_byte) % self._base
        flat = digits.reshape(-1)
        if bool((words >= self._base**self._per_byte).any()) or bool(flat[d:].any()):
            raise ProtocolError("quantized: a byte that no digits make")
        return flat[:d]
