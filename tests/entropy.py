"""Entropy from a seed: for tests only, so that noise can be repeated. Never import it from the library."""

from __future__ import annotations

import hashlib
import hmac

from securefed.crypto.entropy import Entropy, Stream


class SeededEntropy(Entropy):
    """Derives each stream's key from (seed, context) by HMAC-SHA256; same context, same stream.

    It has no state: the order in which streams are asked for changes nothing, so that an interrupted
    and resumed run meets the same randomness. A context asked for twice gives equal noise twice.
    """

    def __init__(self, seed: int) -> None:
        self._key = hashlib.sha256(f"securefed test entropy {seed}".encode()).digest()

    def stream(self, *context: str | int) -> Stream:
        """The one stream of this seed and context."""
        return Stream(hmac.digest(self._key, _encode(context), "sha256"))


def _encode(context: tuple[str | int, ...]) -> bytes:
    """Injective: every label carries its type and length, so ("ab", 1) and ("a", "b1") differ."""
    parts = []
    for label in context:
        text = str(label).encode()
        parts.append(b"%c%d:%s" % (b"i" if isinstance(label, int) else b"s", len(text), text))
    return b"".join(parts)
