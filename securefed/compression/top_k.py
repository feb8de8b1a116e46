"""Top-k with error feedback: the k largest coordinates of each client's own update, with their indices.

Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory" (arXiv 1809.07599), algorithm 1: p = memory + update
is cut to its k largest coordinates, and p less what was sent is the next memory. Which coordinates are large is
each client's own, so messages cannot be added unread. Indices are packed into ceil(log2 d) bits, values into 16
(a share of the largest, which travels as float32); what rounding leaves out stays in the memory too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from securefed.compression.contract import Coding, count, require_share
from securefed.crypto.packing import LEAST, pack, packed_size, unpack
from securefed.errors import ProtocolError
from securefed.types import Vector

_SCALE = struct.Struct("<f")
_HALF = 2**15 - 1


@dataclass(frozen=True)
class TopK(Coding):
    """Each client's largest coordinates.

    Attributes:
        share: k / d, in (0, 1]. error_feedback: clients keep what was not sent and add it to their next update.
    """

    share: float = 1 / 32
    error_feedback: bool = True

    def __post_init__(self) -> None:
        require_share("top_k", self.share)

    @property
    def feedback(self) -> bool:
        return self.error_feedback

    def bytes_of(self, d: int) -> int:
        k = count(self.share, d)
        return _SCALE.size + packed_size(k, _index_bits(d)) + 2 * k

    def encode(self, vector: Vector, generator: np.random.Generator) -> bytes:
        d = len(vector)
        k = count(self.share, d)
        magnitude = np.abs(vector)
        places = np.sort(np.argpartition(magnitude, d - k)[d - k :]) if k else np.empty(0, np.int64)
        scale = np.float32(magnitude.max(initial=0))
        steps = np.rint(vector[places].astype(np.float64) / scale * _HALF) if scale > 0 else np.zeros(k)
        indices = pack(places.astype(np.uint32), _index_bits(d))
        return _SCALE.pack(scale) + indices + steps.astype("<i2").tobytes()

    def decode(self, payload: bytes, d: int) -> Vector:
        if len(payload) != self.bytes_of(d):
            raise ProtocolError(f"top_k: expected {self.bytes_of(d)} bytes for d={d}, found {len(payload)}")
        k, bits = count(self.share, d), _index_bits(d)
        scale = _SCALE.unpack_from(payload)[0]
        if not (np.isfinite(scale) and scale >= 0):
            raise ProtocolError("top_k: the scale is no finite number of 0 or more")
        split = _SCALE.size + packed_size(k, bits)
        places = unpack(payload[_SCALE.size : split], k, bits).astype(np.int64)
        if k and (int(places[-1]) >= d or bool((np.diff(places) <= 0).any())):
            raise ProtocolError(f"top_k: indices are ascending and below d={d}")
        steps = np.frombuffer(payload, "<i2", k, split)
        if bool((steps < -_HALF).any()):
            raise ProtocolError(f"top_k: a value beyond {_HALF} steps")
        out = np.zeros(d, np.float32)
        out[places] = steps * (scale / _HALF)
        return out


def _index_bits(d: int) -> int:
    return max(LEAST, (max(d, 1) - 1).bit_length())
