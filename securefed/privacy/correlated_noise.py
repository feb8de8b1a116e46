"""The noise of a matrix-factorization mechanism, one round at a time, in O(bands) memory.

The state is a secret as dangerous as a key: earlier noise vectors, with which a round's noise can be
reduced. It shows itself nowhere, is not pickled, and leaves only by `secret_bytes`, for the server's own
store, so that a run can go on after a crash; whoever reads it voids the guarantee.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError
from securefed.privacy.matrix_factorization import BandedToeplitz

_MAGIC = b"SFCN1"
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CorrelatedNoise:
    """Noise of round `round`, and what the next rounds need of it. A step gives a new state.

    Attributes:
        factor: C. deviation: of z in each coordinate: clip x factor.sensitivity x noise_multiplier.
        dimension: d. round: the next round to be drawn, 0 at the start.
        recent: the last bands - 1 noise vectors, newest first; secret.

    Raises:
        PrivacyError: a field out of range.
    """

    factor: BandedToeplitz
    deviation: float
    dimension: int
    round: int = 0
    recent: tuple[Array, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.deviation) and self.deviation > 0) or self.dimension < 1:
            raise PrivacyError(
                f"correlated noise needs a deviation > 0 and a dimension >= 1, got {self.deviation!r} and "
                f"{self.dimension}"
            )
        if len(self.recent) != min(self.round, self.factor.bands - 1):
            raise PrivacyError(
                f"the noise of round {self.round} needs {min(self.round, self.factor.bands - 1)} earlier noise "
                f"vectors, got {len(self.recent)}; a lost state ends the run"
            )

    def step(self, stream: Stream) -> tuple[Array, CorrelatedNoise]:
        """This round's noise for the sum of clipped updates, float64 (d,), and the next state.

        (C^-1 z)_t = z_t - sum_(j >= 1) c_j (C^-1 z)_(t - j), as c_0 = 1.

        Args:
            stream: secret and fresh, e.g. `entropy.stream("correlated noise", run, round)`.

        Raises:
            PrivacyError: more rounds than were charged.
        """
        if self.round >= self.factor.participation.rounds:
            raise PrivacyError(
                f"the mechanism was charged for {self.factor.participation.rounds} rounds and all are drawn; start a "
                "new one, which is charged anew"
            )
        noise = self.deviation * stream.normal(self.dimension)
        for c, earlier in zip(self.factor.coefficients[1:], self.recent, strict=False):
            noise -= c * earlier
        kept = (noise, *self.recent)[: self.factor.bands - 1]
        return noise, CorrelatedNoise(self.factor, self.deviation, self.dimension, self.round + 1, kept)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("correlated noise is a secret and is never pickled; see secret_bytes")

    def secret_bytes(self) -> bytes:
        """The state, to be kept where only this server's process can read it, and replaced every round."""
        head = json.dumps({"round": self.round, "state": self._fingerprint()}).encode()
        body = b"".join(np.ascontiguousarray(v, "<f8").tobytes() for v in self.recent)
        return _MAGIC + struct.pack("<I", len(head)) + head + body

    def restored(self, secret: bytes) -> CorrelatedNoise:
        """The state that `secret_bytes` wrote, of this same mechanism (whatever its own round).

        Raises:
            PrivacyError: bytes of another mechanism, or damaged ones.
        """
        try:
            if secret[:5] != _MAGIC:
                raise ValueError
            (size,) = struct.unpack_from("<I", secret, 5)
            head = json.loads(secret[9 : 9 + size])
            rows = np.frombuffer(secret[9 + size :], "<f8").reshape(-1, self.dimension)
            if head["state"] != self._fingerprint() or not np.isfinite(rows).all():
                raise ValueError
            recent = tuple(row.astype(np.float64) for row in rows)
            return CorrelatedNoise(self.factor, self.deviation, self.dimension, int(head["round"]), recent)
        except (ValueError, KeyError, TypeError, struct.error):
            raise PrivacyError(
                "this is no noise state of this mechanism; the run cannot go on from it"
            ) from None

    def _fingerprint(self) -> str:
        p = self.factor.participation
        public = (self.factor.coefficients, p.rounds, p.separation, p.most, self.deviation, self.dimension)
        return hashlib.sha256(repr(public).encode()).hexdigest()


def correlated_noise(
    factor: BandedToeplitz, clip: float, noise_multiplier: float, dimension: int
) -> CorrelatedNoise:
    """The noise whose whole run is `factor.event(noise_multiplier)` for updates clipped to L2 norm `clip`.

    Raises:
        PrivacyError: an argument out of range.
    """
    return CorrelatedNoise(factor, clip * noise_multiplier * factor.sensitivity, dimension)


def check_participation(factor: BandedToeplitz, taken: Sequence[int], round: int, client: int) -> None:
    """Raises PrivacyError if the client may not take part in this round after those it took part in."""
    if not factor.participation.allows(taken, round):
        p = factor.participation
        raise PrivacyError(
            f"client {client} may take part at most {p.most} times and at least {p.separation} rounds apart; "
            f"round {round} would break that; select another client"
        )
