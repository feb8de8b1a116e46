"""No protection, and coded updates: what `plain` does, with a coding's bytes in the place of float32 values.

Adversary: none is resisted, as in `plain`. The server reads each client's update. The length of a message follows
from d and the public coding alone.

Wire format, version 1, little-endian: magic "SFPC", version u8, the header of `plain`, the coding's bytes, XXH3-64
of all that precedes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import xxhash

from securefed.errors import ProtocolError
from securefed.protect.plain import CHECK, HEADER, PlainClient, PlainServer, check_header, header
from securefed.types import Reveals, RoundParameters, Update, Vector

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy

_MAGIC, _VERSION = b"SFPC", 1


class Coded(Protocol):
    """What this file asks of `securefed.compression.Coding`."""

    def bytes_of(self, d: int) -> int: ...

    def encode(self, vector: Vector, generator: np.random.Generator) -> bytes: ...

    def decode(self, payload: bytes, d: int) -> Vector: ...


@dataclass(frozen=True)
class Packed:
    """Coded updates in the clear.

    Attributes:
        coding: how an update is written. seed: of the job, for codings that round at random.
        keep_updates: False keeps only the running sum, O(d) memory.
    """

    coding: Coded
    seed: int = 0
    keep_updates: bool = True

    @property
    def name(self) -> str:
        return "plain"

    @property
    def reveals(self) -> Reveals:
        return "updates"

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> PackedClient:
        return PackedClient(parameters, client, packed=self)

    def server(self, parameters: RoundParameters) -> PackedServer:
        return PackedServer(parameters, self.keep_updates, packed=self)


@dataclass
class PackedClient(PlainClient):
    """One message: the coded update."""

    packed: Packed | None = None

    def payload(self, update: Update) -> bytes:
        assert self.packed is not None
        return encode(update, self.parameters, self.packed)


@dataclass
class PackedServer(PlainServer):
    """Reads coded messages; whatever is malformed is refused, counted and reported."""

    packed: Packed | None = None

    def read(self, payload: bytes, sender: int) -> tuple[float, Vector]:
        assert self.packed is not None
        return decode(payload, self.parameters, sender, self.packed)


def encode(update: Update, parameters: RoundParameters, packed: Packed) -> bytes:
    """The message of one update.

    Raises:
        ProtocolError: the size is not the round's, or a coordinate is not finite.
    """
    if update.vector.shape != (parameters.size,) or not np.isfinite(update.vector).all():
        raise ProtocolError(
            f"plain: an update of round {parameters.round} is {parameters.size} finite numbers, found shape "
            f"{update.vector.shape} or a number that is not finite"
        )
    words = hashlib.sha256(f"{packed.seed}:{update.round}:{update.client}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(words[:16], "big")))
    body = header(_MAGIC, _VERSION, update, parameters) + packed.coding.encode(update.vector, generator)
    return body + CHECK.pack(xxhash.xxh3_64_intdigest(body))


def decode(payload: bytes, parameters: RoundParameters, sender: int, packed: Packed) -> tuple[float, Vector]:
    """(weight, vector) of a message, every field checked before it is used.

    Raises:
        ProtocolError: as `plain.decode`, and bytes that the coding does not make.
    """
    expected = HEADER.size + packed.coding.bytes_of(parameters.size) + CHECK.size
    if len(payload) != expected:
        raise ProtocolError(f"plain: expected {expected} bytes, found {len(payload)}")
    weight = check_header(payload, parameters, sender, _MAGIC, _VERSION)
    vector = packed.coding.decode(payload[HEADER.size : -CHECK.size], parameters.size)
    if not np.isfinite(vector).all():
        raise ProtocolError("plain: non-finite coordinate")
    return weight, vector
