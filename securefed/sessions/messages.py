"""Wire format of sessions, version 1, little-endian; every message is signed by its sender.

    header     magic "SFSN", version u8, kind u8, two zero bytes, sender i32, round u32, H(run), body length u64
    body       of the kind, below
    signature  Ed25519 over domain, header and SHA-256 of the body

The round's own protocol (masking, plain) travels inside `INPUT`, unchanged.
"""

from __future__ import annotations

import enum
import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from securefed.crypto.encoding import Reader, Writer
from securefed.crypto.identity import SIGNATURE_BYTES, Identity, Roster
from securefed.errors import ProtocolError
from securefed.privacy.chain import DIGEST, MOST_LINKS, Head
from securefed.types import SERVER, Vector

MAGIC, VERSION = b"SFSN", 1
_DOMAIN = b"securefed session v1"
_HEADER = struct.Struct("<4sBBxxiI32sQ")
MOST_CLIENTS = 1 << 16
MOST_PARAMETERS = 1 << 31


class Kind(enum.IntEnum):
    """OFFER, BEGIN, END, CLOSE come from the server, ANSWER from a client, INPUT from both."""

    OFFER = 0
    ANSWER = 1
    BEGIN = 2
    INPUT = 3
    END = 4
    CLOSE = 5


class Sealed(NamedTuple):
    """A parsed message; nothing in it has been authenticated before `check_signature`."""

    kind: Kind
    sender: int
    round: int
    run: bytes
    body: bytes
    signature: bytes
    signed: bytes
    payload: bytes

    def check_signature(self, roster: Roster) -> None:
        """Raises ProtocolError unless the sender it names made it."""
        roster.check(self.sender, self.signed, self.signature)

    @property
    def digest(self) -> bytes:
        """What a later message names it by."""
        return hashlib.sha256(self.signed).digest()


def run_tag(run: str) -> bytes:
    """H(run), 32 bytes."""
    return hashlib.sha256(run.encode()).digest()


def seal(kind: Kind, sender: int, round: int, run: bytes, body: bytes, identity: Identity) -> bytes:
    """The bytes of a message."""
    head = _HEADER.pack(MAGIC, VERSION, kind, sender, round, run, len(body))
    return head + body + identity.sign(_signed(head, body))


def unseal(payload: bytes) -> Sealed:
    """The parts of a message.

    Raises:
        ProtocolError: another length, magic, version or kind.
    """
    if len(payload) < _HEADER.size + SIGNATURE_BYTES:
        raise ProtocolError(f"session: a message of {len(payload)} bytes is too short")
    head = payload[: _HEADER.size]
    magic, version, kind, sender, round_, run, size = _HEADER.unpack(head)
    if magic != MAGIC or head[6:8] != b"\0\0":
        raise ProtocolError("session: not a session message")
    if version != VERSION:
        raise ProtocolError(f"session: this side speaks version {VERSION}, found version {version}")
    if kind not in set(Kind):
        raise ProtocolError(f"session: there is no message of kind {kind}")
    if len(payload) != _HEADER.size + size + SIGNATURE_BYTES:
        raise ProtocolError(
            f"session: the message announces a body of {size} bytes, found {len(payload)} in all"
        )
    body, signature = payload[_HEADER.size : -SIGNATURE_BYTES], payload[-SIGNATURE_BYTES:]
    return Sealed(Kind(kind), sender, round_, run, body, signature, _signed(head, body), payload)


def _signed(head: bytes, body: bytes) -> bytes:
    return _DOMAIN + head + hashlib.sha256(body).digest()


# ------------------------------------------------------------------------------------------- bodies


