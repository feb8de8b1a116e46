"""A secret of this site alone, for files that it writes for itself: made once, kept in one file that its owner alone can read."""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import NoReturn

from securefed.crypto.entropy import Entropy
from securefed.crypto.keys import hkdf
from securefed.errors import ProtocolError

KEY_BYTES, ID_BYTES = 32, 8
_DOMAIN = b"securefed site key v1"


class SiteKey:
    """Derives names and keys; shows and stores nothing of itself.

    Args:
        secret: 32 bytes. Whoever has them can open and forge every file written under them.
    """

    __slots__ = ("_naming", "_secret", "id")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ProtocolError(f"a site's key has {KEY_BYTES} bytes, got {len(secret)}")
        self._secret = bytes(secret)
        self._naming = hkdf(self._secret, _DOMAIN + b" names")
        self.id: bytes = hkdf(self._secret, _DOMAIN + b" id", ID_BYTES)
        """8 bytes that tell keys apart and say nothing of them."""

    @classmethod
    def at(cls, path: Path, entropy: Entropy) -> SiteKey:
        """The key in this file, made now if there is none; two processes at once end up with one key.

        Raises:
            ProtocolError: a file that others can read, or that holds no key.
            OSError: it can be neither read nor written.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(path, entropy.stream("site key").bytes(KEY_BYTES))
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise ProtocolError(
                f"{path} can be read by others; delete it, and what was sealed with it is made anew"
            )
        secret = path.read_bytes()
        if len(secret) != KEY_BYTES:
            raise ProtocolError(f"{path} holds no key of {KEY_BYTES} bytes; delete it, a new one is made")
        return cls(secret)

    def name(self, description: bytes) -> bytes:
        """32 bytes that stand for the description; without the key, nobody can tell whether a guess at it is right."""
        return hmac.digest(self._naming, description, "sha256")

    def file_key(self, claim: bytes, salt: bytes) -> bytes:
        """The 32-byte key of one file.

        Args:
            claim: all that the file says of itself. salt: 32 fresh random bytes, so that no two files share a key.
        """
        return hkdf(self._secret, _DOMAIN + b" file" + claim, salt=salt)

    def __repr__(self) -> str:
        return "SiteKey(secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ProtocolError("a site's key is a secret; open its file where it is needed")


def _make(path: Path, secret: bytes) -> None:
    """The file under its final name only when it is whole; the first of two processes wins."""
    part = path.with_name(f".{path.name}-{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(part, path)
    except FileExistsError:
        return  # another process was faster; its key is the site's
    finally:
        part.unlink(missing_ok=True)
