"""Wire format of CKKS aggregation, version 1, little-endian.

    header     magic "SFCK", version u8, step u8, two zero bytes, sender i32, receiver i32, round u32,
               H(run), H(round parameters), H(global model)
    body       of the step, below
    signature  Ed25519 by the sender over domain, header and SHA-256 of the body

Every message is signed, whoever carries it, and says for which run, round, parameters, model and
receiver it was made: one of another round, another parameter set or another receiver is refused.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from securefed.errors import ProtocolError
from securefed.types import SERVER

if TYPE_CHECKING:
    from securefed.crypto.identity import Identity, Roster
    from securefed.protect.ckks.round import CKKSRound

KEY_HOLDER = -2
"""The id of the party that holds the secret key; the server is `SERVER`, clients are 0, 1, 2, ..."""
HOLDER_SEAT = 2**32 + KEY_HOLDER
"""The key holder's place among the clients of a roster, which has no third kind of party."""
DOMAIN, MAGIC, VERSION = b"securefed ckks", b"SFCK", 1
_HEADER = struct.Struct("<4sBBxxiiI32s32s32s")
SIGNATURE, DIGEST = 64, 32


class Step(enum.IntEnum):
    """What a message is for.

    REQUEST, party to holder: the run's context, please. CONTEXT, holder to party: the public key (or
    the sealed secret key), and which coordinates are encrypted. SUBMIT, client to server: ciphertexts.
    LEAVE, client to server: nothing will come, with the reason. OPEN, server to holder: whose
    ciphertexts, and their sum. SUM, holder to server: the decrypted sum. DENY, holder to server: why not.
    """

    REQUEST = 0
    CONTEXT = 1
    SUBMIT = 2
    LEAVE = 3
    OPEN = 4
    SUM = 5
    DENY = 6


def party_name(party: int) -> str:
    """The party in words."""
    return {SERVER: "the server", KEY_HOLDER: "the key holder"}.get(party, f"client {party}")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message whose signature holds, made for this receiver and this round."""

    step: Step
    sender: int
    body: memoryview = field(repr=False)


def _signed(header: bytes, body: bytes | memoryview) -> bytes:
    return DOMAIN + header + hashlib.sha256(body).digest()


def _header(step: int, sender: int, receiver: int, round: CKKSRound) -> bytes:
    base = round.base
    run, model = hashlib.sha256(base.run.encode()).digest(), bytes.fromhex(base.model_digest)
    return _HEADER.pack(MAGIC, VERSION, step, sender, receiver, base.round, run, round.digest, model)


def write(
    step: Step, sender: int, receiver: int, round: CKKSRound, identity: Identity, parts: Sequence[bytes]
) -> bytes:
    """The bytes of a signed message."""
    header, body = _header(step, sender, receiver, round), b"".join(parts)
    return b"".join((header, body, identity.sign(_signed(header, body))))


def read(payload: bytes, sender: int, receiver: int, round: CKKSRound, roster: Roster) -> Envelope:
    """The message, if `sender` signed it for `receiver` in this round.

    Raises:
        ProtocolError: cut short, garbled, forged, or of another run, round, set of parameters, global
            model or party; the error names the first difference.
    """
    who = f"ckks: {party_name(receiver)}, message of {party_name(sender)}"
    if len(payload) < _HEADER.size + SIGNATURE:
        raise ProtocolError(f"{who}: cut short, {len(payload)} bytes")
    view = memoryview(payload)
    header, body = view[: _HEADER.size], view[_HEADER.size : len(payload) - SIGNATURE]
    magic, version, step, said, to, number, run, parameters, model = _HEADER.unpack(header)
    if magic != MAGIC or version != VERSION or step not in Step.__members__.values():
        raise ProtocolError(f"{who}: not a version {VERSION} message of this protocol")
    wanted = _HEADER.unpack(_header(step, sender, receiver, round))
    facts = (
        ("party", (said, to), wanted[3:5]),
        ("run", run, wanted[6]),
        ("round", number, wanted[5]),
        ("global model", model, wanted[8]),
        ("set of round parameters", parameters, wanted[7]),
    )
    for what, found, expected in facts:
        if found != expected:
            raise ProtocolError(
                f"{who}: step {Step(step).name.lower()}: of another {what}; a replay or a mix-up"
            )
    seat = HOLDER_SEAT if sender == KEY_HOLDER else sender
    if not roster.accepts(seat, _signed(bytes(header), body), payload[-SIGNATURE:]):
        raise ProtocolError(f"{who}: step {Step(step).name.lower()}: the signature does not hold")
    return Envelope(Step(step), sender, body)


def write_ids(ids: Sequence[int]) -> bytes:
    """Clients, ascending."""
    return struct.pack(f"<I{len(ids)}I", len(ids), *ids)


def read_ids(body: memoryview, cohort: Sequence[int]) -> tuple[tuple[int, ...], memoryview]:
    """(clients, what follows them).

    Raises:
        ProtocolError: cut short, not ascending without repetition, or not of the cohort.
    """
    if len(body) < 4 or len(body) < 4 + 4 * (count := struct.unpack_from("<I", body)[0]):
        raise ProtocolError("ckks: a list of clients is cut short")
    ids: tuple[int, ...] = struct.unpack_from(f"<{count}I", body, 4)
    if list(ids) != sorted(set(ids)) or not set(ids) <= set(cohort):
        raise ProtocolError("ckks: a list of clients is not ascending, or names strangers")
    return ids, body[4 + 4 * count :]


def claimed_sender(payload: bytes) -> int:
    """Who a message says it is of, unchecked; raises ProtocolError where it is too short to say."""
    if len(payload) < _HEADER.size:
        raise ProtocolError("ckks: a message is cut short")
    sender: int = _HEADER.unpack_from(payload)[3]
    return sender
