"""Client-level DP without a trusted server: each client's share of the noise is added before a secure sum.

Client: clip (L2), rotate, scale to `levels` steps, round under a norm bound, add integer noise, reduce
modulo 2^bits. The secure sum adds these integers. Server: recentre, scale back, rotate back.

Unit: everything of one client; neighbours: one client's update replaced by zero (it still takes part and
adds noise; who takes part is public). Adversary: everyone who sees only sums, the server included, together
with up to `corrupt` clients, who know their own noise. So every client's variance is 1 / honest of
what the guarantee needs, honest = min_survivors - corrupt, and a sum over fewer than min_survivors is
refused. A client that skips its noise weakens the others' guarantee like any corrupt one.

Kairouz, Liu and Steinke 2021 (arXiv 2102.06387v4): discrete Gaussian. Agarwal, Kairouz and Liu 2021
(arXiv 2110.04995v2): Skellam, whose sums are Skellam again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError
from securefed.privacy.client_level import clip_update
from securefed.privacy.discrete_weights import Family
from securefed.privacy.events import DiscreteGaussianSum, SkellamSum
from securefed.privacy.rotation import rotate, unrotate
from securefed.privacy.rounding import l1_bound, round_within, rounded_norm_squared
from securefed.privacy.samplers import MOST_DISTANCE, Sampler, discrete_gaussian, skellam
from securefed.privacy.wraparound import wrap_probability
from securefed.types import Vector

Ring = NDArray[np.uint32]
MOST_WRAP = 2.0**-20
"""A mechanism whose sum wraps around more often than this in a round is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedMechanism(ABC):
    """Both halves, all public constants. Make one with `design` or `calibrate`, one for each round with `at_round`.

    Attributes:
        dimension: d of the update.
        clip: L2 clipping norm, in the update's own units.
        levels: clipping norm in steps of the quantizer; a step is clip / levels.
        variance: of one client's noise in one coordinate, in steps squared.
        clients: most clients in one sum. min_survivors: fewest. corrupt: of those, assumed not to protect.
        bits: the ring is Z_(2^bits), at most 32.
        vectors: most clipped vectors that one client adds up in a round: 1 for its update (client level);
            more for per-example gradients (example level), each of which is clipped and rounded by itself.
        seed: the round's public rotation seed.

    Raises:
        PrivacyError: a field out of range; a wrap-around probability above 2^-20 a round.
    """

    dimension: int
    clip: float
    levels: float
    variance: float
    clients: int
    min_survivors: int
    corrupt: int = 0
    bits: int = 16
    vectors: int = 1
    seed: bytes = bytes(16)

    FAMILY: ClassVar[Family]

    def __post_init__(self) -> None:
        if not 0 <= self.corrupt < self.min_survivors <= self.clients:
            raise PrivacyError(
                f"distributed noise needs 0 <= corrupt < min_survivors <= clients, got corrupt={self.corrupt}, "
                f"min_survivors={self.min_survivors}, clients={self.clients}"
            )
        if not (self.dimension >= 1 and self.vectors >= 1 and 2 <= self.bits <= 32):
            raise PrivacyError(
                f"dimension and vectors are at least 1 and bits lie in 2 .. 32, got {self.dimension}, "
                f"{self.vectors} and {self.bits}"
            )
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise PrivacyError(f"clip must be a finite number above 0, got {self.clip!r}")
        rounded_norm_squared(self.levels, self.dimension)  # its range
        if self.wrap_probability > MOST_WRAP:
            raise PrivacyError(
                f"with bits={self.bits} a sum of {self.clients} clients wraps around with probability up to "
                f"{self.wrap_probability:.2g}, above 2^-20; use more bits or fewer levels"
            )

    # --------------------------------------------------------------------------------- what it promises

    @property
    def honest(self) -> int:
        """Clients whose noise is in every sum and unknown to the adversary."""
        return self.min_survivors - self.corrupt

    @property
    def sensitivity(self) -> float:
        """L2 norm that no client's integer vector exceeds, *after* rounding, in steps."""
        return math.sqrt(rounded_norm_squared(self.levels, self.dimension))

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the honest noise over the sensitivity."""
        return math.sqrt(self.honest * self.variance) / self.sensitivity

    @property
    def noise_std(self) -> float:
        """Standard deviation of a coordinate of the decoded sum, in the update's units, if all clients survive."""
        return math.sqrt(self.clients * (self.variance + 0.25 * self.vectors)) * self.clip / self.levels

    @property
    def wrap_probability(self) -> float:
        """Bound on the probability that some coordinate of one round's sum wraps around."""
        return wrap_probability(
            self.FAMILY, self.levels, self.variance, self.clients, self.dimension, self.bits, self.vectors
        )

    @abstractmethod
    def sampler(self) -> Sampler:
        """Where one client's noise comes from."""

    @abstractmethod
    def event(self, rounds: int = 1, sample_rate: float = 1.0) -> SkellamSum | DiscreteGaussianSum:
        """What `rounds` sums spend, for the ledger; the samplers' distance is in its slack.

        Args:
            sample_rate: with which each record joins a client's sum, independently and unknown to everybody
                else (example level). Client level: 1, as everybody knows who takes part.
        """

    @property
    def _slack(self) -> float:
        return self.honest * self.dimension * MOST_DISTANCE

    def at_round(self, seed: bytes, clip: float | None = None) -> Self:
        """The same integers and the same event with the round's public seed and clipping norm."""
        return replace(self, seed=seed, clip=self.clip if clip is None else clip)

    # --------------------------------------------------------------------------------- client half

    def encode(self, update: Vector, stream: Stream) -> Ring:
        """One client's noised integers, uint32 (d,), each below 2^bits.

        Args:
            update: float32 (d,), any norm; clipped here. stream: secret, fresh, this client's own.

        Raises:
            PrivacyError: another shape, or values that are not finite.
        """
        return self.encode_sum((update,), stream)

    def encode_sum(self, vectors: Iterable[Vector], stream: Stream) -> Ring:
        """One client's noised sum of several vectors, each clipped and rounded by itself; as `encode`.

        For example level (FedSGD): the vectors are per-example gradients of a secretly sampled batch, none
        included. They are taken one by one, so an iterator needs no room for all.

        Raises:
            PrivacyError: more than `vectors` of them, another shape, or values that are not finite.
        """
        total = np.zeros(self.dimension, np.int64)
        for number, vector in enumerate(vectors, start=1):
            if number > self.vectors:
                raise PrivacyError(
                    f"more than vectors={self.vectors} vectors in one client's sum; the ring is not made for it"
                )
            total += self._rounded(vector, stream)
        total += self.sampler().draw(self.dimension, stream)
        total &= (1 << self.bits) - 1
        return total.astype(np.uint32)

    def _rounded(self, vector: Vector, stream: Stream) -> NDArray[np.int64]:
        """Integers of norm at most `sensitivity`, for certain."""
        if vector.shape != (self.dimension,):
            raise PrivacyError(f"expected a vector of shape ({self.dimension},), got {vector.shape}")
        work = clip_update(vector, self.clip).vector.copy()
        rotate(work, self.seed)
        work *= np.float32(self.levels / self.clip)
        return round_within(work, rounded_norm_squared(self.levels, self.dimension), stream)

    # --------------------------------------------------------------------------------- server half

    def decode(self, total: NDArray[np.unsignedinteger], survivors: int | None = None) -> Vector:
        """The noisy sum of the clipped updates, float32 (d,).

        Args:
            total: sum of `encode` vectors; any unsigned integers congruent to it modulo 2^bits.
            survivors: how many clients are in it, checked if given.

        Raises:
            PrivacyError: another shape or type, or too few or too many survivors for the claimed noise.
        """
        if total.shape != (self.dimension,) or total.dtype.kind != "u":
            raise PrivacyError(
                f"expected unsigned integers of shape ({self.dimension},), got {total.dtype} {total.shape}"
            )
        if survivors is not None:
            self.check_survivors(survivors)
        vector = centred(total, self.bits).astype(np.float32)
        vector *= np.float32(self.clip / self.levels)
        unrotate(vector, self.seed)
        return vector

    def check_survivors(self, survivors: int) -> None:
        """Raises PrivacyError unless a sum over this many clients carries the claimed noise and fits the ring."""
        if not self.min_survivors <= survivors <= self.clients:
            raise PrivacyError(
                f"{survivors} clients survived, but the noise is scaled for {self.min_survivors} to {self.clients}; "
                "abort the round"
            )


