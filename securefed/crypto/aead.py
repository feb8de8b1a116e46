"""Sealed messages: ChaCha20-Poly1305 (RFC 8439). A nonce is used once with a key; callers derive a key per message."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from securefed.errors import ProtocolError

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16


def seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Ciphertext and tag; `aad` is authenticated beside it and not sent.

    Raises:
        ProtocolError: a key or nonce of the wrong length.
    """
    _check(key, nonce)
    return ChaCha20Poly1305(key).encrypt(nonce, plaintext, aad)


def open_sealed(key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """What was sealed with this key, nonce and aad.

    Raises:
        ProtocolError: anything differs, by accident or on purpose.
    """
    _check(key, nonce)
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, aad)
    except InvalidTag:
        raise ProtocolError(
            "a sealed message does not open: another key, other context, or garbled bytes"
        ) from None


def _check(key: bytes, nonce: bytes) -> None:
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise ProtocolError(
            f"sealing needs a key of {KEY_BYTES} and a nonce of {NONCE_BYTES} bytes, got {len(key)} and {len(nonce)}"
        )
