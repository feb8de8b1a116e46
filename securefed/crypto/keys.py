"""X25519 key pairs (RFC 7748) and HKDF-SHA256 (RFC 5869).

A shared secret is never a key itself: it goes through `hkdf` with an `info` that says which run, round,
parties and purpose the key is for, so that no key can stand in for another.
"""

from __future__ import annotations

from typing import NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securefed.crypto.entropy import Entropy
from securefed.errors import PrivacyError, ProtocolError

KEY_BYTES = 32
_MOST = 255 * 32  # RFC 5869, section 2.3: at most 255 hash lengths


class KeyPair:
    """An X25519 key pair; its 32-byte seed is the secret key, and all that is shared or stored of it.

    `erase` overwrites our copy of the seed. Python and OpenSSL may hold others: this shortens a
    secret's life, it does not promise its end.

    Raises:
        ProtocolError: a seed that is not 32 bytes; use after `erase`.
        PrivacyError: pickling or copying.
    """

    __slots__ = ("_private", "_seed", "public")

    public: bytes
    """The public key, 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise ProtocolError(f"a key seed has {KEY_BYTES} bytes, got {len(seed)}")
        self._seed = bytearray(seed)
        self._private: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> KeyPair:
        """A fresh pair from the operating system's randomness (from a seed in tests only)."""
        return cls(entropy.stream("x25519 key").bytes(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """The pair of these 32 bytes, which are uniform and secret."""
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The secret key, 32 bytes; RFC 7748 clamps it inside each exchange."""
        self._alive()
        return bytes(self._seed)

    def exchange(self, peer_public: bytes) -> bytes:
        """The 32-byte shared secret with a peer; equal on both sides, uniform to nobody: use `hkdf`.

        Raises:
            ProtocolError: a public key that is not 32 bytes, or a point of low order, for which the
                result would be zero whatever our key is (RFC 7748, section 6.1).
        """
        if len(peer_public) != KEY_BYTES:
            raise ProtocolError(f"a public key has {KEY_BYTES} bytes, found {len(peer_public)}")
        try:
            shared = self._alive().exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            shared = bytes(KEY_BYTES)  # how `cryptography` reports the all-zero result
        if not any(shared):
            raise ProtocolError("a public key is a point of low order: it would fix the shared secret")
        return shared

    def erase(self) -> None:
        """Overwrites the seed and drops the key; `public` stays. May be called twice."""
        self._seed[:] = bytes(len(self._seed))
        self._private = None

    def _alive(self) -> X25519PrivateKey:
        if self._private is None:
            raise ProtocolError("this key pair has been erased; keys are made for one purpose and not reused")
        return self._private

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()[:8]}..., secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("a key pair is a secret and is never pickled or copied")


def hkdf(secret: bytes, info: bytes, length: int = 32, salt: bytes = b"") -> bytes:
    """HKDF-SHA256 of a secret (RFC 5869, extract then expand): `length` bytes that belong to `info`.

    Args:
        secret: input keying material with at least 128 bits of min-entropy, need not be uniform.
        info: the full context of the key; different contexts give independent keys.
        length: 1 .. 8160. salt: public; empty is the RFC's string of zeros.

    Raises:
        ProtocolError: a length outside its range.
    """
    if not 1 <= length <= _MOST:
        raise ProtocolError(f"hkdf gives 1 .. {_MOST} bytes, asked for {length}")
    return HKDF(hashes.SHA256(), length, salt or None, info).derive(secret)
