"""No protection: every update travels in the clear. The null object beside masking and CKKS.

Adversary: none is resisted. The server sees each client's update; without DP it can learn from it
what an honest-but-curious server can learn. Use it where the server is trusted, or in simulation.

Wire format, version 2, little-endian: magic "SFPL", version u8, header (see `HEADER`), d float32
values, XXH3-64 of all that precedes. The checksum finds accidents, not liars: nothing is signed here.
(A CRC-32 cost as much as all the rest of a round of 1e5 weights; XXH3 costs a fourteenth of it.)
"""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from securefed.errors import ProtocolError
from securefed.types import SERVER, Collected, Message, Output, Reveals, RoundParameters, Update, Vector

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy
    from securefed.crypto.identity import Identity, Roster

_MAGIC, _VERSION = b"SFPL", 2
HEADER = struct.Struct("<4sB16sIi32s32sdQ")  # magic, version, run, round, client, layout, model, weight, d
CHECK = struct.Struct("<Q")
_AT_ONCE = 16_384  # coordinates of a message that are widened and added at a time


@dataclass(frozen=True)
class Plain:
    """Updates in the clear; `keep_updates = False` keeps only the running sum, O(d) memory."""

    keep_updates: bool = True

    @property
    def name(self) -> str:
        return "plain"

    @property
    def reveals(self) -> Reveals:
        return "updates"

    def join(self, party: int, identity: Identity, roster: Roster, entropy: Entropy) -> Plain:
        """The same for one party alone; it keeps nothing from round to round."""
        return self

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> PlainClient:
        return PlainClient(parameters, client)

    def server(self, parameters: RoundParameters) -> PlainServer:
        return PlainServer(parameters, self.keep_updates)


@dataclass
class PlainClient:
    """One message: the update itself."""

    parameters: RoundParameters
    client: int
    _sent: bool = False

    def start(self) -> Output:
        return Output()

    def receive(self, payload: bytes) -> Output:
        raise ProtocolError(f"plain: client {self.client} expects no message, got {len(payload)} bytes")

    def submit(self, update: Update) -> Output:
        """The message that carries this update.

        Raises:
            ProtocolError: a second submission, or an update of another client, round or size.
        """
        if self._sent:
            raise ProtocolError(
                f"plain: client {self.client} has already sent its update of round {self.parameters.round}"
            )
        if (update.client, update.round) != (self.client, self.parameters.round):
            raise ProtocolError(
                f"plain: session of client {self.client}, round {self.parameters.round} was given the update "
                f"of client {update.client}, round {update.round}"
            )
        payload = self.payload(update)
        self._sent = True
        return Output(send=(Message(self.client, SERVER, payload),))

    def payload(self, update: Update) -> bytes:
        """The bytes of this update."""
        return encode(update, self.parameters)


@dataclass
class PlainServer:
    """Collects the cohort's messages; whatever is malformed is refused, counted and reported."""

    parameters: RoundParameters
    keep_updates: bool
    _rows: dict[int, tuple[float, Vector]] = field(default_factory=dict, repr=False)
    _weights: dict[int, float] = field(default_factory=dict, repr=False)
    _total: NDArray[np.float64] | None = field(default=None, repr=False)
    _scratch: NDArray[np.float64] | None = field(default=None, repr=False)
    _refused: dict[int, str] = field(default_factory=dict)
    _done: bool = False

    @property
    def awaited(self) -> frozenset[int]:
        """Who has not yet sent an update that could be taken."""
        return frozenset() if self._done else frozenset(self.parameters.clients) - self._weights.keys()

    def start(self) -> Output:
        return Output()

    def receive(self, sender: int, payload: bytes) -> Output:
        """Takes one client's message; the result follows when the whole cohort has been heard.

        A malformed message never raises: its sender is listed in `Collected.refused` with the reason.
        """
        if self._done:
            raise ProtocolError(
                f"plain: round {self.parameters.round} has ended; a late message of client {sender} is refused"
            )
        if sender not in self.parameters.clients:
            return Output()  # a stranger's bytes change nothing
        if sender in self._weights:
            self._refused[sender] = "duplicate submission; the first was kept"
            return Output()
        try:
            weight, vector = self.read(payload, sender)
        except ProtocolError as error:
            self._refused[sender] = str(error)
        else:
            self._accept(sender, weight, vector)
        heard = self._weights.keys() | self._refused.keys()
        return self.advance() if len(heard) == len(self.parameters.clients) else Output()

    def read(self, payload: bytes, sender: int) -> tuple[float, Vector]:
        """(weight, vector) of a message, or a ProtocolError that says what is wrong with it."""
        return decode(payload, self.parameters, sender)

    def _accept(self, sender: int, weight: float, vector: Vector) -> None:
        self._refused.pop(sender, None)  # garbage first, then a good message: the good one counts
        self._weights[sender] = weight
        if self.keep_updates:
            self._rows[sender] = (weight, vector)
        else:
            self._add(weight, vector)  # a running sum, so memory stays O(d)

    def _add(self, weight: float, vector: Vector) -> None:
        if self._total is None or self._scratch is None:
            self._total, self._scratch = np.zeros(self.parameters.size), np.empty(_AT_ONCE)
        for i in range(0, len(vector), _AT_ONCE):  # what is widened stays in the processor's cache
            part = vector[i : i + _AT_ONCE]
            wide = self._scratch[: len(part)]
            wide[:] = part  # widened first: a multiplication that widens goes through small buffers
            wide *= weight
            self._total[i : i + _AT_ONCE] += wide

    def advance(self) -> Output:
        """Nobody else will answer: the sum over those who did."""
        if self._done:
            raise ProtocolError(f"plain: round {self.parameters.round} has already ended")
        self._done = True
        survivors = tuple(sorted(self._weights))
        for client in sorted(self._rows):  # ascending, so the sum does not depend on who was faster
            self._add(*self._rows[client])
        total = np.zeros(self.parameters.size) if self._total is None else self._total
        result = Collected(
            survivors=survivors,
            total=total,
            weight=float(sum(self._weights[k] for k in survivors)),
            updates={k: self._rows[k][1] for k in survivors} if self.keep_updates else None,
            weights={k: self._weights[k] for k in survivors},
            refused=dict(self._refused),
        )
        return Output(result=result)


