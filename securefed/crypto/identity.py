"""Who is who: Ed25519 signing keys (RFC 8032) and the roster that every party pins before a run.

The roster is the root of trust. Whoever hands out a wrong one can put clients of its own into a cohort; it
must reach the parties by a way that the server of the run does not control.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from securefed.crypto.encoding import Writer
from securefed.errors import ProtocolError
from securefed.types import SERVER

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_DOMAIN = b"securefed roster v1"


class Identity:
    """A party's long-lived signing key."""

    __slots__ = ("_private", "_seed", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise ProtocolError(f"an identity needs a seed of {KEY_BYTES} bytes, got {len(seed)}")
        self._seed = bytes(seed)
        self._private = Ed25519PrivateKey.from_private_bytes(self._seed)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> Identity:
        """A fresh identity."""
        return cls(entropy.stream("Ed25519 key").bytes(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of this seed."""
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of exactly these bytes."""
        return self._private.sign(message)

    def save(self, path: Path | str) -> None:
        """Writes the secret seed, readable by its owner alone.

        Raises:
            ProtocolError: the file exists; an identity is never written over.
            OSError: it cannot be written.
        """
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ProtocolError(
                f"{path} exists; an identity is never written over, move it away first"
            ) from None
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(
                json.dumps({"version": 1, "kind": "securefed identity", "seed": self._seed.hex()}) + "\n"
            )

    @classmethod
    def load(cls, path: Path | str) -> Identity:
        """The identity in a file.

        Raises:
            ProtocolError: no such file, not an identity, or readable by others than its owner.
        """
        try:
            if os.name == "posix" and os.stat(path).st_mode & 0o077:
                raise ProtocolError(
                    f"{path} can be read by others; chmod 600 it, and think of the key as known"
                )
            tree = json.loads(Path(path).read_text(encoding="ascii"))
            if tree["version"] != 1 or tree["kind"] != "securefed identity":
                raise KeyError
            return cls(bytes.fromhex(tree["seed"]))
        except OSError as error:
            raise ProtocolError(f"cannot read the identity {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise ProtocolError(f"{path} is not an identity file of this version") from None

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()[:16]}..., secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ProtocolError("an identity is a secret; save it to a file of its own")


@dataclass(frozen=True)
class Roster:
    """Every party's public key, pinned before a run.

    Attributes:
        server: its key, 32 bytes. clients: id -> key, each id >= 0.

    Raises:
        ProtocolError: a key that is none, or two parties with one key.
    """

    server: bytes
    clients: Mapping[int, bytes] = field()

    def __post_init__(self) -> None:
        ordered = {client: bytes(self.clients[client]) for client in sorted(self.clients)}
        object.__setattr__(self, "clients", MappingProxyType(ordered))
        if any(client < 0 for client in ordered):
            raise ProtocolError("clients of a roster are numbered 0, 1, 2, ...")
        everyone = [self.server, *ordered.values()]
        if len(set(everyone)) < len(everyone):
            raise ProtocolError("two parties of the roster have the same key; one of them is not who it says")
        _ = self._keys

    @cached_property
    def _keys(self) -> dict[int, Ed25519PublicKey]:
        try:
            return {
                party: Ed25519PublicKey.from_public_bytes(key)
                for party, key in ({SERVER: self.server} | dict(self.clients)).items()
            }
        except ValueError:
            raise ProtocolError("the roster holds something that is no Ed25519 public key") from None

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it, 32 bytes: what parties compare to see that they pinned the same."""
        writer = Writer().raw(_DOMAIN).raw(self.server).u32(len(self.clients))
        for client, key in self.clients.items():
            writer.u32(client).raw(key)
        return hashlib.sha256(writer.finish()).digest()

    def verify(self, party: int, message: bytes, signature: bytes) -> bool:
        """Whether this party signed exactly these bytes; False for a stranger."""
        key = self._keys.get(party)
        if key is None:
            return False
        try:
            key.verify(bytes(signature), message)
        except InvalidSignature:
            return False
        return True

    accepts = verify  # the name where a reader might expect `verify` to raise

    def check(self, party: int, message: bytes, signature: bytes) -> None:
        """Raises unless this party signed exactly these bytes.

        Raises:
            ProtocolError: names the party in whose name something was said.
        """
        if not self.verify(party, message, signature):
            who = "the server" if party == SERVER else f"client {party}"
            raise ProtocolError(f"a message in the name of {who} does not bear its signature")

    def save(self, path: Path | str) -> None:
        """Writes the public keys as JSON."""
        tree = {
            "version": 1,
            "kind": "securefed roster",
            "server": self.server.hex(),
            "clients": {str(client): key.hex() for client, key in self.clients.items()},
        }
        Path(path).write_text(json.dumps(tree, indent=1) + "\n", encoding="ascii")

    @classmethod
    def load(cls, path: Path | str) -> Roster:
        """The roster in a file.

        Raises:
            ProtocolError: no such file, or not a roster.
        """
        try:
            tree = json.loads(Path(path).read_text(encoding="ascii"))
            if tree["version"] != 1 or tree["kind"] != "securefed roster":
                raise KeyError
            clients = {int(client): bytes.fromhex(key) for client, key in tree["clients"].items()}
            return cls(bytes.fromhex(tree["server"]), clients)
        except OSError as error:
            raise ProtocolError(f"cannot read the roster {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ProtocolError(f"{path} is not a roster of this version") from None
