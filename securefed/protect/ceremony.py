"""The drawing of groups over a network: two signed messages of every client, relayed by a server nobody trusts.

    client -> server   commit  its commitment to a nonce
    server -> clients  all commitments with their signatures
    client -> server   open    the nonce, signed together with a digest of all commitments
    server -> clients  all nonces with their signatures

Each client checks every signature against the roster that it pinned, and draws the groups itself. An opening is signed
over the commitments its sender saw, so a server that shows different ones to different clients is found out by
all. A client that stays silent ends the ceremony by name (`drawing.py` says what such a refusal gains).

Wire format, version 1, little-endian: magic "SFGC", version u8, step u8; then from a client its value (32 bytes) and
signature (64), from the server u32 count and for each client u32 id, value, signature, ids ascending.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from securefed.crypto.encoding import Reader, Writer
from securefed.crypto.entropy import Entropy
from securefed.crypto.identity import SIGNATURE_BYTES, Identity, Roster
from securefed.errors import ProtocolError
from securefed.protect.drawing import NONCE, Groups, commitment, cut, joint_seed
from securefed.protect.masking.party import Party
from securefed.types import SERVER, Message, Output

_MAGIC, _VERSION = b"SFGC", 1
_DOMAIN = b"securefed groups ceremony v1"
COMMIT, OPEN = 1, 2
_MOST = 1 << 20
_ENTRY = 4 + NONCE + SIGNATURE_BYTES

Signed = Mapping[int, tuple[bytes, bytes]]
"""client -> (value, signature)."""


@dataclass(frozen=True)
class Terms:
    """What the parties agree on before: the run, who they are, the size of a group.

    Two parties with other terms cannot complete the ceremony: all of it is under every signature.
    """

    run: str
    roster: Roster
    size: int

    def said(self, step: int, client: int, value: bytes, before: bytes = b"") -> bytes:
        """The bytes that a client signs: its value, and for an opening the digest of all commitments."""
        writer = Writer().raw(_DOMAIN).text(self.run).raw(self.roster.digest).u32(self.size).u8(step)
        return writer.u32(client).blob(value).blob(before).finish()


def _digest(entries: Signed) -> bytes:
    writer = Writer().raw(_DOMAIN + b" commitments")
    for client in sorted(entries):
        writer.u32(client).raw(entries[client][0])
    return hashlib.sha256(writer.finish()).digest()


def _head(step: int) -> Writer:
    return Writer().raw(_MAGIC).u8(_VERSION).u8(step)


def _reader(payload: bytes, step: int) -> Reader:
    reader = Reader(payload)
    if reader.raw(4) != _MAGIC or reader.u8() != _VERSION or reader.u8() != step:
        raise ProtocolError(f"grouped: not a version {_VERSION} message of step {step} of the ceremony")
    return reader


def _listed(step: int, entries: Signed) -> bytes:
    writer = _head(step).u32(len(entries))
    for client in sorted(entries):
        value, signature = entries[client]
        writer.u32(client).raw(value).raw(signature)
    return writer.finish()


def _unlisted(payload: bytes, step: int, clients: tuple[int, ...]) -> dict[int, tuple[bytes, bytes]]:
    """Raises ProtocolError unless it names exactly these clients, each once and ascending."""
    reader = _reader(payload, step)
    found = [
        (reader.u32(), reader.raw(NONCE), reader.raw(SIGNATURE_BYTES))
        for _ in range(reader.count(_MOST, _ENTRY))
    ]
    reader.finish()
    if tuple(client for client, _, _ in found) != clients:
        raise ProtocolError(
            f"grouped: the list of step {step} is not of all {len(clients)} clients of the roster"
        )
    return {client: (value, signature) for client, value, signature in found}


@dataclass(eq=False)
class CeremonyClient:
    """One client's part. After the last message `groups` is what it drew; None before.

    Attributes:
        checked: digests of signed messages already found genuine; parties of one process may share it, so that a
            simulation of n clients checks n signatures and not n squared.
    """

    terms: Terms
    client: int
    identity: Identity = field(repr=False)
    entropy: Entropy = field(repr=False)
    checked: set[bytes] = field(default_factory=set, repr=False)
    groups: Groups | None = None
    _commitments: dict[int, bytes] = field(default_factory=dict, repr=False)
    _nonce: bytes = field(default=b"", repr=False)
    _before: bytes = field(default=b"", repr=False)

    def start(self) -> Output:
        """The commitment. Raises ProtocolError the second time."""
        if self._nonce:
            raise ProtocolError(f"grouped: client {self.client} has begun the ceremony already")
        t = self.terms
        self._nonce = self.entropy.stream("group nonce", t.run, self.client).bytes(NONCE)
        promised = commitment(self._nonce, self.client, t.run, t.roster.digest)
        return self._send(COMMIT, promised)

    def receive(self, payload: bytes) -> Output:
        """The server's next list.

        Raises:
            ProtocolError: garbled, out of turn, not of the whole roster, a signature that is none, a commitment that
                is not this client's own, or an opening that does not open. The client draws no groups then.
        """
        if not self._nonce or self.groups is not None:
            raise ProtocolError(f"grouped: client {self.client} expects no message of the ceremony now")
        if not self._commitments:
            return self._open(payload)
        entries = self._genuine(OPEN, payload, self._before)
        nonces = {client: value for client, (value, _) in entries.items()}
        seed = joint_seed(self.terms.run, self.terms.roster.digest, self._commitments, nonces)
        self.groups = cut(nonces, self.terms.size, seed)
        return Output()

    def _open(self, payload: bytes) -> Output:
        entries = self._genuine(COMMIT, payload, b"")
        own = commitment(self._nonce, self.client, self.terms.run, self.terms.roster.digest)
        if entries[self.client][0] != own:
            raise ProtocolError(
                f"grouped: the server lists another commitment than client {self.client}'s own"
            )
        self._commitments, self._before = {k: v for k, (v, _) in entries.items()}, _digest(entries)
        return self._send(OPEN, self._nonce, self._before)

    def _genuine(self, step: int, payload: bytes, before: bytes) -> dict[int, tuple[bytes, bytes]]:
        entries = _unlisted(payload, step, tuple(self.terms.roster.clients))
        for client, (value, signature) in entries.items():
            said = self.terms.said(step, client, value, before)
            key = hashlib.sha256(said + signature).digest()
            if key not in self.checked:
                self.terms.roster.check(client, said, signature)
                self.checked.add(key)
        return entries

    def _send(self, step: int, value: bytes, before: bytes = b"") -> Output:
        signature = self.identity.sign(self.terms.said(step, self.client, value, before))
        payload = _head(step).raw(value).raw(signature).finish()
        return Output(send=(Message(self.client, SERVER, payload),))


@dataclass(eq=False)
class CeremonyServer:
    """Collects and relays; it draws the groups as any client does, and can change nothing.

    `refused`: client -> why its message was not taken; the client may send a right one.
    """

    terms: Terms
    groups: Groups | None = None
    refused: dict[int, str] = field(default_factory=dict)
    _step: int = COMMIT
    _lists: dict[int, dict[int, tuple[bytes, bytes]]] = field(default_factory=lambda: {COMMIT: {}, OPEN: {}})

    def receive(self, sender: int, payload: bytes) -> Output:
        """One client's message; a bad one changes nothing."""
        if self.groups is not None or sender not in self.terms.roster.clients:
            return Output()
        try:
            value, signature = self._read(sender, payload)
        except ProtocolError as error:
            self.refused[sender] = str(error)
            return Output()
        entries = self._lists[self._step]
        entries.setdefault(sender, (value, signature))  # what was said first counts
        if len(entries) < len(self.terms.roster.clients):
            return Output()
        return self._relay()

    def advance(self) -> Output:
        """Nobody else will answer: the ceremony ends without groups, and says who was silent."""
        silent = [k for k in self.terms.roster.clients if k not in self._lists[self._step]]
        if self.groups is not None or not silent:
            return Output()
        named = ", ".join(map(str, silent[:5])) + (", ..." if len(silent) > 5 else "")
        return Output(
            abort=f"grouped: no answer from client {named} in step {self._step} of the ceremony; no groups are drawn, "
            "begin again without"
        )

    def _read(self, sender: int, payload: bytes) -> tuple[bytes, bytes]:
        reader = _reader(payload, self._step)
        value, signature = reader.raw(NONCE), reader.raw(SIGNATURE_BYTES)
        reader.finish()
        before = _digest(self._lists[COMMIT]) if self._step == OPEN else b""
        self.terms.roster.check(sender, self.terms.said(self._step, sender, value, before), signature)
        if self._step == OPEN:
            promised = self._lists[COMMIT][sender][0]
            if commitment(value, sender, self.terms.run, self.terms.roster.digest) != promised:
                raise ProtocolError(f"grouped: client {sender} did not open its commitment")
        return value, signature

    def _relay(self) -> Output:
        step, entries = self._step, self._lists[self._step]
        if step == OPEN:
            t, promised = self.terms, {k: v for k, (v, _) in self._lists[COMMIT].items()}
            nonces = {k: v for k, (v, _) in entries.items()}
            self.groups = cut(nonces, t.size, joint_seed(t.run, t.roster.digest, promised, nonces))
        self._step = OPEN
        payload = _listed(step, entries)
        return Output(send=tuple(Message(SERVER, k, payload) for k in self.terms.roster.clients))


def held_in_process(terms: Terms, parties: Mapping[int, Party], entropy: Entropy) -> Groups:
    """The groups of a whole ceremony between parties that all live here, by the messages that would travel."""
    checked: set[bytes] = set()
    clients = {
        k: CeremonyClient(terms, k, parties[k].identity, entropy, checked) for k in terms.roster.clients
    }
    server = CeremonyServer(terms)
    queue = [message for client in clients.values() for message in client.start().send]
    while queue:
        message = queue.pop(0)
        if message.receiver == SERVER:
            queue += server.receive(message.sender, message.payload).send
        else:
            queue += clients[message.receiver].receive(message.payload).send
    if server.groups is None or any(client.groups != server.groups for client in clients.values()):
        raise ProtocolError("grouped: the ceremony ended without groups that all parties drew alike")
    return server.groups
