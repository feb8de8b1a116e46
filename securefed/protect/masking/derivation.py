"""Every key of a round, each from one secret and its full context, so that none can stand for another.

The context hash covers domain, version, run, round, parameters and global model (`MaskingParameters.context`).
"""

from __future__ import annotations

import hashlib
import struct

from securefed.crypto.keys import hkdf
from securefed.protect.masking.parameters import DOMAIN

_PAIR = struct.Struct("<II")


def self_key(seed: bytes, context: bytes, client: int) -> bytes:
    """The stream key of a client's own mask, from its 32-byte seed."""
    return hkdf(seed, b"".join((DOMAIN, b" self mask", context, _PAIR.pack(client, client))))


def pair_key(shared: bytes, context: bytes, low: tuple[int, bytes], high: tuple[int, bytes]) -> bytes:
    """The stream key of two clients' common mask; (id, public mask key) of each, lower id first.

    H(global model) is inside the context: clients that hold different models get masks that do not
    cancel. That is the second line; the first is that such a peer ends the round when it advertises.
    """
    ids = _PAIR.pack(low[0], high[0])
    return hkdf(shared, b"".join((DOMAIN, b" pair mask", context, ids, low[1], high[1])))


def share_key(shared: bytes, context: bytes, owner: tuple[int, bytes], holder: tuple[int, bytes]) -> bytes:
    """The key that seals the owner's shares for the holder; (id, hash of the advertisement) of each.

    Both advertisements hold a mask key made for this round alone, so the key is never met twice and a
    nonce of zero is safe; a sealed share of another round does not open.
    """
    ids = _PAIR.pack(owner[0], holder[0])
    return hkdf(shared, b"".join((DOMAIN, b" shares", context, ids, owner[1], holder[1])))


def tag_keys(shared: bytes, context: bytes, client: int, advert: bytes) -> tuple[bytes, ...]:
    """One-time Poly1305 keys of a client's messages to the server after its advertisement, by step."""
    info = b"".join((DOMAIN, b" tags", context, _PAIR.pack(client, client), advert))
    block = hkdf(shared, info, length=160)
    return tuple(block[32 * i : 32 * (i + 1)] for i in range(5))


def advert_tag_key(shared: bytes, context: bytes, client: int) -> bytes:
    """The one-time Poly1305 key of a client's advertisement; it advertises once in a round of a run."""
    return hkdf(shared, b"".join((DOMAIN, b" advert tag", context, _PAIR.pack(client, client))))


def graph_seed(context: bytes, transcript: bytes) -> bytes:
    """The joint randomness of the neighbourhood graph: a hash over every client's advertisement."""
    return hashlib.sha256(DOMAIN + b" graph" + context + transcript).digest()


def secret_commitment(seed: bytes, context: bytes, client: int) -> bytes:
    """A hash that binds a client to its self-mask seed; hiding, because the seed has 256 random bits."""
    return hashlib.sha256(
        b"".join((DOMAIN, b" self seed", context, _PAIR.pack(client, client), seed))
    ).digest()


def share_context(context: bytes, owner: int, holder: int, kind: int) -> bytes:
    """What the commitment to one share is bound to."""
    return b"".join((DOMAIN, b" share", context, struct.pack("<IIB", owner, holder, kind)))
