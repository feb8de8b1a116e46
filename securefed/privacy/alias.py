"""A table that draws integers with exactly stated probabilities, vectorised: Walker's alias method.

The probabilities are integer counts over 2^192, so what is drawn is known to the last bit and can be
compared with what was wanted. One 64-bit word decides almost every draw: its first bits choose a cell,
the rest is compared with the cell's threshold; only a tie, about once in 2^50 draws, needs more words.

A. J. Walker 1977, "An efficient method for generating discrete random variables with general
distributions" (ACM TOMS 3(3)), built as in M. D. Vose 1991, with integers in place of reals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream

UNIT_BITS = 192
UNIT = 1 << UNIT_BITS
"""Counts add up to this."""

_WORD = 64


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AliasTable:
    """Draws value `first + stride x i` with probability counts[i] / 2^192, exactly.

    Memory is read at secret places, so the time of a draw may depend on it: no protection against
    somebody who measures the caches of this very machine.

    Attributes:
        bits: log2 of the number of cells.
        first, stride: value of cell i is first + stride x i.
        high, low: threshold of each cell: its first 64 - bits bits (shifted up by `bits`), uint64 (cells,), and
            128 more, uint64 (2, cells).
        detour: what is added to a cell's own index where the draw is at or above its threshold.
    """

    bits: int
    first: int
    stride: int
    high: NDArray[np.uint64] = field(repr=False)
    low: NDArray[np.uint64] = field(repr=False)
    detour: NDArray[np.int64] = field(repr=False)

    def draw(self, n: int, stream: Stream) -> NDArray[np.int64]:
        """n independent values, int64 (n,). Call it in blocks that fit the cache."""
        words = stream.words(n)
        cells = (words >> np.uint64(_WORD - self.bits)).view(np.int64)
        fraction = words << np.uint64(self.bits)
        thresholds = self.high.take(cells, mode="clip")
        aside = fraction >= thresholds
        tied = fraction == thresholds
        if tied.any():
            where = np.flatnonzero(tied)
            aside[where] = self._at_or_above(cells[where], stream)
        drawn: NDArray[np.int64] = self.detour.take(cells, mode="clip")
        drawn *= aside
        drawn += cells
        if self.stride != 1:
            drawn *= self.stride
        drawn += self.first
        return drawn

    def _at_or_above(self, cells: NDArray[np.int64], stream: Stream) -> NDArray[np.bool_]:
        """The comparison of a tie's next 128 bits with the cells' thresholds."""
        first, second = self.low[0, cells], self.low[1, cells]
        words = stream.words(2 * len(cells)).reshape(2, -1)
        above: NDArray[np.bool_] = (words[0] > first) | ((words[0] == first) & (words[1] >= second))
        return above

    def counts(self) -> dict[int, int]:
        """Value -> the exact number of outcomes out of 2^192 that draw it, read back from the table."""
        capacity = UNIT >> self.bits
        found: dict[int, int] = {}
        for i in range(1 << self.bits):
            own = int(self.high[i]) >> self.bits
            for part in self.low[:, i]:
                own = own << _WORD | int(part)
            for cell, count in ((i, own), (i + int(self.detour[i]), capacity - own)):
                value = self.first + self.stride * cell
                found[value] = found.get(value, 0) + count
        return {value: count for value, count in found.items() if count}


def build(counts: Sequence[int], first: int, stride: int = 1) -> AliasTable:
    """The table that draws first + stride x i with probability counts[i] / 2^192.

    Raises:
        ValueError: a count below zero, or counts that do not add up to 2^192.
    """
    if sum(counts) != UNIT or min(counts) < 0:
        raise ValueError(f"the counts of an alias table are >= 0 and add up to 2^{UNIT_BITS}")
    bits = max(1, (len(counts) - 1).bit_length())
    size = 1 << bits
    capacity = UNIT >> bits
    left = [*counts, *(0 for _ in range(size - len(counts)))]
    own = [capacity - 1] * size
    target = list(range(size))  # a full cell leads to itself on both sides of its threshold
    poor = [i for i, count in enumerate(left) if count < capacity]
    rich = [i for i, count in enumerate(left) if count > capacity]
    while poor:
        i, j = poor.pop(), rich[-1]
        own[i], target[i] = left[i], j
        left[j] -= capacity - left[i]
        if left[j] <= capacity:
            rich.pop()
            if left[j] < capacity:
                poor.append(j)
    mask = (1 << _WORD) - 1
    return AliasTable(
        bits,
        first,
        stride,
        np.array([count >> 2 * _WORD << bits for count in own], np.uint64),
        np.array([[count >> _WORD & mask for count in own], [count & mask for count in own]], np.uint64),
        np.array([target[i] - i for i in range(size)], np.int64),
    )