@functools.lru_cache(maxsize=64)
def _run_tag(run: str) -> bytes:
    return hashlib.sha256(run.encode()).digest()[:16]


def encode(update: Update, parameters: RoundParameters) -> bytes:
    """The message of one update. Raises ProtocolError if the size is not the round's."""
    if update.vector.shape != (parameters.size,):
        raise ProtocolError(
            f"plain: an update of round {parameters.round} has shape ({parameters.size},), found {update.vector.shape}"
        )
    front = header(_MAGIC, _VERSION, update, parameters)
    body = np.ascontiguousarray(update.vector, "<f4").data.cast("B")
    check = xxhash.xxh3_64(front)
    check.update(body)
    return b"".join((front, body, CHECK.pack(check.intdigest())))


def header(magic: bytes, version: int, update: Update, parameters: RoundParameters) -> bytes:
    """What stands before an update's values."""
    return HEADER.pack(
        magic,
        version,
        _run_tag(parameters.run),
        parameters.round,
        update.client,
        bytes.fromhex(parameters.layout_digest),
        bytes.fromhex(parameters.model_digest),
        update.weight,
        parameters.size,
    )


def decode(payload: bytes, parameters: RoundParameters, sender: int) -> tuple[float, Vector]:
    """(weight, vector) of a message, every field checked against the round before it is used.

    Raises:
        ProtocolError: wrong length, garbled bytes, another version, run, round, client, layout or
            global model, a weight that is not positive and finite, or a non-finite coordinate.
    """
    expected = HEADER.size + 4 * parameters.size + CHECK.size
    if len(payload) != expected:
        raise ProtocolError(f"plain: expected {expected} bytes, found {len(payload)}")
    weight = check_header(payload, parameters, sender, _MAGIC, _VERSION)
    vector: Vector = np.frombuffer(payload, "<f4", parameters.size, HEADER.size)
    if not np.isfinite(vector).all():
        raise ProtocolError("plain: non-finite coordinate")
    return weight, vector


def check_header(
    payload: bytes, parameters: RoundParameters, sender: int, wanted_magic: bytes, wanted_version: int
) -> float:
    """The weight of a message whose length is right.

    Raises:
        ProtocolError: garbled bytes, another version, run, round, client, layout or global model, or a weight that
            is not positive and finite.
    """
    magic, version, run, round_, client, layout, model, weight, size = HEADER.unpack_from(payload)
    if magic != wanted_magic or version != wanted_version:
        raise ProtocolError(f"plain: not a version {wanted_version} update message")
    check = xxhash.xxh3_64_intdigest(memoryview(payload)[: -CHECK.size])
    if check != CHECK.unpack_from(payload, len(payload) - CHECK.size)[0]:
        raise ProtocolError("plain: garbled bytes, the checksum differs")
    facts: tuple[tuple[str, object, object], ...] = (
        ("run", run, _run_tag(parameters.run)),
        ("round", round_, parameters.round),
        ("client", client, sender),
        ("layout", layout, bytes.fromhex(parameters.layout_digest)),
        ("global model", model, bytes.fromhex(parameters.model_digest)),
        ("size", size, parameters.size),
    )
    for what, found, wanted in facts:
        if found != wanted:
            raise ProtocolError(f"plain: the message is of another {what} than round {parameters.round}'s")
    if not (np.isfinite(weight) and weight > 0):
        raise ProtocolError(f"plain: weight must be positive and finite, found {weight}")
    return float(weight)
