"""The key holder: makes the run's keys, hands out the context, opens one sum a round and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ProtocolError
from securefed.protect.ckks.context import read_request, write_context
from securefed.protect.ckks.keys import HolderParty, Positions, context_digest
from securefed.protect.ckks.messages import (
    DIGEST,
    KEY_HOLDER,
    Envelope,
    Step,
    claimed_sender,
    read,
    read_ids,
    write,
    write_ids,
)
from securefed.protect.ckks.residues import Words, pack, unpack
from securefed.protect.ckks.round import CKKSRound
from securefed.protect.ckks.scheme import Scheme
from securefed.protect.ckks.submission import Sum
from securefed.types import SERVER, Message, Output

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy


class CKKSKeyHolder:
    """The key holder in one round.

    It opens at most one sum a round, of at least `min_survivors` clients, and adds noise to it. It cannot
    see whether what a server calls a sum is one client's ciphertext; with `verified` it adds the signed
    ciphertexts itself and can.

    Args:
        round: what it knows of the round. party: its identity, the roster, the run's keys.
        entropy: for the noise of what it releases.
    """

    def __init__(self, round: CKKSRound, party: HolderParty, entropy: Entropy) -> None:
        self._round, self._party, self._entropy = round, party, entropy
        self._sum: Sum | None = None
        self._waiting: bytes | None = None

    def start(self) -> Output:
        """Waits to be asked."""
        return Output()

    def receive(self, sender: int, payload: bytes) -> Output:
        """Answers a request for the context or for a sum; bytes that nobody of the roster signed change nothing."""
        try:
            if sender == SERVER and claimed_sender(payload) != SERVER:
                return self._forwarded(claimed_sender(payload), payload)
            envelope = read(payload, sender, KEY_HOLDER, self._round, self._party.roster)
        except ProtocolError:
            return Output()
        try:
            if envelope.step is Step.REQUEST:
                return self._context(envelope)
            if envelope.step is Step.OPEN and sender == SERVER:
                if self._waiting is None and self._missing(envelope.body):
                    self._waiting = bytes(envelope.body)  # they may be under way; asked again, it answers
                    return Output()
                return self._open(envelope.body)
        except ProtocolError as error:
            return self._deny(sender, str(error))
        return Output()

    # ----------------------------------------------------------------------------------------- context

    def _keys(self) -> tuple[Scheme, bytes, bytes]:
        """(the scheme with the secret key, what clients get, the context's digest), made when first asked for."""
        chosen, trust = self._round.plan.set, self._round.trust
        if chosen.name not in self._party.keys:
            scheme = Scheme(chosen)
            public = scheme.generate()
            words = scheme.secret_words() if trust == "shared_key" else public
            self._party.keys[chosen.name] = scheme, pack(words, chosen.key_primes)
        scheme, key = self._party.keys[chosen.name]
        return scheme, key, context_digest(self._round.base.run, chosen, trust, key)

    def _context(self, envelope: Envelope) -> Output:
        known, transport = read_request(envelope.body)
        _, key, digest = self._keys()
        wanted = b"" if envelope.sender == SERVER or known == digest else key
        body = write_context(digest, wanted, self._round, transport, self._positions, self._entropy)
        return self._send(Step.CONTEXT, envelope.sender, body)

    @property
    def _positions(self) -> Positions | None:
        """The coordinates that are encrypted, None for all."""
        if self._round.encrypted_share == 1:
            return None
        return self._party.sensitive.get(self._round.base.layout_digest)

    # --------------------------------------------------------------------------------------------- sum

    def _running(self) -> Sum:
        if self._sum is None:
            self._sum = Sum(self._round, self._keys()[2], self._positions)
        return self._sum

    def _forwarded(self, client: int, payload: bytes) -> Output:
        """A client's signed submission that the server passes on; added here where the sum is verified."""
        if self._round.trust == "verified" and client in self._round.base.clients:
            envelope = read(payload, client, SERVER, self._round, self._party.roster)
            if envelope.step is Step.SUBMIT:
                self._running().take(client, envelope.body, add=True)
        if self._waiting is None or self._missing(self._waiting):
            return Output()
        return self._open(memoryview(self._waiting))

    def _missing(self, body: bytes | memoryview) -> bool:
        """Whether a sum is asked for whose signed ciphertexts have not all come."""
        survivors, _ = read_ids(memoryview(body)[DIGEST:], self._round.base.clients)
        return self._round.trust == "verified" and bool(set(survivors) - self._running().clients)

    def _open(self, body: memoryview) -> Output:
        """The decrypted, noised sum.

        Raises:
            ProtocolError: the round's sum was opened before, too few clients, another context, or
                ciphertexts that are none.
        """
        round, plan = self._round, self._round.plan
        where = "ckks: the key holder, open"
        scheme, _, digest = self._keys()
        if bytes(body[:DIGEST]) != digest:
            raise ProtocolError(
                f"{where}: ciphertexts under another context than this holder's; start a new run"
            )
        survivors, rest = read_ids(body[DIGEST:], round.base.clients)
        if len(survivors) < round.min_survivors:
            raise ProtocolError(
                f"{where}: a sum of {len(survivors)} is below min_survivors={round.min_survivors}"
            )
        self._waiting = None
        if (round.base.run, round.base.round) in self._party.opened:
            raise ProtocolError(f"{where}: a sum of round {round.base.round} has been opened; one a round")
        words = self._words(survivors, rest)
        values = scheme.decrypt(words, plan.log2_scale)[: self._running().hidden + round.secret_weights]
        self._party.opened.add((round.base.run, round.base.round))
        values += self._noise(values.size)
        self._learn(values)
        return self._send(Step.SUM, SERVER, write_ids(survivors), values.astype("<f8").tobytes())

    def _words(self, survivors: tuple[int, ...], rest: memoryview) -> Words:
        plan, running = self._round.plan, self._running()
        if self._round.trust != "verified":
            return unpack(rest, running.ciphertexts, 2, plan.set.degree, plan.set.primes)
        if set(survivors) != running.clients or running.words is None or len(rest):
            raise ProtocolError(
                f"ckks: the key holder, open: the server names clients {list(survivors)}, signed ciphertexts came of "
                f"{sorted(running.clients)}"
            )
        return running.words

    def _noise(self, size: int) -> NDArray[np.float64]:
        """Gaussian noise in units of a slot: the guard, or the flooding that was asked for."""
        base = self._round.base
        stream = self._entropy.stream("ckks release", base.run, base.round)
        return stream.normal(size) * self._round.plan.release_std

    def _learn(self, values: NDArray[np.float64]) -> None:
        """After a whole sum: which coordinates are the most sensitive, by the magnitude of what was released."""
        round = self._round
        if round.encrypted_share == 1 or self._positions is not None:
            return
        magnitude = np.abs(values[: round.base.size])
        chosen = np.argpartition(-magnitude, round.encrypted - 1)[: round.encrypted]
        self._party.sensitive[round.base.layout_digest] = np.sort(chosen).astype(np.int64)

    # ------------------------------------------------------------------------------------------ sending

    def _deny(self, receiver: int, reason: str) -> Output:
        return self._send(Step.DENY, receiver, reason.encode()) if receiver == SERVER else Output()

    def _send(self, step: Step, receiver: int, *parts: bytes) -> Output:
        payload = write(step, KEY_HOLDER, receiver, self._round, self._party.identity, parts)
        return Output(send=(Message(KEY_HOLDER, receiver, payload),))

    def __repr__(self) -> str:
        return f"CKKSKeyHolder(round {self._round.base.round}, keys hidden)"
