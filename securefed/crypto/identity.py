"""Long-lived identities (Ed25519, RFC 8032) and the roster that pins them.

Everything a server could forge hangs on this file: a roster is agreed out of band (or on first use),
frozen before any randomness of a round is shown, and its digest is part of the round's parameters.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from securefed.crypto.encoding import Writer
from securefed.crypto.entropy import Entropy
from securefed.errors import ConfigError, PrivacyError, ProtocolError
from securefed.types import SERVER

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_IDENTITY, _ROSTER = "securefed identity 1", "securefed roster 1"


class Identity:
    """A party's signing key; its public half stands in everybody's roster.

    Raises:
        ProtocolError: a seed that is not 32 bytes.
        PrivacyError: pickling or copying; a key file that others may read.
    """

    __slots__ = ("_private", "_seed", "public")

    public: bytes
    """The public key, 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise ProtocolError(f"an identity's seed has {KEY_BYTES} bytes, got {len(seed)}")
        self._seed = bytes(seed)
        self._private = Ed25519PrivateKey.from_private_bytes(self._seed)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> Identity:
        """A fresh identity."""
        return cls(entropy.stream("ed25519 identity").bytes(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of 32 uniform, secret bytes."""
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature. The message says what it is: domain, version, run, round, step, sender."""
        return self._private.sign(message)

    def save(self, path: Path | str) -> None:
        """Writes a new file that only its owner can read (mode 0600).

        Raises:
            FileExistsError: the file exists; an identity is not overwritten.
        """
        text = json.dumps({"format": _IDENTITY, "seed": self._seed.hex()})
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Identity:
        """The identity in a file of `save`.

        Raises:
            PrivacyError: others than its owner may read or write the file.
            ConfigError: it holds something else.
        """
        if os.name == "posix" and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            raise PrivacyError(f"{path} holds a secret key and is open to others; chmod 600 it")
        found = _read(path, _IDENTITY)
        return cls(_key(found.get("seed"), path))

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()[:8]}..., secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("an identity is a secret and is never pickled or copied; use save and load")


@dataclass(frozen=True)
class Roster:
    """Who takes part: the server's public key and each client's.

    It says that a key belongs to a party, not that the party is one person: whoever writes the roster
    answers for Sybils.

    Attributes:
        server: 32 bytes. clients: client's index -> 32 bytes, kept in ascending order.
        digest: SHA-256 over the canonical encoding, 32 bytes.

    Raises:
        ProtocolError: a key of another length, one key for two parties, a client's index out of range.
    """

    server: bytes
    clients: Mapping[int, bytes]
    digest: bytes = field(init=False, compare=False)
    _keys: Mapping[int, Ed25519PublicKey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parties = {SERVER: bytes(self.server), **{k: bytes(self.clients[k]) for k in sorted(self.clients)}}
        if SERVER in self.clients or any(not 0 <= k < 2**32 for k in self.clients):
            raise ProtocolError("roster: a client's index lies in 0 .. 2^32 - 1")
        seen: dict[bytes, int] = {}
        for party, key in parties.items():
            if len(key) != KEY_BYTES:
                raise ProtocolError(
                    f"roster: the key of {_name(party)} has {len(key)} bytes, not {KEY_BYTES}"
                )
            if key in seen:
                raise ProtocolError(f"roster: {_name(seen[key])} and {_name(party)} have the same key")
            seen[key] = party
        writer = Writer().text(_ROSTER).raw(parties[SERVER]).u32(len(self.clients))
        for client in sorted(self.clients):
            writer.u32(client).raw(parties[client])
        keys = {k: Ed25519PublicKey.from_public_bytes(v) for k, v in parties.items()}
        object.__setattr__(self, "server", parties.pop(SERVER))
        object.__setattr__(self, "clients", MappingProxyType(parties))
        object.__setattr__(self, "digest", hashlib.sha256(writer.bytes()).digest())
        object.__setattr__(self, "_keys", MappingProxyType(keys))

    def __hash__(self) -> int:
        return hash(self.digest)

    def verify(self, party: int, message: bytes, signature: bytes) -> None:
        """Returns if the party (a client, or `SERVER`) signed exactly this message.

        Raises:
            ProtocolError: naming the party: it is not in the roster, or the signature is not its own.
        """
        key = self._keys.get(party)
        if key is None:
            raise ProtocolError(f"{_name(party)}: not in the roster")
        try:
            key.verify(signature, message)
        except InvalidSignature:
            raise ProtocolError(f"{_name(party)}: its signature does not fit the message") from None

    def accepts(self, party: int, message: bytes, signature: bytes) -> bool:
        """Whether `verify` returns, for callers who blame somebody else than the named signer."""
        try:
            self.verify(party, message, signature)
        except ProtocolError:
            return False
        return True

    def save(self, path: Path | str) -> None:
        """Writes the roster as JSON; it is public.

        Raises:
            FileExistsError: the file exists; a pinned roster is not overwritten.
        """
        clients = {str(k): v.hex() for k, v in self.clients.items()}
        with open(path, "x", encoding="utf-8") as file:
            json.dump({"format": _ROSTER, "server": self.server.hex(), "clients": clients}, file, indent=1)
            file.write("\n")

    @classmethod
    def load(cls, path: Path | str) -> Roster:
        """The roster in a file of `save`.

        Raises:
            ConfigError: it holds something else. ProtocolError: keys that no roster has.
        """
        found = _read(path, _ROSTER)
        clients = found.get("clients")
        if not isinstance(clients, dict) or not all(
            k.isascii() and k.isdigit() and len(k) <= 10 for k in clients
        ):
            raise ConfigError(f"{path} is not a roster: its clients are not listed by index")
        if any(str(int(k)) != k for k in clients):
            raise ConfigError(f"{path} is not a roster: a client's index is not written plainly")
        return cls(_key(found.get("server"), path), {int(k): _key(v, path) for k, v in clients.items()})

    def pin(self, path: Path | str) -> None:
        """Trust on first use: writes the roster where there is none, and else demands the same one.

        Whoever controls the first meeting controls all that follow; a roster exchanged out of band is safer.

        Raises:
            ProtocolError: another roster was pinned here.
        """
        try:
            self.save(path)
        except FileExistsError:
            if Roster.load(path).digest != self.digest:
                raise ProtocolError(
                    f"roster: another one is pinned in {path}; ask why before removing it"
                ) from None


def _name(party: int) -> str:
    return "server" if party == SERVER else f"client {party}"


def _read(path: Path | str, form: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != form:
        raise ConfigError(f"{path} is not a file of the format '{form}'")
    return found


def _key(text: object, path: Path | str) -> bytes:
    try:
        key = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path}: a key is not {KEY_BYTES} bytes in hexadecimal")
    return key
