"""Words of a narrow ring, packed: exactly `bits` bits a word, low bits first, little-endian.

Word i covers bits i x bits .. (i + 1) x bits - 1 of the payload, bit 0 being the lowest of byte 0.
What is left of the last byte is zero, so that there is one encoding.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ProtocolError

_BLOCK = 1 << 15  # words at a time: a multiple of 8, so that blocks meet at whole bytes


def packed_size(n: int, bits: int) -> int:
    """Bytes of n packed words."""
    _check_bits(bits)
    return (n * bits + 7) // 8


def pack(words: NDArray[np.uint32], bits: int) -> bytes:
    """The payload of words below 2^bits; beside it, memory for one block.

    Args:
        words: uint32 (n,). bits: 16 .. 32.

    Raises:
        ProtocolError: another type or shape, bits out of range, a word that does not fit.
    """
    if words.dtype != np.uint32 or words.ndim != 1:
        raise ProtocolError("packing: words must be a vector of uint32")
    size = packed_size(len(words), bits)
    if size == 0:
        return b""
    payload = io.BytesIO()
    payload.seek(size - 1)
    payload.write(b"\0")  # the whole size at once; getvalue() then hands over this buffer, uncopied
    with payload.getbuffer() as view:
        _pack_into(np.frombuffer(view, np.uint8), words, bits)
    return payload.getvalue()


def _pack_into(out: NDArray[np.uint8], words: NDArray[np.uint32], bits: int) -> None:
    group = 8 // math.gcd(bits, 8)
    for low in range(0, len(words), _BLOCK):
        block = words[low : low + _BLOCK]
        if bits < 32 and int(block.max()) >> bits:
            raise ProtocolError(f"packing: a word does not fit {bits} bits")
        missing = -len(block) % group
        if missing:
            block = np.concatenate([block, np.zeros(missing, np.uint32)])
        start = low * bits // 8
        stop = min(start + _BLOCK * bits // 8, len(out))
        out[start:stop] = _pack_block(block, bits)[: stop - start]


def unpack(payload: bytes | memoryview, n: int, bits: int) -> NDArray[np.uint32]:
    """The n words of a payload, uint32 (n,), writable; beside it, memory for one block.

    Raises:
        ProtocolError: a payload of another length than n words have, or padding that is not zero.
    """
    if n < 0 or len(memoryview(payload).cast("B")) != packed_size(n, bits):
        raise ProtocolError(
            f"packing: {n} words of {bits} bits take {packed_size(max(n, 0), bits)} bytes, found {len(payload)}"
        )
    data = np.frombuffer(payload, np.uint8)
    if (n * bits) % 8 and int(data[-1]) >> (n * bits) % 8:
        raise ProtocolError("packing: the padding bits of the last byte are not zero")
    group = 8 // math.gcd(bits, 8)
    words = np.empty(n, np.uint32)
    for low in range(0, n, _BLOCK):
        count = min(_BLOCK, n - low)
        whole = (count + -count % group) * bits // 8
        block = data[low * bits // 8 : low * bits // 8 + whole]
        if len(block) < whole:
            block = np.concatenate([block, np.zeros(whole - len(block), np.uint8)])
        words[low : low + count] = _unpack_block(block, bits)[:count]
    return words


def _pack_block(block: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """The bytes of whole groups of words (a group is the fewest words that fill whole bytes)."""
    if bits % 8 == 0:
        return _low_bytes(block.astype("<u4", copy=False), bits // 8)
    if bits % 4 == 0:  # two words make one of 40 or 56 bits
        pairs = block[0::2].astype("<u8")
        pairs |= block[1::2].astype("<u8") << np.uint64(bits)
        return _low_bytes(pairs, bits // 4)
    group = 8 // math.gcd(bits, 8)
    rows = block.reshape(-1, group).astype(np.uint64)
    out = np.empty((len(rows), group * bits // 8), np.uint8)
    for byte in range(out.shape[1]):
        word, shift = divmod(8 * byte, bits)
        value = rows[:, word] >> np.uint64(shift)
        if shift + 8 > bits:  # this byte ends in the next word
            value |= rows[:, word + 1] << np.uint64(bits - shift)
        out[:, byte] = value & np.uint64(0xFF)
    return out.reshape(-1)


def _unpack_block(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """The words of whole groups; the inverse of `_pack_block`."""
    if bits % 8 == 0:
        return _widen(data, bits // 8, "<u4").astype(np.uint32, copy=False)
    mask = np.uint64((1 << bits) - 1)
    if bits % 4 == 0:
        pairs = _widen(data, bits // 4, "<u8")
        words = np.empty(2 * len(pairs), np.uint32)
        words[0::2], words[1::2] = pairs & mask, pairs >> np.uint64(bits)
        return words
    group = 8 // math.gcd(bits, 8)
    rows = data.reshape(-1, group * bits // 8).astype(np.uint64)
    out = np.empty((len(rows), group), np.uint32)
    for word in range(group):
        first, shift = divmod(word * bits, 8)
        last = -(-(word + 1) * bits // 8)
        value = np.zeros(len(rows), np.uint64)
        for i, byte in enumerate(range(first, last)):
            value |= rows[:, byte] << np.uint64(8 * i)
        out[:, word] = (value >> np.uint64(shift)) & mask
    return out.reshape(-1)


def _low_bytes(values: NDArray[np.unsignedinteger], width: int) -> NDArray[np.uint8]:
    """The low `width` bytes of each little-endian value, one after another."""
    if width == values.itemsize:
        return np.ascontiguousarray(values).view(np.uint8)
    low = np.dtype({"names": ["low"], "formats": [f"V{width}"], "itemsize": values.itemsize})
    return np.ascontiguousarray(np.ascontiguousarray(values).view(low)["low"]).view(np.uint8)


def _widen(data: NDArray[np.uint8], width: int, kind: str) -> NDArray[np.unsignedinteger]:
    """Each `width` bytes as one little-endian value of the wider kind."""
    out = np.zeros(len(data) // width, kind)
    low = np.dtype({"names": ["low"], "formats": [f"V{width}"], "itemsize": out.itemsize})
    out.view(low)["low"] = data.view(f"V{width}")
    return out


def _check_bits(bits: int) -> None:
    if not 16 <= bits <= 32:
        raise ProtocolError(f"packing: a ring has 16 .. 32 bits, got {bits}")
