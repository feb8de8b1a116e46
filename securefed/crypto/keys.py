"""X25519 key agreement (RFC 7748) and HKDF-SHA256 (RFC 5869), thin over `cryptography`.

Python cannot promise to forget: `erase` overwrites the copy kept here, not those that the library, the
allocator or a swap file may hold. Nothing here is constant-time beyond what OpenSSL gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securefed.errors import ProtocolError

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy

SEED_BYTES = 32


class KeyPair:
    """An X25519 key pair from a 32-byte seed; the seed can be shared out and the pair made again from it.

    >>> from securefed.crypto.entropy import SystemEntropy
    >>> a, b = (KeyPair.generate(SystemEntropy()) for _ in range(2))
    >>> a.exchange(b.public) == b.exchange(a.public)
    True
    """

    __slots__ = ("_private", "_seed", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ProtocolError(f"a key pair needs a seed of {SEED_BYTES} bytes, got {len(seed)}")
        self._seed = bytearray(seed)
        self._private: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(bytes(seed))
        self.public: bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> KeyPair:
        """A fresh pair."""
        return cls(entropy.stream("X25519 key").bytes(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """The pair of this seed."""
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The secret seed, to be shared out.

        Raises:
            ProtocolError: the pair has been erased.
        """
        if self._private is None:
            raise ProtocolError("this key pair has been erased")
        return bytes(self._seed)

    def exchange(self, peer: bytes) -> bytes:
        """The 32 secret bytes that only the two owners can compute.

        Raises:
            ProtocolError: not 32 bytes, or a point of low order, whose owner could be anybody.
        """
        if self._private is None:
            raise ProtocolError("this key pair has been erased")
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(bytes(peer)))
        except ValueError:
            raise ProtocolError("a public key of low order or of the wrong length") from None

    def erase(self) -> None:
        """Overwrites the seed and drops the key; using the pair afterwards raises."""
        self._seed[:] = bytes(SEED_BYTES)
        self._private = None

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()[:16]}..., secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ProtocolError("a key pair is a secret and is never stored or copied")


def hkdf(secret: bytes, info: bytes, length: int = 32, salt: bytes = b"") -> bytes:
    """HKDF-SHA256: `length` bytes for the purpose that `info` names.

    Args:
        info: the full context (domain, run, round, who, what), so that one secret never gives one key twice.
        length: 1 .. 8160.
    """
    if not 1 <= length <= 255 * 32:
        raise ProtocolError(f"HKDF gives 1 to {255 * 32} bytes, asked for {length}")
    return HKDF(hashes.SHA256(), length, salt or None, info).derive(bytes(secret))
