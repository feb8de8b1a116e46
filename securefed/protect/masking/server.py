"""The server half of masking: it carries, checks and adds, and learns one sum.

Masked vectors are added as they come and dropped, so that memory is O(d), never O(n d); a vector is
checked before it is added, because it could not be taken out again. What a client sends wrongly is
refused and reported with its reason; what makes an exact sum impossible ends the round with one.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from securefed.crypto.packing import packed_size, unpack
from securefed.errors import ProtocolError
from securefed.protect.masking.codec import Codec
from securefed.protect.masking.derivation import advert_tag_key, graph_seed, tag_keys
from securefed.protect.masking.fixedpoint import Words
from securefed.protect.masking.messages import (
    DIGEST,
    KEY,
    Cohort,
    Dealing,
    Envelope,
    Quorum,
    Step,
    chain,
    check_header,
    decode_opened,
    encode_ids,
    head_of,
    open_envelope,
    seal_envelope,
    signed_bytes,
)
from securefed.protect.masking.parameters import MAX_BITS, MaskingParameters
from securefed.protect.masking.party import Party
from securefed.protect.masking.topology import Topology
from securefed.protect.masking.unmasking import Advert, Opened, decode_total, remove_masks
from securefed.types import SERVER, Collected, Message, Output


class Ended(enum.Enum):
    """Why a server no longer listens."""

    RESULT = "a result"
    ABORT = "an abort"


@dataclass(eq=False)
class MaskingServer:
    """The server in one round; `advance` says that nobody else will answer the step.

    Args:
        parameters: what it proposes to the cohort and signs.
        party: its identity, its transport key for this run, the roster.
        threads: for the mask streams of large vectors.
        codec: of these parameters, where something else than fixed point travels.
    """

    parameters: MaskingParameters
    party: Party = field(repr=False)
    threads: int = 1
    codec: Codec | None = None
    step: Step = Step.ADVERTISE
    ended: Ended | None = None
    _refused: dict[int, str] = field(default_factory=dict)
    _dropped: dict[int, str] = field(default_factory=dict)
    _adverts: dict[int, Advert] = field(default_factory=dict, repr=False)
    _dealings: dict[int, Dealing] = field(default_factory=dict, repr=False)
    _digests: dict[int, bytes] = field(default_factory=dict, repr=False)
    _statements: dict[int, bytes] = field(default_factory=dict, repr=False)
    _signed: dict[int, bytes] = field(default_factory=dict, repr=False)
    _answered: set[int] = field(default_factory=set, repr=False)
    _expected: set[int] = field(default_factory=set, repr=False)

    @property
    def awaited(self) -> frozenset[int]:
        """Who has not yet answered this step; empty before the start and after the end."""
        return frozenset() if self.ended is not None else frozenset(self._expected)

    def start(self) -> Output:
        """Proposes the round's parameters, signed, to the whole cohort."""
        p = self.parameters
        p.validate()
        self._expected = set(p.base.clients)
        self._acc: Words = np.zeros(p.base.size + p.tail, np.uint32)
        return self._broadcast(p.encode(), dict.fromkeys(p.base.clients, ()))

    def receive(self, sender: int, payload: bytes) -> Output:
        """Takes one message; a bad one changes nothing and its sender is listed with the reason.

        Raises:
            ProtocolError: the round has ended.
        """
        p = self.parameters
        if self.ended is not None:
            raise ProtocolError(
                f"masking: round {p.base.round} has ended in {self.ended.value}; too late, client {sender}"
            )
        if sender not in p.base.clients:
            return Output()  # a stranger's bytes change nothing
        try:
            envelope = self._checked(sender, payload)
            if envelope.step is Step.LEAVE:
                self._farewell(sender, envelope)
            else:
                self._accept(sender, envelope)
                self._refused.pop(sender, None)  # garbage first, then a good message: the good one counts
        except ProtocolError as error:
            self._refused[sender] = str(error)
        return self._next() if not self._expected else Output()

    def advance(self) -> Output:
        """Nobody else will answer: whoever has not is dropped."""
        if self.ended is not None:
            raise ProtocolError(f"masking: round {self.parameters.base.round} has already ended")
        for client in self._expected:
            self._dropped.setdefault(client, self.step.name.lower())
        self._expected = set()
        return self._next()

    # ---------------------------------------------------------------------------------- what comes in

    def _checked(self, sender: int, payload: bytes) -> Envelope:
        """The message, if its sender made it for this step of this round.

        The tag, under a key that only the two share, says who sent it. The signature is for others, so
        it is checked where others will have to rely on it: see `_check_signed`.
        """
        envelope, p = open_envelope(payload), self.parameters
        step = envelope.step
        check_header(envelope, head_of(step, sender, p))
        if step is not Step.LEAVE and step is not self.step:
            late = "late: this step is over" if step < self.step else "too early"
            raise ProtocolError(f"masking: a message of step {step.name.lower()} came {late}")
        if sender not in self._expected:
            again = (
                "duplicate submission; the first was kept"
                if sender in self._answered
                else "this client has dropped"
            )
            raise ProtocolError(f"masking: {step.name.lower()}: {again}")
        if Step.ADVERTISE < step < Step.LEAVE and not envelope.tag_holds(self._tags(sender)[step]):
            raise ProtocolError(f"masking: {step.name.lower()}: garbled or forged, the tag does not hold")
        self._check_signed(envelope)
        return envelope

    def _check_signed(self, envelope: Envelope) -> None:
        """Checks the signature of whatever has no tag, and of an agreement, which all others will check.

        An advertisement needs it once for each transport key; then its tag will do. A dealing and opened
        shares are checked against commitments; a masked vector's is checked before it is shown to others.
        """
        step, sender, party = envelope.step, envelope.sender, self.party
        if step is Step.ADVERTISE:
            if len(envelope.body) != 2 * KEY or envelope.attachment:
                raise ProtocolError("masking: advertise: not two public keys")
            met = (sender, envelope.body[:KEY])
            if met in party.met:
                key = advert_tag_key(party.shared(met[1]), self.parameters.context, sender)
                if envelope.tag_holds(key):
                    return
            self._verify(sender, envelope.signed, envelope.signature, step)
            party.shared(met[1])  # a key of low order is refused here
            party.met.add(met)
        elif step is Step.AGREE or step is Step.LEAVE:
            self._verify(sender, envelope.signed, envelope.signature, step)

    def _verify(self, client: int, signed: bytes, signature: bytes, step: Step) -> None:
        if not self.party.roster.verify(client, signed, signature):
            raise ProtocolError(f"masking: {step.name.lower()}: client {client} sent a wrong signature")

    def _tags(self, client: int) -> tuple[bytes, ...]:
        advert = self._adverts[client]
        if advert.tags is None:
            shared = self.party.shared(advert.transport)
            advert.tags = tag_keys(shared, self.parameters.context, client, advert.digest)
        return advert.tags

    def _farewell(self, sender: int, envelope: Envelope) -> None:
        self._expected.discard(sender)
        self._dropped[sender] = self.step.name.lower()
        self._refused[sender] = "left: " + envelope.body.decode("utf-8", "replace")[:500]

    def _accept(self, sender: int, envelope: Envelope) -> None:
        body = envelope.body
        if self.step is Step.ADVERTISE:
            digest = hashlib.sha256(envelope.payload).digest()
            self._adverts[sender] = Advert(body[:KEY], body[KEY:], digest, envelope.payload)
        elif self.step is Step.SHARE:
            self._dealings[sender] = Dealing.decode(body, sender, self._topology.holders(sender))
        elif self.step is Step.MASK:
            self._add(sender, envelope)
        elif self.step is Step.AGREE:
            if body != self._transcript:
                raise ProtocolError("masking: agree: it signed another set of survivors than was shown")
            self._signed[sender] = envelope.signature
        else:
            self._opened.take(sender, decode_opened(body))
        self._answered.add(sender)
        self._expected.discard(sender)

    def _add(self, sender: int, envelope: Envelope) -> None:
        """Adds a masked vector; everything that can be wrong with it is found before that."""
        p, body = self.parameters, envelope.body
        if len(body) != 2 * DIGEST or body[:DIGEST] != self._transcript:
            raise ProtocolError("masking: mask: made on another view of who shared")
        words = p.base.size + p.tail
        expected = packed_size(words, p.bits)
        if len(envelope.attachment) != expected:
            raise ProtocolError(
                f"masking: mask: a masked vector has {expected} bytes, found {len(envelope.attachment)}"
            )
        vector = envelope.attachment
        narrow = p.bits < MAX_BITS
        found = unpack(vector, words, p.bits) if narrow else np.frombuffer(vector, "<u4")
        np.add(self._acc, found, out=self._acc)
        self._digests[sender], self._statements[sender] = body[DIGEST:], envelope.signature

    # --------------------------------------------------------------------------------- what goes out

    def _next(self) -> Output:
        """The step is over: what follows from it."""
        follow = {
            Step.ADVERTISE: self._show_cohort,
            Step.SHARE: self._pass_shares,
            Step.MASK: self._show_survivors,
            Step.AGREE: self._show_quorum,
            Step.UNMASK: self._finish,
        }[self.step]
        self._answered = set()
        try:
            return follow()
        except ProtocolError as error:
            return self._abort(str(error))

    def _abort(self, reason: str) -> Output:
        self.ended = Ended.ABORT
        refusals = "; ".join(f"client {k}: {why}" for k, why in sorted(self._refused.items())[:3])
        return Output(abort=f"{reason} ({refusals})" if refusals else reason)

    def _broadcast(self, body: bytes, attachments: Mapping[int, tuple[bytes, ...]]) -> Output:
        """One signed body to all, each with what only it needs; expects an answer of each."""
        head = head_of(self.step, SERVER, self.parameters)
        signature = self.party.identity.sign(signed_bytes(head, body))
        self._expected = set(attachments)
        return Output(
            send=tuple(
                Message(SERVER, k, seal_envelope(head, body, signature, extra))
                for k, extra in attachments.items()
            )
        )

    def _require(self, count: int, floor: int, what: str) -> None:
        if count < floor:
            lost = ", ".join(f"{k} before {step}" for k, step in sorted(self._dropped.items())[:20])
            raise ProtocolError(f"{what}: {count} of the needed {floor}; dropped: {lost or 'none'}")

    def _show_cohort(self) -> Output:
        p, joined = self.parameters, sorted(self._adverts)
        self._require(len(joined), p.min_survivors, "too few clients advertised (min_survivors)")
        body = Cohort(self.party.transport.public, {k: self._adverts[k].digest for k in joined}).encode()
        self._transcript = chain(p.context, body)
        self._topology = Topology(tuple(joined), p.k, graph_seed(p.context, self._transcript))
        self.step = Step.SHARE
        return self._broadcast(
            body,
            {k: tuple(self._adverts[j].payload for j in self._topology.holders(k) if j != k) for k in joined},
        )

    def _pass_shares(self) -> Output:
        p, sharers = self.parameters, sorted(self._dealings)
        self._require(len(sharers), p.min_survivors, "too few clients shared (min_survivors)")
        body = encode_ids(sharers)
        self._transcript = chain(self._transcript, body)
        self.step = Step.MASK
        dealings = self._dealings
        return self._broadcast(
            body,
            {
                k: tuple(dealings[j].dealt[k] for j in self._topology.holders(k) if j != k and j in dealings)
                for k in sharers
            },
        )

    def _show_survivors(self) -> Output:
        p, survivors = self.parameters, sorted(self._digests)
        self._require(len(survivors), p.min_survivors, "too few masked vectors (min_survivors)")
        self._opened = Opened(p, self._topology, self._adverts, self._dealings, frozenset(survivors))
        body = encode_ids(survivors, [self._digests[k] for k in survivors])
        self._stated = self._transcript
        self._transcript = chain(self._transcript, body)
        self.step = Step.AGREE
        return self._broadcast(body, dict.fromkeys(survivors, ()))

    def _show_quorum(self) -> Output:
        p = self.parameters
        self._require(len(self._signed), p.quorum, "too few signatures on the survivors (quorum)")
        signed = {k: self._signed[k] for k in sorted(self._signed)}
        stated = {k: self._statements[k] for k in sorted(self._statements) if k not in signed}
        for k, signature in stated.items():
            statement = signed_bytes(head_of(Step.MASK, k, p), self._stated + self._digests[k])
            self._verify(k, statement, signature, Step.MASK)
        self.step = Step.UNMASK
        return self._broadcast(Quorum(signed, stated).encode(), dict.fromkeys(signed, ()))

    def _finish(self) -> Output:
        """Takes the masks off and decodes; the one place where the server learns something."""
        p = self.parameters
        survivors = tuple(sorted(self._digests))
        try:
            remove_masks(self._acc, self._opened, self.threads)
        finally:
            self._refused.update(self._opened.wrong)
        total, weight, clipped_share = decode_total(self._acc, p, survivors, self.codec)
        self.ended = Ended.RESULT
        result = Collected(
            survivors=survivors,
            total=total,
            weight=weight,
            refused=dict(self._refused),
            dropped=dict(self._dropped),
            clipped_share=clipped_share,
        )
        return Output(result=result)
