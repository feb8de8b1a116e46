"""What all parties of one CKKS round agree on: the round, the trust model, the scale; signed by its digest."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from securefed.protect.ckks.parameters import Plan, choose
from securefed.types import RoundParameters

Trust = Literal["key_holder", "verified", "shared_key"]

TRUST: dict[Trust, str] = {
    "key_holder": "server and key holder follow the protocol and do not collude; clients cannot decrypt",
    "verified": "the key holder adds the signed ciphertexts itself, so a lying server gets no other sum; the holder "
    "is trusted not to open single ones",
    "shared_key": "every client holds the secret key: the server and any one client together read every update",
}
"""Trust model -> what it assumes, in one sentence."""


@dataclass(frozen=True)
class CKKSRound:
    """The public constants of one round.

    Attributes:
        base: run, round, cohort, layout, global model and, if public, weights.
        trust: who holds the key and who is believed.
        parameters: name of the set, or "auto". error: what "auto" must reach, over value_range.
        value_range, max_weight: bounds of a coordinate and of a weight (1 / the largest public one).
        flooding, flooding_rounds: see `Plan`.
        min_survivors: fewest clients in a sum that the holder opens.
        encrypted_share: of the coordinates, once the holder knows the most sensitive ones.
        roster: digest of the pinned identities.
    """

    base: RoundParameters
    trust: Trust
    parameters: str
    error: float
    value_range: float
    max_weight: float
    flooding: int
    flooding_rounds: int
    min_survivors: int
    encrypted_share: float = 1.0
    roster: bytes = bytes(32)

    @property
    def secret_weights(self) -> bool:
        """Whether a weight is one more encrypted coordinate, or known to all."""
        return self.base.weights is None

    @cached_property
    def plan(self) -> Plan:
        """Set, scale, noise and cost, where every coordinate is encrypted.

        Raises:
            ConfigError: no parameters reach what is asked for.
        """
        return choose(
            self.parameters,
            len(self.base.clients),
            self.base.size + self.secret_weights,
            self.value_range,
            self.max_weight,
            self.error,
            symmetric=self.trust == "shared_key",
            flooding=self.flooding,
            rounds=self.flooding_rounds,
        )

    @property
    def encrypted(self) -> int:
        """How many of the d coordinates are encrypted once the sensitive ones are known."""
        return max(1, math.ceil(self.encrypted_share * self.base.size))

    def public_weight(self, client: int) -> float | None:
        """The client's public weight, None where weights are secret."""
        weights = self.base.weights
        return None if weights is None else weights[self.base.clients.index(client)]

    @cached_property
    def digest(self) -> bytes:
        """H(round parameters), 32 bytes; the global model's digest stands beside it in every header."""
        b = self.base
        texts = (b.run, self.trust, self.parameters, b.layout_digest)
        parts = [struct.pack("<I", len(t.encode())) + t.encode() for t in texts]
        parts.append(struct.pack(f"<IQI{len(b.clients)}I", b.round, b.size, len(b.clients), *b.clients))
        weights = b.weights or ()
        parts.append(struct.pack(f"<?{len(weights)}d", b.weights is not None, *weights))
        parts.append(struct.pack("<ddd", self.error, self.value_range, self.max_weight))
        parts.append(struct.pack("<III", self.flooding, self.flooding_rounds, self.min_survivors))
        parts.append(struct.pack("<d", self.encrypted_share) + self.roster + bytes.fromhex(b.ledgers))
        return hashlib.sha256(b"securefed ckks round parameters" + b"".join(parts)).digest()
