"""What is kept of one shard as a file: a head, then safetensors-like JSON and arrays in authenticated chunks.

    head (128 bytes) | body: u64 n, n bytes of JSON, arrays from multiples of 64 bytes | 16 bytes of tag a chunk

Body and tags are those of `crypto.chunks`, whose key is derived from the head. In the clear the arrays are mapped where they
lie; sealed ones are opened into memory. No pickle; numbers as they are, in little-endian order, so they come back to the bit.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.crypto.chunks import CHUNK_BYTES, TAG_BYTES, Chunks, count
from securefed.crypto.site_key import SiteKey
from securefed.errors import DataError
from securefed.training.feed import CachedStates

MAGIC, VERSION = b"SFSTATES", 1
_HEAD = struct.Struct("<8sHB5x8s32s32sQQ")
HEAD_BYTES, ALIGN, SALT_BYTES = 128, 64, 32
TYPES = {torch.float32: "F32", torch.int32: "I32"}
_NUMPY = {"F32": "<f4", "I32": "<i4"}


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of itself; all of it is authenticated with every chunk.

    Attributes:
        sealed: whether the body is encrypted. key_id: `SiteKey.id`. name: the file's own. salt: fresh for each file.
        length: bytes of the body. size: bytes of the arrays in it.
    """

    sealed: bool
    key_id: bytes
    name: bytes
    salt: bytes = field(repr=False)
    length: int
    size: int

    def pack(self) -> bytes:
        """The 128 bytes at the file's start."""
        fields = (self.key_id, self.name, self.salt, self.length, self.size)
        return _HEAD.pack(MAGIC, VERSION, self.sealed, *fields).ljust(HEAD_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes, key: SiteKey, name: bytes) -> Head:
        """The head of the file that should have this name.

        Raises:
            DataError: it is no such file, of another version, under another key, or another file.
        """
        if len(data) != HEAD_BYTES or data[: len(MAGIC)] != MAGIC:
            raise DataError("it is no file of frozen states")
        _, version, sealed, key_id, found, salt, length, size = _HEAD.unpack_from(data)
        if version != VERSION:
            raise DataError(f"it has version {version}, this release reads {VERSION}")
        if key_id != key.id:
            raise DataError("it was written under another key")
        if found != name:
            raise DataError("it is another file under this name")
        head = cls(bool(sealed), key_id, found, salt, length, size)
        if head.pack() != data:  # bytes that no field holds are not authenticated, so they must be as written
            raise DataError("its head was changed")
        return head

    @property
    def file_bytes(self) -> int:
        """What the whole file takes."""
        return HEAD_BYTES + self.length + TAG_BYTES * count(self.length)

    def chunks(self, key: SiteKey) -> Chunks:
        """The body's chunks under the key that only this head leads to."""
        return Chunks(key.file_key(self.pack(), self.salt), self.length, self.sealed)


class Body:
    """Named arrays, each given in one or several parts, as the bytes of a body; without a copy of the whole.

    Args:
        parts: name -> tensors of one type (`TYPES`) that differ in their first dimension alone. facts: small numbers beside them.
    """

    def __init__(self, parts: Mapping[str, Sequence[torch.Tensor]], facts: Mapping[str, int]) -> None:
        self._parts = {name: tensors for name, tensors in parts.items() if tensors}
        self.size = sum(t.numel() * t.element_size() for tensors in self._parts.values() for t in tensors)
        tree: dict[str, Any] = {}
        offset = 0
        for name, tensors in self._parts.items():
            shape = [sum(len(t) for t in tensors), *tensors[0].shape[1:]]
            tree[name] = {"dtype": TYPES[tensors[0].dtype], "shape": shape, "offset": offset}
            offset = _up(offset + tensors[0].element_size() * int(np.prod(shape)))
        text = json.dumps({"facts": dict(facts), "tensors": tree}).encode()
        self._start = text.ljust(_up(len(text) + 8) - 8)
        self.length = 8 + len(self._start) + offset

    @classmethod
    def of(cls, states: CachedStates) -> Body:
        """Of a shard's states."""
        parts = {
            "pooled": [] if states.pooled is None else [states.pooled],
            "hidden": list(states.hidden),
            "below": [] if states.below is None else [states.below],
        }
        return cls(parts, {"cut": states.cut})

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The body in order."""
        yield struct.pack("<Q", len(self._start))
        yield self._start
        for tensors in self._parts.values():
            done = 0
            for tensor in tensors:
                array = np.ascontiguousarray(tensor.detach().cpu().numpy())
                array = array.astype(array.dtype.newbyteorder("<"), copy=False)
                done += array.nbytes
                yield array.reshape(-1).view(np.uint8).data
            yield bytes(_up(done) - done)


def write(file: BinaryIO, head: Head, body: Body, key: SiteKey) -> None:
    """Head, chunks and tags, in order.

    Raises:
        OSError: the disk is full, or whatever else stops writing.
    """
    file.write(head.pack())
    chunks, tags = head.chunks(key), []
    for number, data in enumerate(_cut(body.pieces())):
        stored, tag = chunks.close(number, data)
        file.write(stored)
        tags.append(tag)
    file.write(b"".join(tags))


@dataclass(frozen=True, slots=True)
class Content:
    """What a file held: whole arrays by name, and the facts beside them."""

    arrays: Mapping[str, torch.Tensor] = field(repr=False)
    facts: Mapping[str, int]

    def states(self, lengths: Sequence[int]) -> CachedStates:
        """A shard's states, hidden ones cut by the records' lengths.

        Raises:
            DataError: they are of other records.
        """
        wanted = {"hidden": sum(lengths)}
        if any(len(t) != wanted.get(name, len(lengths)) for name, t in self.arrays.items()):
            raise DataError("it holds the states of other records")
        hidden = self.arrays.get("hidden")
        ragged = () if hidden is None else cut_by(hidden, lengths)
        pooled, below = self.arrays.get("pooled"), self.arrays.get("below")
        return CachedStates(self.facts["cut"], pooled=pooled, hidden=ragged, below=below)


def cut_by(rows: torch.Tensor, lengths: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Views of one row block each."""
    return tuple(rows[a:b] for a, b in pairwise(accumulate(lengths, initial=0)))


