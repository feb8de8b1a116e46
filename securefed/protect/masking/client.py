"""The client half of masking: bytes in, bytes out; it trusts nobody but the pinned roster.

This file is the session: what is authentic, what is in order, how it ends. The five steps themselves
are in `playing.py`.
"""

from __future__ import annotations

import hashlib

import numpy as np

from securefed.crypto.entropy import Entropy
from securefed.errors import ProtocolError
from securefed.protect.masking.codec import Codecs, agreed
from securefed.protect.masking.messages import Envelope, Step, open_envelope
from securefed.protect.masking.parameters import MaskingParameters, Policy, run_tag
from securefed.protect.masking.party import Party
from securefed.protect.masking.playing import Playing
from securefed.types import SERVER, Message, Output, RoundParameters, Update


class MaskingClient:
    """One client in one round.

    `receive` raises ProtocolError for bytes that the server did not sign for this step of this round:
    nothing has changed then, and the caller may go on listening. What the server did sign and should
    not have, and what a peer is caught at, ends the session: `Output.abort` says who and what, and the
    server is told in a signed farewell.

    Args:
        base: what this client knows itself of the round; its own model's digest is in it.
        party: its identity, transport key, roster.
        policy: the floors no server can lower.
        entropy: of keys, shares and rounding.
        threads: for the mask streams of large vectors.
        codecs: what travels instead of fixed point; a round without it is refused then.
    """

    playing = Playing
    """The steps; a test puts a careless version here to show what an attack would gain."""

    def __init__(
        self,
        base: RoundParameters,
        party: Party,
        policy: Policy,
        entropy: Entropy,
        *,
        threads: int = 1,
        codecs: Codecs | None = None,
    ) -> None:
        self._codecs = codecs
        self._base, self._party, self._policy, self._threads = base, party, policy, threads
        self._run = run_tag(base.run)
        self._stream = entropy.stream("masking", base.run, base.round, party.id)
        self._awaited: Step | None = Step.ADVERTISE
        self._heard: dict[Step, bytes] = {}
        self._update: Update | None = None
        self._submitted = False
        self._play: Playing | None = None

    def __repr__(self) -> str:
        awaited = "nothing" if self._awaited is None else self._awaited.name.lower()
        return f"MaskingClient(client={self._party.id}, round={self._base.round}, awaits={awaited})"

    def start(self) -> Output:
        """Nothing: the server speaks first."""
        return Output()

    def submit(self, update: Update) -> Output:
        """The update is held until its step; one that cannot be sent makes the client leave, with a reason.

        Raises:
            ProtocolError: a second submission, or an update of another client, round or size.
        """
        base, me = self._base, self._party.id
        if self._submitted:
            raise ProtocolError(
                f"masking: client {me} has already submitted its update of round {base.round}"
            )
        if (update.client, update.round) != (me, base.round):
            raise ProtocolError(
                f"masking: session of client {me}, round {base.round} was given the update of client "
                f"{update.client}, round {update.round}"
            )
        if update.vector.shape != (base.size,) or update.vector.dtype != np.float32:
            raise ProtocolError(
                f"masking: an update of round {base.round} is float32 ({base.size},), found "
                f"{update.vector.dtype} {update.vector.shape}"
            )
        self._submitted, self._update = True, update
        return self._use_update() if self._play is not None and self._awaited is not None else Output()

    def receive(self, payload: bytes) -> Output:
        """The answer to one message of the server.

        Raises:
            ProtocolError: not a message the server signed for this step of this round.
        """
        envelope = self._authentic(payload)
        step, digest = envelope.step, hashlib.sha256(envelope.signed).digest()
        if self._heard.get(step) == digest:
            return Output()  # the same message twice says nothing new
        if self._awaited is None:
            raise ProtocolError(f"masking: client {self._party.id} has ended round {self._base.round}")
        if step in self._heard:
            return self._abort(f"server: it signed two different messages of step {step.name.lower()}")
        if step is not self._awaited:
            raise ProtocolError(
                f"masking: client {self._party.id} waits for {self._awaited.name.lower()}, found {step.name.lower()}"
            )
        self._heard[step] = digest
        try:
            return self._answer(step, envelope)
        except ProtocolError as error:
            return self._abort(str(error))

    def _authentic(self, payload: bytes) -> Envelope:
        """The message, signed by the roster's server for this run and round."""
        envelope = open_envelope(payload)
        header = envelope.header
        if (header.sender, header.run, header.round) != (SERVER, self._run, self._base.round):
            raise ProtocolError(
                f"masking: not a message of the server for round {self._base.round}; a replay?"
            )
        if not self._party.roster.verify(SERVER, envelope.signed, envelope.signature):
            raise ProtocolError("masking: a message in the server's name carries a wrong signature")
        return envelope

    def _answer(self, step: Step, envelope: Envelope) -> Output:
        if step is Step.ADVERTISE:
            return self._take_part(envelope)
        play = self._play
        assert play is not None
        play.require_header(envelope)
        if step is Step.SHARE:
            self._awaited = Step.MASK
            return self._send(play.share(envelope))
        if step is Step.MASK:
            self._awaited = Step.AGREE
            play.hold(envelope)
            return self._use_update()
        if step is Step.AGREE:
            self._awaited = Step.UNMASK
            return self._send(play.agree(envelope))
        output = self._send(play.unmask(envelope))
        self._end()
        return output

    def _take_part(self, envelope: Envelope) -> Output:
        """Compares the server's proposal with what this client knows and demands, then advertises."""
        if envelope.header.model != bytes.fromhex(self._base.model_digest):
            raise ProtocolError("server: it proposes a round on another global model than this client holds")
        try:
            p = MaskingParameters.decode(envelope.body, self._base.model_digest)
            self._policy.check(p)
        except ProtocolError as error:
            raise ProtocolError(f"server: {error}") from None
        if p.base != self._base:
            raise ProtocolError(
                "server: its run, round, cohort, size, layout or weights are not this client's"
            )
        if p.roster != self._party.roster.digest:
            raise ProtocolError("server: it proposes another roster than the pinned one")
        if p.digest != envelope.header.parameters:
            raise ProtocolError("server: its header is not that of its parameters")
        try:
            codec = agreed(p, self._codecs)
        except ProtocolError as error:
            raise ProtocolError(f"server: {error}") from None
        self._party.begin(p.base.run, p.base.round)
        self._play = self.playing(p, self._party, self._stream, self._threads, codec)
        self._awaited = Step.SHARE
        if self._update is not None and (reason := self._play.unfit(self._update)) is not None:
            return self._leave(reason)
        return self._send(self._play.advertise())

    def _use_update(self) -> Output:
        """Sends the masked vector when both the update and the neighbours' shares are there."""
        update, play = self._update, self._play
        assert play is not None
        if update is None:
            return Output()
        if (reason := play.unfit(update)) is not None:
            return self._leave(reason)
        if not play.ready:
            return Output()
        self._update = None
        return self._send(play.mask(update))

    def _send(self, payload: bytes) -> Output:
        return Output(send=(Message(self._party.id, SERVER, payload),))

    def _leave(self, reason: str) -> Output:
        """A signed farewell; the round goes on without this client."""
        told = self._send(self._play.leave(reason)) if self._play is not None else Output()
        self._end()
        return told

    def _abort(self, reason: str) -> Output:
        """The end; the accusation goes to whoever drives this session, and to the server."""
        return Output(send=self._leave(reason).send, abort=reason)

    def _end(self) -> None:
        self._awaited = self._update = None
        if self._play is not None:
            self._play.wipe()
