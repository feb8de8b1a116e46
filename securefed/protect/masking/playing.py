"""The five steps of a client, after Bonawitz et al. 2017 and Bell et al. 2020.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017): the
protocol with a consistency step, against a lying server. Bell et al., "Secure Single-Server Aggregation
with (Poly)Logarithmic Overhead" (CCS 2020): the sparse graph. What differs: the consistency signatures
cover the whole cohort and every masked vector's digest, keys and sharings are new in every round, and a
share of a client's own mask is opened only for a client with enough surviving neighbours.
"""

from __future__ import annotations

import hashlib
import math
import sys

import numpy as np

from securefed.crypto.entropy import Stream
from securefed.crypto.keys import KeyPair
from securefed.crypto.packing import pack
from securefed.crypto.prg import add_masks
from securefed.errors import ProtocolError
from securefed.protect.masking.codec import Codec
from securefed.protect.masking.derivation import advert_tag_key, pair_key, self_key, tag_keys
from securefed.protect.masking.fixedpoint import Words, weight_unit
from securefed.protect.masking.holding import Peers, deal, read_cohort, shared_secret, take_shares
from securefed.protect.masking.messages import (
    DIGEST,
    Envelope,
    Kind,
    Quorum,
    Step,
    chain,
    check_header,
    decode_ids,
    encode_opened,
    head_of,
    seal_envelope,
    signed_bytes,
)
from securefed.protect.masking.parameters import MaskingParameters
from securefed.protect.masking.party import Party
from securefed.types import SERVER, Update

_LITTLE = sys.byteorder == "little"
Held = dict[int, dict[Kind, bytearray]]
"""Owner -> its two shares, of which one is opened, once."""


