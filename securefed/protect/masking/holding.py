"""What a client checks of its peers, deals to them and holds for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from securefed.crypto.aead import open_sealed, seal
from securefed.crypto.entropy import Stream
from securefed.crypto.shamir import commit, split
from securefed.errors import ProtocolError
from securefed.protect.masking.derivation import graph_seed, secret_commitment, share_context, share_key
from securefed.protect.masking.messages import (
    ADVERT,
    DEALT,
    DIGEST,
    KEY,
    SHARE,
    Cohort,
    Dealing,
    Envelope,
    Kind,
    Step,
    check_header,
    head_of,
    open_envelope,
)
from securefed.protect.masking.parameters import MaskingParameters
from securefed.protect.masking.party import Party
from securefed.protect.masking.topology import Topology, points
from securefed.types import SERVER

_NONCE = bytes(12)  # each sealing key seals once, see `derivation.share_key`


@dataclass(frozen=True, slots=True)
class Peers:
    """Who advertised, and the checked keys of this client's neighbours.

    Attributes:
        holders: this client and its neighbours, ascending.
        adverts: client -> hash of its advertisement, all that advertised.
        shown: neighbour -> its advertisement.
    """

    server_transport: bytes
    topology: Topology
    holders: tuple[int, ...]
    adverts: dict[int, bytes]
    shown: dict[int, Envelope] = field(repr=False)

    def transport(self, neighbour: int) -> bytes:
        """A neighbour's public key for sealing, of this run."""
        return self.shown[neighbour].body[:KEY]

    def mask(self, neighbour: int) -> bytes:
        """A neighbour's public key for masks, of this round."""
        return self.shown[neighbour].body[KEY:]


def read_cohort(
    envelope: Envelope, p: MaskingParameters, party: Party, advert: bytes, transcript: bytes
) -> Peers:
    """Checks the server's list and, by signature, each neighbour's advertisement.

    Only neighbours are looked at: what the others advertised enters through its hash, which
    is in the transcript that a quorum has to sign before anything is opened.

    Raises:
        ProtocolError: naming the server or the client at fault.
    """
    cohort = Cohort.decode(envelope.body)
    if cohort.adverts.get(party.id) != advert:
        raise ProtocolError("server: this client's keys are missing from its list, or replaced")
    if not cohort.adverts.keys() <= set(p.base.clients):
        raise ProtocolError("server: it lists clients outside the cohort")
    joined = tuple(cohort.adverts)
    if len(joined) < p.min_survivors:
        raise ProtocolError(f"server: {len(joined)} clients advertised, min_survivors is {p.min_survivors}")
    topology = Topology(joined, p.k, graph_seed(p.context, transcript))
    holders = topology.holders(party.id)
    if len(holders) < p.threshold:
        raise ProtocolError(f"server: {len(holders)} holders are fewer than threshold={p.threshold}")
    neighbours = [h for h in holders if h != party.id]
    if len(envelope.attachment) != ADVERT * len(neighbours):
        raise ProtocolError(
            f"server: it shows the keys of other neighbours than the {len(neighbours)} of the graph"
        )
    shown = {
        j: _checked_advert(
            bytes(envelope.attachment[i * ADVERT : (i + 1) * ADVERT]), j, cohort.adverts[j], p, party
        )
        for i, j in enumerate(neighbours)
    }
    peers = Peers(cohort.transport, topology, holders, cohort.adverts, shown)
    _check_distinct(peers, party)
    return peers


def _checked_advert(
    payload: bytes, client: int, digest: bytes, p: MaskingParameters, party: Party
) -> Envelope:
    """One neighbour's advertisement, for these parameters and this model.

    Its signature is checked where this transport key is met for the first time. Later the shares sealed
    under both sides' advertisements prove the rest, before anything masked leaves (`_open_shares`).
    """
    if hashlib.sha256(payload).digest() != digest:
        raise ProtocolError(f"server: the keys it shows of client {client} are not those it lists")
    envelope = open_envelope(payload)
    if envelope.sender != client or envelope.step is not Step.ADVERTISE or len(envelope.body) != 2 * KEY:
        raise ProtocolError(f"server: the keys it shows of client {client} are not signed by it")
    if (client, envelope.body[:KEY]) not in party.met:
        _check_signature(envelope, party)
        party.met.add((client, envelope.body[:KEY]))
    try:
        check_header(envelope, head_of(Step.ADVERTISE, client, p))
    except ProtocolError as error:
        raise ProtocolError(f"client {client}, or a server that shows each another round: {error}") from None
    return envelope


def _check_signature(advert: Envelope, party: Party) -> None:
    if not party.roster.verify(advert.sender, advert.signed, advert.signature):
        raise ProtocolError(f"server: the keys it shows of client {advert.sender} are not signed by it")