def read(file: BinaryIO, key: SiteKey, name: bytes) -> Content:
    """The content of an open file, every chunk checked; mapped if it is in the clear.

    Args:
        name: that it should have.

    Raises:
        DataError, ProtocolError: it is not what was written under this name and key.
        OSError: it cannot be read.
    """
    head = read_head(file, key, name)
    chunks = head.chunks(key)
    tags = _at(file, HEAD_BYTES + head.length, TAG_BYTES * count(head.length))
    if head.sealed:
        body = torch.empty(head.length, dtype=torch.uint8).numpy()  # aligned as torch's own tensors are
        for number, start, end in chunks.spans():
            data = chunks.open(number, _at(file, HEAD_BYTES + start, end - start), _tag(tags, number))
            body[start:end] = np.frombuffer(data, np.uint8)
    else:
        # The map keeps the file, and so its lock, open for as long as a tensor looks into it.
        whole = mmap.mmap(file.fileno(), head.file_bytes, access=mmap.ACCESS_COPY)
        body = np.frombuffer(whole, np.uint8, head.length, HEAD_BYTES)
        for number, start, end in chunks.spans():
            chunks.open(number, body[start:end].data, _tag(tags, number))
    return _content(body)


def read_head(file: BinaryIO, key: SiteKey, name: bytes) -> Head:
    """The head of an open file of the right length.

    Raises:
        DataError: as `Head.unpack`, or the file is shorter or longer than its head says.
    """
    head = Head.unpack(_at(file, 0, HEAD_BYTES), key, name)
    if os.fstat(file.fileno()).st_size != head.file_bytes:
        raise DataError("it is shorter or longer than it was")
    return head


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _content(body: NDArray[np.uint8]) -> Content:
    n = int.from_bytes(body[:8].tobytes(), "little")
    tree = json.loads(body[8 : 8 + n].tobytes())
    data = body[8 + n :]
    return Content({name: _tensor(data, fact) for name, fact in tree["tensors"].items()}, tree["facts"])


def _tensor(data: NDArray[np.uint8], fact: dict[str, Any]) -> torch.Tensor:
    dtype = np.dtype(_NUMPY[fact["dtype"]])
    raw = data[fact["offset"] : fact["offset"] + dtype.itemsize * int(np.prod(fact["shape"]))]
    return torch.from_numpy(raw.view(dtype).reshape(fact["shape"]))


def _tag(tags: bytes, number: int) -> bytes:
    return tags[TAG_BYTES * number : TAG_BYTES * (number + 1)]


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def _cut(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes]:
    """The pieces' bytes as chunks, the last one shorter; holds two chunks at most."""
    held = bytearray()
    for piece in pieces:
        for start in range(0, len(piece), CHUNK_BYTES):
            held += piece[start : start + CHUNK_BYTES]
            if len(held) > CHUNK_BYTES:  # a chunk that is just full may be the last
                yield bytes(held[:CHUNK_BYTES])
                del held[:CHUNK_BYTES]
    yield bytes(held)
