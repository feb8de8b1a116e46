"""Texts as they are compared: what counts as the same record, and what a stable hash of one is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_NOT_WORD = re.compile(r"\W+")


def normalise(text: str) -> str:
    """The text's words in lower case with single spaces between; "" where there is no word.

    Two records with the same normalised text are the same record: a copy in the test split would be
    graded by memory, and a copy at a second client would be charged twice.

    >>> normalise("Not  BAD, at all!")
    'not bad at all'
    """
    return _NOT_WORD.sub(" ", text.lower()).strip()


def content_key(text: str) -> str:
    """A short public name for the text: equal for texts that count as the same, and hard to read back."""
    return hashlib.sha256((normalise(text) or text).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def unit_hash(salt: str, key: str) -> float:
    """A number in [0, 1) that depends on nothing but salt and key, on any machine and version."""
    digest = hashlib.sha256(f"{salt}|{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def hash_order(salt: str, keys: Iterable[str]) -> list[str]:
    """The distinct keys in the order of their salted hashes: a shuffle that adding a key does not change."""
    return sorted(set(keys), key=lambda key: (unit_hash(salt, key), key))
