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
    Header,
    Kind,
    Step,
    check_header,
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
        transport, mask: neighbour -> public key.
    """

    server_transport: bytes
    topology: Topology
    holders: tuple[int, ...]
    adverts: dict[int, bytes]
    transport: dict[int, bytes] = field(repr=False)
    mask: dict[int, bytes] = field(repr=False)


def read_cohort(
    envelope: Envelope, p: MaskingParameters, party: Party, advert: bytes, transcript: bytes
) -> Peers:
    """Checks the server's list and, by signature, each neighbour's advertisement.

    Only neighbours' signatures are verified: what the others advertised enters through its hash, which
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
    keys = {
        j: _checked_keys(
            bytes(envelope.attachment[i * ADVERT : (i + 1) * ADVERT]), j, cohort.adverts[j], p, party
        )
        for i, j in enumerate(neighbours)
    }
    every = [key for pair in keys.values() for key in pair]
    if len(set(every)) != len(every) or party.transport.public in every:
        raise ProtocolError("server: two clients advertise the same key")
    return Peers(
        cohort.transport,
        topology,
        holders,
        cohort.adverts,
        {j: pair[0] for j, pair in keys.items()},
        {j: pair[1] for j, pair in keys.items()},
    )


def _checked_keys(
    payload: bytes, client: int, digest: bytes, p: MaskingParameters, party: Party
) -> tuple[bytes, bytes]:
    """(transport, mask) keys of one neighbour, signed by it for these parameters and this model."""
    if hashlib.sha256(payload).digest() != digest:
        raise ProtocolError(f"server: the keys it shows of client {client} are not those it lists")
    envelope = open_envelope(payload, tagged=False)
    if envelope.header.sender != client or not party.roster.verify(
        client, envelope.signed, envelope.signature
    ):
        raise ProtocolError(f"server: the keys it shows of client {client} are not signed by it")
    try:
        check_header(envelope.header, Header.of(Step.ADVERTISE, client, p, p.digest))
    except ProtocolError as error:
        raise ProtocolError(f"client {client}, or a server that shows each another round: {error}") from None
    if envelope.header.step is not Step.ADVERTISE or len(envelope.body) != 2 * KEY:
        raise ProtocolError(f"client {client}: its advertisement is malformed")
    return envelope.body[:KEY], envelope.body[KEY:]


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
                shared_secret(party, holder, peers.transport[holder]),
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
        shared_secret(party, owner, peers.transport[owner]),
        context,
        (owner, peers.adverts[owner]),
        (me, peers.adverts[me]),
    )
    try:
        plain = open_sealed(key, _NONCE, dealt[2 * DIGEST :], commitments)
    except ProtocolError:
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