@dataclass(frozen=True, slots=True)
class Terms:
    """What the server's job asks of every client, signed in each offer; a site's policy is held against it.

    Attributes:
        protection: by name. rounds: of the whole run, >= 1.
        min_cohort: no round begins with fewer clients.
        noise_multiplier: that each client adds before it sends; 0 without privacy.
        epsilon, delta: what the job aims at over all rounds, per record; None where it claims nothing.
    """

    protection: str
    rounds: int
    min_cohort: int
    noise_multiplier: float = 0.0
    epsilon: float | None = None
    delta: float | None = None

    @property
    def fault(self) -> str:
        """Why these terms cannot hold, whatever a client does; "" where they can."""
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            return f"noise_multiplier={self.noise_multiplier} is not a number of 0 or more"
        if self.epsilon is None:
            return ""
        if not self.epsilon > 0 or self.delta is None or not 0 < self.delta < 1:
            return (
                f"epsilon={self.epsilon} at delta={self.delta}: epsilon lies above 0, delta between 0 and 1"
            )
        if self.noise_multiplier == 0 and math.isfinite(self.epsilon):
            return (
                "noise_multiplier=0 adds no noise, so no finite epsilon holds; raise it, or claim no epsilon"
            )
        return "" if self.rounds >= 1 else "a run has at least one round"

    def write(self, w: Writer) -> None:
        w.text(self.protection).u32(self.rounds).u32(self.min_cohort).f64(self.noise_multiplier)
        for value in (self.epsilon, self.delta):
            w.u8(value is not None).f64(value or 0.0)

    @classmethod
    def read(cls, r: Reader) -> Terms:
        name, rounds, cohort, noise = r.text(64), r.u32(), r.u32(), r.f64()
        (has_epsilon, epsilon), (has_delta, delta) = ((r.u8(), r.f64()) for _ in range(2))
        return cls(
            name, rounds, cohort, noise, epsilon if has_epsilon else None, delta if has_delta else None
        )


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A round's terms and global model; `since` says from which ledger entry on each client shows its links."""

    terms: Terms
    layout: bytes
    since: Mapping[int, int]
    model: Vector = field(repr=False)

    def encode(self) -> bytes:
        w = Writer()
        self.terms.write(w)
        w.raw(self.layout).u32(len(self.since))
        for client in sorted(self.since):
            w.u32(client).u64(self.since[client])
        return w.u64(self.model.size).raw(np.ascontiguousarray(self.model, "<f4").tobytes()).finish()

    @classmethod
    def decode(cls, body: bytes, size: int) -> Offer:
        r = Reader(body)
        terms, layout = Terms.read(r), r.raw(32)
        since = {r.u32(): r.u64() for _ in range(r.count(MOST_CLIENTS, 12))}
        found = r.u64()
        if found != size:
            raise ProtocolError(f"session: the server's model has {found} numbers, this client's {size}")
        model = np.frombuffer(r.raw(4 * size), "<f4").astype(np.float32)
        r.finish()
        return cls(terms, layout, since, model)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A client's signed no.

    Attributes:
        key: the limit that forbids it, such as "max_epsilon". place: file:line where that stands.
        reason: in words. evidence: the signed message itself, for whoever doubts the server's word.
    """

    client: int
    round: int
    key: str
    place: str
    reason: str
    evidence: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's word on an offer: its ledger's head and the links after the first `start` (None: it keeps no
    ledger), or its refusal."""

    offer: bytes
    head: Head | None = None
    start: int = 0
    links: tuple[bytes, ...] = field(default=(), repr=False)
    refusal: tuple[str, str, str] | None = None

    def encode(self) -> bytes:
        w = Writer().raw(self.offer).u8(self.refusal is None)
        if self.refusal is not None:
            for text, most in zip(self.refusal, (64, 256, 1024), strict=True):
                w.blob(text.encode()[:most])
            return w.finish()
        w.u8(self.head is not None)
        if self.head is not None:
            w.u64(self.head.count).raw(self.head.digest).u64(self.start)
            w.u32(len(self.links)).raw(b"".join(self.links))
        return w.finish()

    @classmethod
    def decode(cls, body: bytes) -> Answer:
        r = Reader(body)
        offer, accepts = r.raw(32), r.u8()
        if not accepts:
            texts = [r.blob(most).decode("utf-8", "replace") for most in (64, 256, 1024)]
            r.finish()
            return cls(offer, refusal=(texts[0], texts[1], texts[2]))
        head: Head | None = None
        links: tuple[bytes, ...] = ()
        start = 0
        if r.u8():
            head, start = Head(r.u64(), r.raw(DIGEST)), r.u64()
            links = tuple(r.raw(DIGEST) for _ in range(r.count(MOST_LINKS, DIGEST)))
        r.finish()
        return cls(offer, head, start, links)


@dataclass(frozen=True, slots=True)
class Begin:
    """Who takes part: their signed answers, so that each sees the others' ledger heads; and the weights' kind."""

    offer: bytes
    secret_weights: bool
    answers: Sequence[bytes] = field(repr=False)

    def encode(self) -> bytes:
        w = Writer().raw(self.offer).u8(self.secret_weights).u32(len(self.answers))
        for payload in self.answers:
            w.blob(payload)
        return w.finish()

    @classmethod
    def decode(cls, body: bytes) -> Begin:
        r = Reader(body)
        offer, secret = r.raw(32), r.u8()
        answers = tuple(r.blob(64 + DIGEST * MOST_LINKS + 512) for _ in range(r.count(MOST_CLIENTS, 4)))
        r.finish()
        return cls(offer, bool(secret), answers)


def check_answer(payload: bytes, round: int, run: bytes, offer: bytes, roster: Roster) -> tuple[int, Answer]:
    """(client, answer) of a signed answer to this offer; raises ProtocolError naming what does not fit."""
    sealed = unseal(payload)
    if (
        sealed.kind is not Kind.ANSWER
        or sealed.sender == SERVER
        or (sealed.round, sealed.run) != (round, run)
    ):
        raise ProtocolError(f"session: not a client's answer to the offer of round {round}")
    sealed.check_signature(roster)
    answer = Answer.decode(sealed.body)
    if answer.offer != offer:
        raise ProtocolError(f"session: client {sealed.sender} answered another offer than this")
    return sealed.sender, answer
