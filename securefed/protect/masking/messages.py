"""Wire format of masking, version 1, little-endian.

    header     magic "SFMK", version u8, step u8, two zero bytes, sender i32, round u32, H(run),
               H(round parameters), H(global model), length of the body u32, of the attachment u64
    body       of the step, below
    signature  Ed25519 by the sender over domain, header without lengths, and SHA-256 of the body
    attachment what needs no signature: sealed shares, the masked vector (its digest is in the body)
    tag        from clients only: Poly1305 (RFC 8439, section 2.5) over all before it, under a one-time key
               of client and server; zero where they share none yet

Everything has one encoding; lengths are checked before anything is used, and bytes left over are
refused. A message that does not parse raises ProtocolError and nothing else.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

from securefed.errors import ProtocolError
from securefed.protect.masking.parameters import DOMAIN, VERSION, MaskingParameters
from securefed.types import SERVER

MAGIC = b"SFMK"
_START = struct.Struct("<4sBBxxi")
_FIXED = struct.Struct("<4sBBxxiI32s32s32s")
_LENGTHS = struct.Struct("<IQ")
_PARSED = struct.Struct("<4sBBHi100xIQ")
_PREFIX = _FIXED.size + _LENGTHS.size
SIGNATURE, TAG, DIGEST, KEY, SHARE = 64, 16, 32, 32, 33
SEALED = 2 * SHARE + 16
"""Two shares and the tag of ChaCha20-Poly1305."""
DEALT = 2 * DIGEST + SEALED
"""Two commitments and the sealed shares, for one neighbour."""
ADVERT = _PREFIX + 2 * KEY + SIGNATURE + TAG
"""A whole advertisement: two public keys, signed."""
_SERVER = struct.pack("<i", SERVER)
MAX_BODY = 1 << 26
MAX_CLIENTS = 1 << 20


class Step(enum.IntEnum):
    """The five steps; the server's message of a step asks for the clients' message of the same step.

    `LEAVE` is a client's farewell, with its reason, in any step.
    """

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    AGREE = 3
    UNMASK = 4
    LEAVE = 5


_STEPS = tuple(Step)


class Header(NamedTuple):
    """Who speaks, in which step of which round, holding which parameters and which global model."""

    step: Step
    sender: int
    round: int
    run: bytes
    parameters: bytes
    model: bytes

    @classmethod
    def decode(cls, head: bytes) -> Header:
        """The fields of 112 bytes that `open_envelope` has let pass."""
        _, _, step, sender, *rest = _FIXED.unpack(head)
        return cls(Step(step), sender, *rest)

    def encode(self) -> bytes:
        """112 bytes; all of them are signed."""
        return _FIXED.pack(MAGIC, VERSION, *self)


def head_of(step: Step, sender: int, p: MaskingParameters) -> bytes:
    """The encoded header of a message in a round with these parameters."""
    return _START.pack(MAGIC, VERSION, step, sender) + p.header


def signed_bytes(header: bytes, body: bytes) -> bytes:
    """What a signature covers."""
    return b"".join((DOMAIN, header, hashlib.sha256(body).digest()))


class Envelope(NamedTuple):
    """A parsed message; nothing in it has been authenticated yet."""

    head: bytes
    step: Step
    sender: int
    body: bytes
    signature: bytes
    attachment: memoryview
    tag: bytes
    payload: bytes

    def __repr__(self) -> str:
        return f"Envelope(step={self.step.name.lower()}, sender={self.sender}, {len(self.payload)} bytes)"

    @property
    def header(self) -> Header:
        return Header.decode(self.head)

    @property
    def signed(self) -> bytes:
        return signed_bytes(self.head, self.body)

    def tag_holds(self, key: bytes) -> bool:
        """Whether the one-time key made the tag over the rest."""
        if not self.tag:
            return False
        try:
            Poly1305.verify_tag(key, memoryview(self.payload)[:-TAG], self.tag)
        except InvalidSignature:
            return False
        return True


def seal_envelope(
    head: bytes,
    body: bytes,
    signature: bytes,
    attachments: Sequence[bytes | memoryview] = (),
    key: bytes | None = None,
) -> bytes:
    """The bytes of a message.

    Args:
        key: of the tag; None where client and server share none. The server's messages have no tag.

    The attachment is copied once: a masked vector of 10^8 words is 400 MB.
    """
    size = sum(map(len, attachments))
    parts = [head, _LENGTHS.pack(len(body), size), body, signature, *attachments]
    if key is not None:
        mac = Poly1305(key)
        for part in parts:
            mac.update(part)
        parts.append(mac.finalize())
    elif head[8:12] != _SERVER:
        parts.append(bytes(TAG))
    return b"".join(parts)


def open_envelope(payload: bytes) -> Envelope:
    """The parts of a message.

    Raises:
        ProtocolError: too short, too long, another magic, version or step.
    """
    if len(payload) < _PREFIX + SIGNATURE:
        raise ProtocolError(
            f"masking: a message has at least {_PREFIX + SIGNATURE} bytes, found {len(payload)}"
        )
    magic, version, step, zeros, sender, body_size, size = _PARSED.unpack_from(payload)
    if magic != MAGIC or zeros:
        raise ProtocolError("masking: not a masking message")
    if version != VERSION:
        raise ProtocolError(f"masking: this side speaks version {VERSION}, found version {version}")
    if step >= len(_STEPS):
        raise ProtocolError(f"masking: there is no step {step}")
    at = _PREFIX + body_size
    end = at + SIGNATURE + size
    whole = end if sender == SERVER else end + TAG
    if body_size > MAX_BODY or len(payload) != whole:
        raise ProtocolError(f"masking: the message announces {whole} bytes, found {len(payload)}")
    return Envelope(
        payload[: _FIXED.size],
        _STEPS[step],
        sender,
        payload[_PREFIX:at],
        payload[at : at + SIGNATURE],
        memoryview(payload)[at + SIGNATURE : end],
        payload[end:],
        payload,
    )


def check_header(envelope: Envelope, expected: bytes) -> None:
    """Raises ProtocolError naming the first thing in which a message is of another exchange than ours.

    Args:
        expected: an encoded header; its step is not compared.
    """
    if envelope.head[8:] == expected[8:]:
        return
    found, ours = envelope.header, Header.decode(expected)
    for what, is_, should in (
        ("sender", found.sender, ours.sender),
        ("run", found.run, ours.run),
        ("round", found.round, ours.round),
        ("global model", found.model, ours.model),
        ("set of round parameters", found.parameters, ours.parameters),
    ):
        if is_ != should:
            raise ProtocolError(f"masking: the message is of another {what} than ours in round {ours.round}")


# ------------------------------------------------------------------------------------------- bodies


@dataclass(frozen=True, slots=True)
class Cohort:
    """SHARE, from the server: who advertised, the hash of each advertisement, the server's transport key.

    The attachment holds the advertisements of the receiver's neighbours, ascending.
    """

    transport: bytes
    adverts: dict[int, bytes]

    def encode(self) -> bytes:
        return self.transport + encode_ids(self.adverts, list(self.adverts.values()))

    @classmethod
    def decode(cls, body: bytes) -> Cohort:
        ids, digests = decode_ids(body[KEY:], DIGEST)
        return cls(body[:KEY], dict(zip(ids, digests, strict=True)))


def encode_ids(ids: Sequence[int] | dict[int, bytes], values: Sequence[bytes] = ()) -> bytes:
    """Ids as u32, then one value of fixed length for each."""
    listed = list(ids)
    return struct.pack(f"<I{len(listed)}I", len(listed), *listed) + b"".join(values)


def decode_ids(
    body: bytes, width: int, start: int = 0, end: int | None = None
) -> tuple[tuple[int, ...], list[bytes]]:
    """The inverse of `encode_ids`; ids must be ascending without repetition.

    Raises:
        ProtocolError: truncated, left-over bytes, or ids out of order.
    """
    view = body[start:end]
    if len(view) < 4:
        raise ProtocolError("masking: a list is cut short")
    (count,) = struct.unpack_from("<I", view)
    if count > MAX_CLIENTS or len(view) != 4 + count * (4 + width):
        raise ProtocolError(f"masking: a list of {count} entries has the wrong length {len(view)}")
    ids: tuple[int, ...] = struct.unpack_from(f"<{count}I", view, 4)
    if any(a >= b for a, b in itertools.pairwise(ids)):
        raise ProtocolError("masking: a list of clients is not ascending without repetition")
    at = 4 + 4 * count
    return ids, [view[at + i * width : at + (i + 1) * width] for i in range(count if width else 0)]


@dataclass(frozen=True, slots=True)
class Dealing:
    """SHARE, from a client: a commitment to its self-mask seed, and for each holder two commitments and,
    but for itself, the two sealed shares. Holders are its closed neighbourhood, ascending."""

    secret: bytes
    dealt: dict[int, bytes] = field(repr=False)

    def encode(self) -> bytes:
        return self.secret + b"".join(self.dealt.values())

    @classmethod
    def decode(cls, body: bytes, owner: int, holders: Sequence[int]) -> Dealing:
        expected = DIGEST + (len(holders) - 1) * DEALT + 2 * DIGEST
        if len(body) != expected:
            raise ProtocolError(
                f"masking: a dealing to {len(holders)} holders has {expected} bytes, found {len(body)}"
            )
        split = holders.index(owner)
        starts = [DIGEST + DEALT * i - (DEALT - 2 * DIGEST) * (i > split) for i in range(len(holders) + 1)]
        dealt = {h: body[a:b] for h, a, b in zip(holders, starts, starts[1:], strict=False)}
        return cls(body[:DIGEST], dealt)


class Kind(enum.IntEnum):
    """Of a share: of the self-mask seed, opened for survivors, or of the mask key, for the dropped."""

    SELF = 0
    KEY = 1


_OPENED = struct.Struct(f"<IB{SHARE}s")


def encode_opened(opened: Sequence[tuple[int, int, bytes]]) -> bytes:
    """UNMASK, from a client: (owner, kind, share) each."""
    return b"".join(_OPENED.pack(owner, kind, share) for owner, kind, share in opened)


def decode_opened(body: bytes) -> list[tuple[int, int, bytes]]:
    """The inverse; raises ProtocolError on a wrong length or an unknown kind."""
    if len(body) % _OPENED.size:
        raise ProtocolError(
            f"masking: opened shares have {_OPENED.size} bytes each, found {len(body)} in all"
        )
    found = list(_OPENED.iter_unpack(body))
    if any(kind > 1 for _, kind, _ in found):
        raise ProtocolError("masking: there are shares of two kinds only")
    return found


@dataclass(frozen=True, slots=True)
class Quorum:
    """UNMASK, from the server: signatures on the agreement, and for survivors who gave none the signature
    of their masked vector, which tells what they saw when they made it."""

    signed: dict[int, bytes] = field(repr=False)
    stated: dict[int, bytes] = field(repr=False)

    def encode(self) -> bytes:
        first = encode_ids(self.signed, list(self.signed.values()))
        return struct.pack("<I", len(first)) + first + encode_ids(self.stated, list(self.stated.values()))

    @classmethod
    def decode(cls, body: bytes) -> Quorum:
        if len(body) < 4:
            raise ProtocolError("masking: a quorum is cut short")
        (size,) = struct.unpack_from("<I", body)
        signed = decode_ids(body, SIGNATURE, 4, 4 + size)
        stated = decode_ids(body, SIGNATURE, 4 + size)
        return cls(dict(zip(*signed, strict=True)), dict(zip(*stated, strict=True)))


def chain(previous: bytes, body: bytes) -> bytes:
    """The transcript so far and one more broadcast, as 32 bytes."""
    return hashlib.sha256(DOMAIN + b" transcript" + previous + hashlib.sha256(body).digest()).digest()
