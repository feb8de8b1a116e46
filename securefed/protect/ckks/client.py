"""The client half of CKKS aggregation: fetch the run's context once, encrypt, sign, send."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.keys import KeyPair
from securefed.errors import ProtocolError
from securefed.protect.ckks.context import read_context, write_request
from securefed.protect.ckks.keys import Party, Positions
from securefed.protect.ckks.messages import KEY_HOLDER, Step, read, write
from securefed.protect.ckks.residues import pack
from securefed.protect.ckks.round import CKKSRound
from securefed.types import SERVER, Message, Output, Update

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy


class CKKSClient:
    """One client in one round.

    What it can be talked into: encrypting its one update of this round, under a key that the key
    holder of the pinned roster has signed for this run. It decrypts nothing, and with a public key it
    cannot.

    Args:
        round: what this client itself knows of the round; a message about another is refused.
        party: its identity, the roster, the contexts it already has.
        entropy: for the key that a shared key is sealed to.
    """

    def __init__(self, round: CKKSRound, party: Party, entropy: Entropy) -> None:
        self._round, self._party = round, party
        self._transport = KeyPair.generate(entropy) if round.trust == "shared_key" else None
        self._set = round.plan.set
        self._positions: Positions | None = None
        self._values: NDArray[np.float64] | None = None
        self._submitted = self._sent = False
        self._informed = self._set.name in party.contexts and round.encrypted_share == 1

    def start(self) -> Output:
        """Asks for the context, or for which coordinates to encrypt, where it does not know."""
        if self._informed:
            return Output()
        known = self._party.contexts.get(self._set.name)
        body = write_request(None if known is None else known.digest, self._transport)
        return self._send(Step.REQUEST, KEY_HOLDER, body)

    def receive(self, payload: bytes) -> Output:
        """Takes the key holder's context.

        Raises:
            ProtocolError: not signed by the key holder for this client and round, or no context.
        """
        envelope = read(payload, KEY_HOLDER, self._party.id, self._round, self._party.roster)
        if envelope.step is not Step.CONTEXT:
            raise ProtocolError(
                f"ckks: client {self._party.id} expects a context, got {envelope.step.name.lower()}"
            )
        known = self._party.contexts.get(self._set.name)
        context, positions = read_context(
            envelope.body, self._round, known, self._transport, self._party.schemes
        )
        if self._sent or self._informed:
            return Output()  # a second copy changes nothing
        self._positions = positions
        self._party.contexts[self._set.name] = context
        self._informed = True
        return self._encrypted()

    def submit(self, update: Update) -> Output:
        """Encrypts the update once the context is there; one that cannot go in is signed off with its reason.

        Raises:
            ProtocolError: a second submission, or an update of another client, round or size.
        """
        base, me = self._round.base, self._party.id
        if self._submitted:
            raise ProtocolError(f"ckks: client {me} has already submitted its update of round {base.round}")
        if (update.client, update.round) != (me, base.round) or update.vector.shape != (base.size,):
            raise ProtocolError(
                f"ckks: session of client {me}, round {base.round}, size {base.size} was given an update of client "
                f"{update.client}, round {update.round}, shape {update.vector.shape}"
            )
        self._submitted = True
        refusal = self._refusal(update)
        if refusal is not None:
            self._sent = True
            return self._send(Step.LEAVE, SERVER, refusal.encode())
        unit = self._round.plan.unit
        self._values = update.vector.astype(np.float64) * (update.weight / unit)
        if self._round.secret_weights:
            self._values = np.append(self._values, update.weight / self._round.max_weight)
        return self._encrypted()

    def _refusal(self, update: Update) -> str | None:
        """Why this update cannot be encrypted, None if it can; says nothing about its values."""
        bound, most = self._round.value_range, self._round.max_weight
        public = self._round.public_weight(self._party.id)
        where = f"client {self._party.id}, submit"
        if not np.isfinite(update.vector).all():
            return f"{where}: the update has a non-finite coordinate"
        if np.abs(update.vector).max(initial=0.0) > bound:
            return f"{where}: a coordinate lies beyond value_range={bound:g}; raise value_range or clip the update"
        if not 0 < update.weight <= most:
            return f"{where}: its weight lies outside (0, max_weight={most:g}]; raise max_weight"
        if public is not None and update.weight != public:
            return f"{where}: its weight is not the public {public:g}"
        return None

    def _encrypted(self) -> Output:
        """The submission, once both the update and the context are there."""
        context = self._party.contexts.get(self._set.name)
        if self._values is None or self._sent or not self._informed:
            return Output()
        if context is None or context.scheme is None:
            raise ProtocolError(f"ckks: client {self._party.id}, submit: the context that came holds no key")
        values, clear = self._split(self._values)
        words = context.scheme.encrypt(values, self._round.plan.log2_scale)
        self._sent, self._values = True, None
        return self._send(Step.SUBMIT, SERVER, context.digest, clear, pack(words, self._set.primes))

    def _split(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], bytes]:
        """(what is encrypted, what travels in clear as float32)."""
        if self._positions is None or self._positions.size == self._round.base.size:
            return values, b""
        hidden = np.zeros(values.size, bool)
        hidden[self._positions] = True
        hidden[self._round.base.size :] = True  # a secret weight always is
        return values[hidden], (values[~hidden]).astype("<f4").tobytes()

    def _send(self, step: Step, receiver: int, *parts: bytes) -> Output:
        me = self._party.id
        payload = write(step, me, receiver, self._round, self._party.identity, parts)
        return Output(send=(Message(me, receiver, payload),))

    def __repr__(self) -> str:
        return f"CKKSClient({self._party.id}, round {self._round.base.round})"
