"""The noise of one step of a federation's DP-SGD: whose it is, what it is scaled to, what the step spends.

Unit: one record of one client; neighbours: its gradient becomes zero. A record is in a step with probability
`sample_rate`, drawn by its own client in secret, so sampling amplifies against everyone else. A client's part of
a step is the sum of its clipped gradients over `expected`, negated: an update, whose mean over clients the
server's optimizer applies.

- "central": the server adds the noise to the sum. Holds against other clients and outsiders only.
- "gaussian": each client adds 1 / honest of the variance before it encrypts.
- "skellam", "discrete-gaussian": the same in integers, in a masked sum; each record's gradient is rounded by
  itself, and the bound after rounding is the sensitivity (`distributed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.events import (
    CentralGaussian,
    DiscreteGaussianSum,
    SampledGaussian,
    SharedGaussian,
    SkellamSum,
)
from securefed.types import Vector

StepEvent = SampledGaussian | SkellamSum | DiscreteGaussianSum
_ROUNDING = 2.0**-23
"""Two neighbouring sums, rounded to float32, are further apart by at most this share of a sum's own length."""


@dataclass(frozen=True, kw_only=True)
class StepNoise:
    """Public constants of every step of a run.

    Attributes:
        kind: "central", "gaussian" or a key of `distributed_release.KINDS`.
        noise_multiplier: deviation of the claimed noise over the sensitivity.
        sample_rate: of each record in each step. clip: L2 norm that bounds one record's gradient.
        expected: sample_rate x the mean number of records of a client; what a client's sum is divided by.
        records: the most that one client holds.
        min_survivors: fewest clients in a sum. corrupt: of those, assumed to pool what they know.
        mechanisms: size of an update -> its integers' mechanism; empty for real numbers.

    Raises:
        PrivacyError: no honest client is left, or too many records for float32.
    """

    kind: str
    noise_multiplier: float
    sample_rate: float
    clip: float
    expected: float
    records: int
    min_survivors: int = 1
    corrupt: int = 0
    mechanisms: Mapping[int, DistributedMechanism] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.corrupt < self.min_survivors:
            raise PrivacyError(
                f"shares of noise need 0 <= corrupt < min_survivors, got corrupt={self.corrupt}, "
                f"min_survivors={self.min_survivors}"
            )
        if self.records * _ROUNDING >= 0.5:
            raise PrivacyError(
                f"a client's sum over {self.records} records is too long for float32; split the shard, or share the noise"
            )

    @property
    def honest(self) -> int:
        """Clients whose share is in every sum and unknown to the adversary."""
        return self.min_survivors - self.corrupt

    @property
    def record_norm(self) -> float:
        """What a record's gradient is clipped to: the sensitivity, less what rounding of a bare sum may add."""
        return self.clip * (1 - self.records * _ROUNDING if self.kind == "central" else 1)

    @property
    def deviation(self) -> float:
        """Of the claimed noise in a coordinate of the sum of clients' parts, in the parts' own units."""
        return self.noise_multiplier * self.clip / self.expected

    @property
    def share(self) -> float:
        """Deviation of one client's share, under "gaussian"."""
        return self.deviation / float(np.sqrt(self.honest))

    @property
    def farthest(self) -> float:
        """No coordinate of a client's part with its share lies beyond it, but with probability below 2^-100."""
        return (self.records * self.clip) / self.expected + 12 * self.share

    def event(self, size: int) -> StepEvent:
        """What one step with updates of `size` coordinates spends, for every record of the cohort.

        Raises:
            PrivacyError: no mechanism was designed for this size.
        """
        if not self.mechanisms:
            kind = CentralGaussian if self.kind == "central" else SharedGaussian
            return kind(self.noise_multiplier, self.sample_rate, 1)
        if size not in self.mechanisms:
            raise PrivacyError(f"no noise was designed for steps of {size} coordinates")
        return self.mechanisms[size].event(1, self.sample_rate)

    def part(self, total: NDArray[np.float64], stream: Stream) -> Vector:
        """A client's part of the step from the sum of its clipped gradients, float32 (d,).

        Under "gaussian" with its share of the noise, which is added before anything is rounded.

        Args:
            total: float64 (d,). stream: secret, fresh, this client's own.
        """
        part = total / -self.expected
        if self.kind == "gaussian":
            part = part + self.share * stream.normal(len(part))
        return part.astype(np.float32)

    def check_survivors(self, survivors: int) -> None:
        """Raises PrivacyError where fewer clients survived than the noise is claimed for."""
        if survivors < self.min_survivors:
            raise PrivacyError(
                f"{survivors} clients survived, but the noise is scaled for {self.min_survivors}; abort the round"
            )