def centred(total: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.int64]:
    """Representatives in [-2^(bits-1), 2^(bits-1)) modulo 2^bits, int64."""
    half = 1 << (bits - 1)
    residue = total.astype(np.uint64) & np.uint64(2 * half - 1)
    return (residue.astype(np.int64) ^ half) - half


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedGaussian(DistributedMechanism):
    """Each client adds N_Z(0, variance); the sum is not one discrete Gaussian, which its event accounts for."""

    FAMILY: ClassVar[Family] = "gaussian"

    def sampler(self) -> Sampler:
        """Discrete Gaussian, made once."""
        return discrete_gaussian(self.variance)

    def event(self, rounds: int = 1, sample_rate: float = 1.0) -> DiscreteGaussianSum:
        """`DiscreteGaussianSum` over the honest clients' shares."""
        return DiscreteGaussianSum(
            self.sensitivity, self.dimension, self.variance, self.honest, rounds, self._slack, sample_rate
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedSkellam(DistributedMechanism):
    """Each client adds Skellam(variance); sums of shares are exactly Skellam."""

    FAMILY: ClassVar[Family] = "skellam"

    def sampler(self) -> Sampler:
        """Skellam, made once."""
        return skellam(self.variance)

    def event(self, rounds: int = 1, sample_rate: float = 1.0) -> SkellamSum:
        """`SkellamSum` over the honest clients' shares."""
        square = rounded_norm_squared(self.levels, self.dimension)
        l1 = l1_bound(square, self.dimension)
        variance = self.honest * self.variance * (1 - 2.0**-50)  # the product, rounded down
        return SkellamSum(math.sqrt(square), l1, variance, rounds, self._slack, sample_rate)