class Playing:
    """What one client knows and holds in one round whose parameters it has accepted.

    Each step takes the server's message and gives the payload of the answer. A ProtocolError names the
    party at fault first; the session then ends.
    """

    def __init__(
        self, p: MaskingParameters, party: Party, stream: Stream, threads: int, codec: Codec | None = None
    ) -> None:
        self._p, self._party, self._stream, self._threads, self._codec = p, party, stream, threads, codec
        self._me = party.id
        self._mask_key = self.fresh_mask_key()
        self._seed = self.fresh_seed()
        self._advert = self._transcript = self._stated = self._masked = b""
        self._tags: tuple[bytes, ...] = ()
        self._own: dict[Kind, bytearray] = {}
        self._held: Held = {}
        self._sharers: tuple[int, ...] = ()
        self._digests: dict[int, bytes] = {}
        self._peers: Peers

    def __repr__(self) -> str:
        return f"Playing(client={self._me}, round={self._p.base.round})"

    def fresh_mask_key(self) -> KeyPair:
        """A new pair every round: a key used twice lets a later drop unmask an earlier round."""
        return KeyPair.from_seed(self._stream.bytes(32))

    def fresh_seed(self) -> bytearray:
        """The seed of this client's own mask, new every round."""
        return bytearray(self._stream.bytes(32))

    @property
    def ready(self) -> bool:
        """Whether the neighbours' shares are held, so that a masked vector may leave."""
        return bool(self._held)

    def unfit(self, update: Update) -> str | None:
        """Why this update cannot be sent, None if it can."""
        p = self._p
        if not np.isfinite(update.vector).all():
            return "non-finite coordinate in its update"
        if not (math.isfinite(update.weight) and 0 < update.weight <= p.max_weight):
            return f"its weight lies outside (0, {p.max_weight:g}]; raise max_weight"
        public = p.public_weight(self._me)
        if public is not None and update.weight != public:
            return f"its weight is not its public weight {public:g}"
        return None

    # ----------------------------------------------------------------------------------- the five steps

    def advertise(self) -> bytes:
        """The transport key of this run and the mask key of this round, under one signature."""
        payload = self._message(Step.ADVERTISE, self._party.transport.public + self._mask_key.public)
        self._advert = hashlib.sha256(payload).digest()
        return payload

    def share(self, envelope: Envelope) -> bytes:
        """Recomputes the graph, checks the neighbours' keys, deals both secrets among them."""
        p, party = self._p, self._party
        self._transcript = chain(p.context, envelope.body)
        self._peers = read_cohort(envelope, p, party, self._advert, self._transcript)
        shared = shared_secret(party, SERVER, self._peers.server_transport)
        party.server_transport = self._peers.server_transport
        self._tags = tag_keys(shared, p.context, self._me, self._advert)
        body, self._own = deal(self._peers, party, p, bytes(self._seed), self._mask_key.seed, self._stream)
        return self._message(Step.SHARE, body)

    def hold(self, envelope: Envelope) -> None:
        """Takes the neighbours' shares; whoever dealt none has never joined."""
        self._sharers, _ = decode_ids(envelope.body, 0)
        self._transcript = chain(self._transcript, envelope.body)
        self._held = take_shares(envelope, self._sharers, self._peers, self._own, self._party, self._p)

    def mask(self, update: Update) -> bytes:
        """Quantizes, then adds the own mask and one for each neighbour that shared, in place."""
        p = self._p
        words = self._words(update)
        add_masks(words, self._mask_keys(), bits=p.bits, threads=self._threads, cipher=p.cipher)
        whole_words = p.bits == 32 and _LITTLE  # then packing would only copy
        vector = (words.data if whole_words else memoryview(pack(words, p.bits))).cast("B")
        self._masked = hashlib.sha256(vector).digest()
        self._stated = self._transcript
        self._forget_masks()
        return self._message(Step.MASK, self._stated + self._masked, vector)

    def _words(self, update: Update) -> Words:
        """The input before its masks: the codec's words, or fixed point with its tail."""
        p = self._p
        if self._codec is not None:
            return self._codec.encode(update.vector if update.rows is None else update.rows, self._stream)
        words = np.empty(p.base.size + p.tail, np.uint32)
        clipped = p.quantizer.quantize(update.vector, update.weight / p.max_weight, self._stream, words)
        secret = p.base.weights is None
        tail = [clipped, round(update.weight / weight_unit(p.max_weight))] if secret else [clipped]
        words[p.base.size :] = p.limbs.encode(tail)
        return words

    def agree(self, envelope: Envelope) -> bytes:
        """Signs, once, the one set of survivors and digests it has been shown."""
        p, me = self._p, self._me
        if not self._masked:
            raise ProtocolError("server: it closed the mask step before this client had sent its vector")
        survivors, digests = decode_ids(envelope.body, DIGEST)
        self._digests = dict(zip(survivors, digests, strict=True))
        if self._digests.get(me) != self._masked:
            raise ProtocolError(
                "server: this client's masked vector is not among the survivors as it was sent"
            )
        if not self._digests.keys() <= set(self._sharers):
            raise ProtocolError("server: it lists survivors who never shared")
        if len(survivors) < p.min_survivors:
            raise ProtocolError(
                f"server: {len(survivors)} survivors are below min_survivors={p.min_survivors}"
            )
        self._transcript = chain(self._transcript, envelope.body)
        return self._message(Step.AGREE, self._transcript)

    def unmask(self, envelope: Envelope) -> bytes:
        """Opens one share of each neighbour, if enough clients have signed what this one has signed."""
        self._check_quorum(Quorum.decode(envelope.body))
        inside, graph, threshold = self._digests.keys(), self._peers.topology, self._p.threshold
        opened = []
        for owner, pair in sorted(self._held.items()):
            kind = Kind.SELF if owner in inside else Kind.KEY
            if kind is Kind.SELF and graph.alive(owner, inside) < threshold:
                raise ProtocolError(
                    f"server: it isolates client {owner}, fewer than threshold={threshold} of its neighbours survive"
                )
            opened.append((owner, kind, bytes(pair[kind])))
        payload = self._message(Step.UNMASK, encode_opened(opened))
        self.wipe()
        return payload

    def leave(self, reason: str) -> bytes:
        """A signed farewell."""
        return self._message(Step.LEAVE, reason.encode()[:500])

    # ------------------------------------------------------------------------------------------ its parts

    def require_header(self, envelope: Envelope) -> None:
        """Raises ProtocolError unless the server's message is of these parameters and this model."""
        try:
            check_header(envelope, head_of(envelope.step, SERVER, self._p))
        except ProtocolError as error:
            raise ProtocolError(f"server: {error}") from None

    def _message(self, step: Step, body: bytes, *attachments: bytes | memoryview) -> bytes:
        head = head_of(step, self._me, self._p)
        signature = self._party.identity.sign(signed_bytes(head, body))
        return seal_envelope(head, body, signature, attachments, self._tag_key(step))

    def _tag_key(self, step: Step) -> bytes | None:
        known = self._party.server_transport
        if step is Step.ADVERTISE and known is not None:
            return advert_tag_key(self._party.shared(known), self._p.context, self._me)
        return self._tags[step] if Step.ADVERTISE < step < Step.LEAVE else None

    def _mask_keys(self) -> list[tuple[bytes, int]]:
        """The stream keys of this client's masks and their signs: + towards later ids, - towards earlier."""
        me, mine, context = self._me, self._mask_key.public, self._p.context
        keys = [(self_key(bytes(self._seed), context, me), 1)]
        for j in self._held:
            if j == me:
                continue
            theirs = self._peers.mask(j)
            try:
                shared = self._mask_key.exchange(theirs)
            except ProtocolError as error:
                raise ProtocolError(f"client {j}: {error}") from None
            low, high = sorted(((me, mine), (j, theirs)))
            keys.append((pair_key(shared, context, low, high), 1 if me < j else -1))
        return keys

    def _check_quorum(self, quorum: Quorum) -> None:
        """Raises ProtocolError unless `quorum` clients, and every surviving neighbour, stand by one digest.

        A neighbour that signed no agreement must have made its vector on the same view of who shared;
        else a server could show one client a neighbourhood of its own and have the others unmask it.
        """
        p, me, inside = self._p, self._me, self._digests.keys()
        if not quorum.signed.keys() | quorum.stated.keys() <= inside:
            raise ProtocolError("server: it counts signatures of clients who are not survivors")
        if len(quorum.signed) < p.quorum:
            raise ProtocolError(f"server: {len(quorum.signed)} signatures are below the quorum of {p.quorum}")
        near = [j for j in self._peers.holders if j in inside]
        must = {j for j in near if j in quorum.signed}
        others = [j for j in quorum.signed if j not in must]
        for j in (*must, *others[: max(0, p.quorum - len(must))]):
            if j != me:
                self._verify(j, Step.AGREE, self._transcript, quorum.signed[j])
        for j in near:
            if j not in quorum.signed:
                if j not in quorum.stated:
                    raise ProtocolError(f"server: nothing shows what survivor {j} saw")
                self._verify(j, Step.MASK, self._stated + self._digests[j], quorum.stated[j])

    def _verify(self, client: int, step: Step, body: bytes, signature: bytes) -> None:
        signed = signed_bytes(head_of(step, client, self._p), body)
        if not self._party.roster.verify(client, signed, signature):
            raise ProtocolError(
                f"server: the signature it shows of client {client} in step {step.name.lower()} is not on what this "
                "client saw; it is forged, or the server shows clients different survivors"
            )

    def _forget_masks(self) -> None:
        self._mask_key.erase()
        self._seed[:] = bytes(len(self._seed))

    def wipe(self) -> None:
        """Overwrites what can be overwritten and drops the rest; Python may hold copies elsewhere."""
        self._forget_masks()
        for share in (s for pair in (*self._held.values(), self._own) for s in pair.values()):
            share[:] = bytes(len(share))
        self._held, self._own = {}, {}
