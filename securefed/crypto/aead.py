"""ChaCha20-Poly1305 (RFC 8439): what one party seals, one other can open, and nobody can alter."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from securefed.errors import ProtocolError

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16


def seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """The ciphertext with its 16-byte tag; `aad` is authenticated beside it, not hidden.

    Args:
        key: 32 bytes. nonce: 12 bytes, never twice under one key: a repeated pair reveals the XOR of the
            plaintexts and lets anyone forge. A key made for one message may use a constant nonce.

    Raises:
        ProtocolError: a key or nonce of another length.
    """
    return _cipher(key, nonce).encrypt(nonce, plaintext, aad)


def open_sealed(key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """The plaintext of `seal` under the same key, nonce and aad.

    Raises:
        ProtocolError: anything differs from what was sealed, by one bit or more; which, is not said.
    """
    cipher = _cipher(key, nonce)
    try:
        return cipher.decrypt(nonce, ciphertext, aad)
    except InvalidTag:
        raise ProtocolError(
            "a sealed message does not open: altered, cut, or sealed for something else"
        ) from None


def _cipher(key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise ProtocolError(
            f"sealing takes a key of {KEY_BYTES} and a nonce of {NONCE_BYTES} bytes, got {len(key)} and {len(nonce)}"
        )
    return ChaCha20Poly1305(key)
