"""A long file in chunks under one key, so that what is changed, moved, cut off or added is noticed before it is used.

AES-256-GCM (NIST SP 800-38D) on each chunk. The nonce is the chunk's number and whether it is the last one, as in the STREAM
construction of Hoang, Reyhanitabar, Rogaway and Vizar (CRYPTO 2015), so chunks cannot change places and the file cannot
end early. A key is for one file only: nonces repeat from file to file.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import AEADDecryptionContext, AEADEncryptionContext, Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from securefed.errors import ProtocolError

KEY_BYTES, TAG_BYTES, CHUNK_BYTES = 32, 16, 2**20
MOST_CHUNKS = 2**32


def count(length: int) -> int:
    """How many chunks hold `length` bytes: one at least, so that an empty file has a tag too."""
    return max(1, -(-length // CHUNK_BYTES))


class Chunks:
    """The chunks of one file of `length` bytes.

    Args:
        key: 32 bytes for this file and no other; derived from all that the file claims to be, so that the claim is
            authenticated with every chunk.
        sealed: whether chunks are encrypted; else they stay readable and have a tag only (GMAC).

    Raises:
        ProtocolError: a key of another length, or more bytes than nonces.
    """

    __slots__ = ("_key", "length", "sealed")

    def __init__(self, key: bytes, length: int, sealed: bool) -> None:
        if len(key) != KEY_BYTES or not 0 <= length <= CHUNK_BYTES * MOST_CHUNKS:
            raise ProtocolError(
                f"chunks need a key of {KEY_BYTES} bytes and a length of 0 to 2^52, got {len(key)} and {length}"
            )
        self._key, self.length, self.sealed = key, length, sealed

    def __repr__(self) -> str:
        return f"Chunks({self.length} bytes, sealed={self.sealed})"

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of each chunk."""
        for number in range(count(self.length)):
            start = number * CHUNK_BYTES
            yield number, start, min(start + CHUNK_BYTES, self.length)

    def close(self, number: int, data: bytes | memoryview) -> tuple[bytes | memoryview, bytes]:
        """(what is stored, tag) of a chunk; stored is the data itself where chunks stay readable."""
        context: AEADEncryptionContext = Cipher(AES(self._key), GCM(self._nonce(number))).encryptor()
        if self.sealed:
            stored: bytes | memoryview = context.update(data)
        else:
            context.authenticate_additional_data(data)
            stored = data
        context.finalize()
        return stored, context.tag

    def open(self, number: int, stored: bytes | memoryview, tag: bytes) -> bytes | memoryview:
        """The chunk's data.

        Raises:
            ProtocolError: it is not what was closed at this place of this file under this key.
        """
        context: AEADDecryptionContext = Cipher(AES(self._key), GCM(self._nonce(number), tag)).decryptor()
        try:
            if self.sealed:
                data: bytes | memoryview = context.update(stored)
            else:
                context.authenticate_additional_data(stored)
                data = stored
            context.finalize()
        except InvalidTag:
            raise ProtocolError(
                f"chunk {number} is not what was written: another key, another place, or changed bytes"
            ) from None
        return data

    def _nonce(self, number: int) -> bytes:
        last = number == count(self.length) - 1
        return number.to_bytes(8, "big") + bytes(3) + bytes([last])