def _check_distinct(peers: Peers, party: Party) -> None:
    """Raises ProtocolError where a key is met twice: who copies a key answers for another."""
    owner = {party.transport.public: party.id}
    for j in peers.shown:
        for key in (peers.transport(j), peers.mask(j)):
            if key in owner:
                raise ProtocolError(
                    f"clients {owner[key]} and {j} advertise the same key; one of them, or the server, copied it"
                )
            owner[key] = j


def deal(
    peers: Peers, party: Party, p: MaskingParameters, seed: bytes, key_seed: bytes, stream: Stream
) -> tuple[bytes, dict[Kind, bytearray]]:
    """Two independent sharings, of the self-mask seed and of the mask key, sealed for each neighbour.

    Returns:
        The body to send, and the two shares that the dealer keeps of its own secrets.

    Raises:
        ProtocolError: naming a neighbour whose transport key has low order.
    """
    me, context, places = party.id, p.context, points(peers.holders)
    xs = list(places.values())
    shares = {
        Kind.SELF: split(bytes(seed), p.threshold, xs, stream),
        Kind.KEY: split(key_seed, p.threshold, xs, stream),
    }
    dealt: dict[int, bytes] = {}
    for holder, x in places.items():
        pair = [shares[kind][x] for kind in Kind]
        commitments = b"".join(
            commit(s, share_context(context, me, holder, kind)) for kind, s in zip(Kind, pair, strict=True)
        )
        if holder != me:
            key = share_key(
                shared_secret(party, holder, peers.transport(holder)),
                context,
                (me, peers.adverts[me]),
                (holder, peers.adverts[holder]),
            )
            commitments += seal(key, _NONCE, b"".join(pair), commitments)
        dealt[holder] = commitments
    body = Dealing(secret_commitment(bytes(seed), context, me), dealt).encode()
    return body, {kind: bytearray(shares[kind][places[me]]) for kind in Kind}


def shared_secret(party: Party, peer: int, public: bytes) -> bytes:
    """X25519 with a peer's transport key; a bad key is blamed on the peer."""
    try:
        return party.shared(public)
    except ProtocolError as error:
        raise ProtocolError(f"{'server' if peer == SERVER else f'client {peer}'}: {error}") from None


def take_shares(
    envelope: Envelope,
    sharers: Sequence[int],
    peers: Peers,
    own: dict[Kind, bytearray],
    party: Party,
    p: MaskingParameters,
) -> dict[int, dict[Kind, bytearray]]:
    """Opens and checks what each neighbour dealt to this client: owner -> its two shares.

    Raises:
        ProtocolError: naming the server or the neighbour at fault.
    """
    me, among = party.id, set(sharers)
    if me not in among:
        raise ProtocolError("server: it leaves out this client's own shares")
    if not among <= peers.adverts.keys():
        raise ProtocolError("server: it lists shares of clients who never advertised")
    if len(sharers) < p.min_survivors:
        raise ProtocolError(f"server: {len(sharers)} clients shared, min_survivors is {p.min_survivors}")
    near = [j for j in peers.holders if j in among and j != me]
    if len(near) + 1 < p.threshold:
        raise ProtocolError(
            f"server: {len(near) + 1} holders of this client's shares are left, threshold is {p.threshold}"
        )
    if len(envelope.attachment) != DEALT * len(near):
        raise ProtocolError(
            f"server: {len(envelope.attachment)} bytes are not the shares of {len(near)} neighbours"
        )
    held = {me: own}
    for i, owner in enumerate(near):
        held[owner] = _open_shares(
            bytes(envelope.attachment[i * DEALT : (i + 1) * DEALT]), owner, peers, party, p
        )
    return held


def _open_shares(
    dealt: bytes, owner: int, peers: Peers, party: Party, p: MaskingParameters
) -> dict[Kind, bytearray]:
    me, context, commitments = party.id, p.context, dealt[: 2 * DIGEST]
    key = share_key(
        shared_secret(party, owner, peers.transport(owner)),
        context,
        (owner, peers.adverts[owner]),
        (me, peers.adverts[me]),
    )
    try:
        plain = open_sealed(key, _NONCE, dealt[2 * DIGEST :], commitments)
    except ProtocolError:
        _check_signature(peers.shown[owner], party)
        raise ProtocolError(
            f"client {owner}: its sealed shares for client {me} do not open; it, or the server, altered them"
        ) from None
    pair = {Kind.SELF: bytearray(plain[:SHARE]), Kind.KEY: bytearray(plain[SHARE:])}
    for kind, share in pair.items():
        expected = commitments[kind * DIGEST : (kind + 1) * DIGEST]
        if commit(bytes(share), share_context(context, owner, me, kind)) != expected:
            raise ProtocolError(
                f"client {owner}: a share it dealt to client {me} does not fit its commitment"
            )
    return pair
