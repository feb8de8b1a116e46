"""What outlives a round: identities, the run's context at each party, and the key holder's memory.

Keys are made for one run. They are in no configuration, checkpoint, log or repr; a run that is
resumed gets new ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import Identity, Roster
from securefed.errors import PrivacyError
from securefed.protect.ckks.parameters import ParameterSet
from securefed.protect.ckks.scheme import Scheme

Positions = NDArray[np.int64]
"""Which coordinates are encrypted, ascending."""


def context_digest(run: str, parameters: ParameterSet, trust: str, key: bytes) -> bytes:
    """Names a run's context: the set and the key that everything is encrypted under, 32 bytes.

    For a shared key this is a hash of the secret key itself, which has more entropy than any search.
    """
    facts = f"{len(run)}:{run};{parameters.name};{parameters.degree};{parameters.key_primes};{trust}"
    return hashlib.sha256(b"securefed ckks context" + facts.encode() + hashlib.sha256(key).digest()).digest()


@dataclass(frozen=True, eq=False)
class Context:
    """A context that has arrived: its digest, and for a client what encrypts."""

    digest: bytes
    scheme: Scheme | None = field(default=None, repr=False)


@dataclass(eq=False)
class Party:
    """A client or the server over a run.

    Attributes:
        id: the client's index, or `SERVER`. identity, roster: who signs, and whose signatures count.
        contexts: those that have arrived, by the set's name.
        schemes: context's digest -> what encrypts under it. The clients of one process share it: a
            thousand of them would otherwise hold the same public key a thousand times.
    """

    id: int
    identity: Identity = field(repr=False)
    roster: Roster = field(repr=False)
    contexts: dict[str, Context] = field(default_factory=dict, repr=False)
    schemes: dict[bytes, Scheme] = field(default_factory=dict, repr=False)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(
            "ckks: a party's keys live for one run in one process and are never stored or copied"
        )


@dataclass(eq=False)
class HolderParty(Party):
    """The key holder over a run.

    Attributes:
        keys: set's name -> (the scheme that holds the secret key, the bytes clients get).
        opened: rounds of which a sum has been opened; each is opened once.
        sensitive: layout digest -> the coordinates that stay encrypted.
    """

    keys: dict[str, tuple[Scheme, bytes]] = field(default_factory=dict, repr=False)
    opened: set[tuple[str, int]] = field(default_factory=set)
    sensitive: dict[str, Positions] = field(default_factory=dict, repr=False)
