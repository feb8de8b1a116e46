"""Words of b bits side by side on the wire: 2.5 bytes a coordinate for 20 bits instead of 4."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ProtocolError

BLOCK = 1 << 15
"""Words packed at a time; a multiple of 8, so that every block but the last ends on a byte."""
LEAST, MOST = 8, 32


def packed_size(n: int, bits: int) -> int:
    """Bytes of n words of this many bits."""
    return (n * bits + 7) // 8


def pack(words: NDArray[np.uint32], bits: int) -> bytes:
    """n words, each below 2^bits, as a little-endian stream of bits; the last byte is padded with zeros.

    Raises:
        ProtocolError: bits out of range, or a word that does not fit.
    """
    _check(bits)
    n = len(words)
    if bits == 32 or not n:
        return words.astype("<u4", copy=False).tobytes()
    if int(words.max()) >> bits:
        raise ProtocolError(f"a word of {int(words.max()).bit_length()} bits does not fit {bits}")
    payload = io.BytesIO()
    payload.seek(packed_size(n, bits) - 1)
    payload.write(b"\0")  # the whole size at once; getvalue hands over this buffer without a copy
    with payload.getbuffer() as view:
        _pack_into(np.frombuffer(view, np.uint8), words, bits)
    return payload.getvalue()


def _pack_into(out: NDArray[np.uint8], words: NDArray[np.uint32], bits: int) -> None:
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK]
        at = start * bits // 8
        out[at : at + packed_size(len(block), bits)] = _pack_block(block, bits)


def unpack(payload: bytes | memoryview, n: int, bits: int) -> NDArray[np.uint32]:
    """The n words; float-free inverse of `pack`.

    Raises:
        ProtocolError: another length than n words have, or padding that is not zero.
    """
    _check(bits)
    if len(payload) != packed_size(n, bits):
        raise ProtocolError(f"{n} words of {bits} bits have {packed_size(n, bits)} bytes, got {len(payload)}")
    data = np.frombuffer(payload, np.uint8)
    if bits == 32:
        return data.view("<u4").astype(np.uint32, copy=False)
    spare = -n * bits % 8
    if spare and int(data[-1]) >> (8 - spare):
        raise ProtocolError("padding bits are not zero")
    out = np.empty(n, np.uint32)
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        at = start * bits // 8
        out[start : start + count] = _unpack_block(data[at : at + packed_size(count, bits)], count, bits)
    return out


def _pack_block(block: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """The words of a block; where two words end on a byte (16, 20, 24, 28 bits), two at a time."""
    if bits % 4 == 0:
        return _pack_pairs(block, bits)
    groups = -(-len(block) // 8)
    words = np.zeros((groups, 8), np.uint64)
    words.ravel()[: len(block)] = block
    columns = np.zeros((groups, bits), np.uint8)
    for k in range(8):  # eight words make `bits` bytes, and each lies over a few of them
        first = k * bits
        shifted = words[:, k] << np.uint64(first % 8)
        for byte in range((first % 8 + bits + 7) // 8):
            columns[:, first // 8 + byte] |= (shifted >> np.uint64(8 * byte)).astype(np.uint8)
    return columns.ravel()[: packed_size(len(block), bits)]


def _pack_pairs(block: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    if bits == 16:
        return block.astype("<u2").view(np.uint8)
    even = block[0::2].astype("<u8")
    odd = block[1::2].astype("<u8")
    odd <<= np.uint64(bits)
    even[: len(odd)] |= odd
    packed = np.ascontiguousarray(even.view(_low(bits // 4))["low"])
    return packed.view(np.uint8)[: packed_size(len(block), bits)]


def _low(width: int) -> np.dtype[np.void]:
    """The low bytes of a little-endian 64-bit word: copied as one item they move faster than one by one."""
    return np.dtype({"names": ["low"], "formats": [f"V{width}"], "itemsize": 8})


def _unpack_block(data: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint32]:
    if bits % 4 == 0:
        return _unpack_pairs(data, count, bits)
    groups = -(-count // 8)
    columns = np.zeros((groups, bits), np.uint8)
    columns.ravel()[: len(data)] = data
    words = np.empty((groups, 8), np.uint32)
    for k in range(8):
        first = k * bits
        value = np.zeros(groups, np.uint64)
        for byte in range((first % 8 + bits + 7) // 8):
            value |= columns[:, first // 8 + byte].astype(np.uint64) << np.uint64(8 * byte)
        words[:, k] = (value >> np.uint64(first % 8)) & np.uint64((1 << bits) - 1)
    return words.ravel()[:count]


def _unpack_pairs(data: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint32]:
    if bits == 16:
        return data.view("<u2").astype(np.uint32)
    pairs, width = -(-count // 2), bits // 4
    if len(data) < pairs * width:  # an odd word at the end
        data = np.concatenate([data, np.zeros(pairs * width - len(data), np.uint8)])
    both = np.zeros(pairs, "<u8")
    both.view(_low(width))["low"] = data.view(f"V{width}")
    words = np.empty(2 * pairs, np.uint32)
    np.bitwise_and(both, np.uint64((1 << bits) - 1), out=words[0::2], casting="unsafe")
    np.right_shift(both, np.uint64(bits), out=words[1::2], casting="unsafe")
    return words[:count]


def _check(bits: int) -> None:
    if not LEAST <= bits <= MOST:
        raise ProtocolError(f"words have {LEAST} to {MOST} bits, got {bits}")
