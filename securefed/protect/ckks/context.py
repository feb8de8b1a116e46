"""The run's context on its way from the key holder: a public key, or a secret key sealed to one client."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from securefed.crypto.aead import open_sealed, seal
from securefed.crypto.keys import KeyPair, hkdf
from securefed.errors import ProtocolError
from securefed.protect.ckks.keys import Context, Positions, context_digest
from securefed.protect.ckks.messages import DIGEST, DOMAIN
from securefed.protect.ckks.residues import size_of, unpack
from securefed.protect.ckks.scheme import Scheme

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy
    from securefed.protect.ckks.parameters import ParameterSet
    from securefed.protect.ckks.round import CKKSRound

NONCE = bytes(12)
"""Zero: every sealing has a key of its own."""
TAG = 16


def write_request(known: bytes | None, transport: KeyPair | None) -> bytes:
    """The body of a request: the context one has (or zeros), and where to a secret key may be sealed."""
    return (known or bytes(DIGEST)) + (bytes(DIGEST) if transport is None else transport.public)


def read_request(body: memoryview) -> tuple[bytes, bytes]:
    """(digest of the context the sender has, its X25519 key); raises ProtocolError on a wrong length."""
    if len(body) != 2 * DIGEST:
        raise ProtocolError(f"ckks: a request has {2 * DIGEST} bytes, found {len(body)}")
    return bytes(body[:DIGEST]), bytes(body[DIGEST:])


def key_size(parameters: ParameterSet, trust: str) -> int:
    """Bytes of the key that clients get."""
    polynomials = 1 if trust == "shared_key" else 2
    return size_of(1, polynomials, parameters.degree, parameters.key_primes)


def _sealing_key(shared: bytes, round: CKKSRound, ephemeral: bytes, receiver: bytes) -> bytes:
    return hkdf(shared, DOMAIN + b" sealed key" + round.digest + ephemeral + receiver, 32)


def write_context(
    digest: bytes,
    key: bytes,
    round: CKKSRound,
    receiver: bytes,
    positions: Positions | None,
    entropy: Entropy,
) -> bytes:
    """The body of a context.

    Args:
        digest: the context's name. key: the key's bytes, empty where the receiver needs none.
        receiver: its X25519 key, where the key is secret.
        positions: coordinates to encrypt, None for all of them.
    """
    if key and round.trust == "shared_key":
        ephemeral = KeyPair.generate(entropy)
        secret = _sealing_key(ephemeral.exchange(receiver), round, ephemeral.public, receiver)
        key = ephemeral.public + seal(secret, NONCE, key, digest)
    bits = b"" if positions is None else _to_bits(positions, round.base.size)
    return digest + struct.pack("<II", len(key), len(bits)) + key + bits


def read_context(
    body: memoryview,
    round: CKKSRound,
    known: Context | None,
    transport: KeyPair | None,
    schemes: dict[bytes, Scheme],
) -> tuple[Context, Positions | None]:
    """(the context, which coordinates are encrypted: None for all), every part checked before use.

    Args:
        known: the context this party has; it must be named again, a run has one.
        transport: the X25519 keys of a client that expects a secret key.
        schemes: digest -> what encrypts under it, for contexts that were opened before; added to.

    Raises:
        ProtocolError: cut short, of another parameter set, another key than was named, or a second context.
    """
    if len(body) < DIGEST + 8:
        raise ProtocolError("ckks: the context is cut short")
    digest = bytes(body[:DIGEST])
    key_bytes, bit_bytes = struct.unpack_from("<II", body, DIGEST)
    at = DIGEST + 8
    if len(body) != at + key_bytes + bit_bytes:
        raise ProtocolError(
            f"ckks: the context announces {at + key_bytes + bit_bytes} bytes, found {len(body)}"
        )
    if known is not None and known.digest != digest:
        raise ProtocolError("ckks: another context than this run's; keys are made once a run")
    positions = _from_bits(body[at + key_bytes :], round) if bit_bytes else None
    if known is not None:
        return known, positions
    key = bytes(body[at : at + key_bytes])
    if not key:
        return Context(digest), positions
    opened = _opened(key, round, transport, digest)
    if digest not in schemes:
        schemes[digest] = _scheme(opened, round)
    return Context(digest, schemes[digest]), positions


def _opened(key: bytes, round: CKKSRound, transport: KeyPair | None, digest: bytes) -> bytes:
    """The key's bytes, unsealed where they were sealed, and the ones that the context names."""
    parameters, shared = round.plan.set, round.trust == "shared_key"
    if shared:
        if transport is None or len(key) < DIGEST + TAG:
            raise ProtocolError("ckks: a sealed key that nobody here can open")
        ephemeral = key[:DIGEST]
        secret = _sealing_key(transport.exchange(ephemeral), round, ephemeral, transport.public)
        key = open_sealed(secret, NONCE, key[DIGEST:], digest)
    if len(key) != key_size(parameters, round.trust):
        raise ProtocolError(f"ckks: no key of the {parameters.name} parameters: another set, or cut short")
    if context_digest(round.base.run, parameters, round.trust, key) != digest:
        raise ProtocolError("ckks: the key is not the one that the context names")
    return key


def _scheme(key: bytes, round: CKKSRound) -> Scheme:
    parameters, shared = round.plan.set, round.trust == "shared_key"
    words = unpack(key, 1, 1 if shared else 2, parameters.degree, parameters.key_primes)
    scheme = Scheme(parameters)
    if shared:
        scheme.take_secret(words)
    else:
        scheme.take_public(words)
    return scheme


def _to_bits(positions: Positions, size: int) -> bytes:
    chosen = np.zeros(size, np.uint8)
    chosen[positions] = 1
    return np.packbits(chosen).tobytes()


def _from_bits(bits: memoryview, round: CKKSRound) -> Positions:
    size = round.base.size
    if len(bits) != (size + 7) // 8:
        raise ProtocolError(
            f"ckks: a map of {size} coordinates has {(size + 7) // 8} bytes, found {len(bits)}"
        )
    positions: Positions = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=size))
    if positions.size < round.encrypted:
        raise ProtocolError(
            f"ckks: the map encrypts {positions.size} coordinates, encrypted_share={round.encrypted_share:g} asks for "
            f"{round.encrypted}"
        )
    return positions
