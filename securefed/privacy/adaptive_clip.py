"""A clipping norm that follows a quantile of the clients' norms, learned privately (adaptive clipping).

Each client sends one bit more: whether its norm was at or below the round's clip. It travels centred
(b - 1/2) as an unrotated coordinate of the secure sum with its own scale and its own noise, and the server
moves the clip geometrically. The round's clip is a public parameter of the round: sign it with the others.

Andrew, Thakkar, McMahan and Ramaswamy 2021, arXiv 1905.03871v5, algorithm 1 and section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError
from securefed.privacy.discrete_weights import Family
from securefed.privacy.distributed import MOST_WRAP, Ring, centred
from securefed.privacy.events import DiscreteGaussianSum, SkellamSum
from securefed.privacy.samplers import MOST_DISTANCE, Sampler, discrete_gaussian, skellam
from securefed.privacy.wraparound import wrap_probability
from securefed.types import Vector


@dataclass(frozen=True, slots=True)
class AdaptiveClip:
    """The rule. A pure function of (clip, noisy fraction of norms at or below it).

    Attributes:
        quantile: of the clients' norms that the clip tracks, in (0, 1).
        learning_rate: of the logarithm of the clip, > 0.
        least, most: the clip stays between these; a site's floor on noise is relative to the clip, so
            that a server cannot weaken it by steering the clip.

    Raises:
        PrivacyError: a field out of range.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    least: float = 1e-6
    most: float = 1e6

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise PrivacyError(f"quantile must lie strictly between 0 and 1, got {self.quantile!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise PrivacyError(f"learning_rate must be a finite number above 0, got {self.learning_rate!r}")
        if not 0 < self.least <= self.most < math.inf:
            raise PrivacyError(f"clips need 0 < least <= most, got {self.least!r} and {self.most!r}")

    def step(self, clip: float, fraction_below: float) -> float:
        """The next round's clip: clip x exp(-learning_rate (fraction - quantile)), within its limits.

        Args:
            fraction_below: noisy, so it may lie outside of [0, 1]; it is not cut, which would bias it.

        Raises:
            PrivacyError: a clip out of range or a fraction that is no number.
        """
        if not (math.isfinite(clip) and clip > 0) or not math.isfinite(fraction_below):
            raise PrivacyError(
                f"a clip is a finite number above 0 and a fraction is finite, got {clip!r} and {fraction_below!r}"
            )
        exponent = -self.learning_rate * (fraction_below - self.quantile)
        return min(max(clip * math.exp(max(-60.0, min(60.0, exponent))), self.least), self.most)


def is_below(update: Vector, clip: float) -> bool:
    """The client's bit: whether its update's L2 norm is at most the clip. Private: it only leaves noised."""
    return float(np.linalg.norm(update.astype(np.float64))) <= clip


def split_noise(noise_multiplier: float, count_std: float) -> float:
    """The update's noise multiplier such that update and bit together cost `noise_multiplier`.

    z_update = (z^-2 - (2 sigma_b)^-2)^(-1/2): Gaussian noise of sigma_b on a sum of values +-1/2 has noise
    multiplier 2 sigma_b, and Gaussian mechanisms compose as the squares of 1 / z (theorem 1 of the paper).

    Args:
        noise_multiplier: z of the round as a whole, > 0.
        count_std: sigma_b, standard deviation of the noise on the *count* of bits; the paper takes a
            twentieth of the cohort.

    Raises:
        PrivacyError: count_std so small that the bit alone would cost more than z allows.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise PrivacyError(f"noise_multiplier must be a finite number above 0, got {noise_multiplier!r}")
    if not 2 * count_std > noise_multiplier:
        raise PrivacyError(
            f"noise of deviation {count_std:g} on the clip count costs all of noise multiplier "
            f"{noise_multiplier:g}; it must exceed {noise_multiplier / 2:g}"
        )
    return float((noise_multiplier**-2 - (2 * count_std) ** -2) ** -0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCount:
    """The bit's own coordinate: +-scale plus integer noise, in Z_(2^bits). Public constants only.

    Attributes:
        family: whose noise. scale: b - 1/2 is sent as +-scale; larger is finer noise, and costs range.
        variance: of one client's noise, in units of the sent integers.
        clients, min_survivors, corrupt, bits: as in `DistributedMechanism`.

    Raises:
        PrivacyError: a field out of range; a ring in which the sum would wrap around.
    """

    family: Family = "skellam"
    scale: int = 16
    variance: float
    clients: int
    min_survivors: int
    corrupt: int = 0
    bits: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.corrupt < self.min_survivors <= self.clients:
            raise PrivacyError(
                f"a noised count needs 0 <= corrupt < min_survivors <= clients, got corrupt={self.corrupt}, "
                f"min_survivors={self.min_survivors}, clients={self.clients}"
            )
        if self.scale < 1 or not 2 <= self.bits <= 32:
            raise PrivacyError(f"scale is at least 1 and bits lie in 2 .. 32, got {self.scale}, {self.bits}")
        if wrap_probability(self.family, self.scale, self.variance, self.clients, 1, self.bits) > MOST_WRAP:
            raise PrivacyError(
                f"with bits={self.bits} a count over {self.clients} clients wraps around; lower scale={self.scale}"
            )

    @property
    def honest(self) -> int:
        """Clients whose noise is in every sum and unknown to the adversary."""
        return self.min_survivors - self.corrupt

    def sampler(self) -> Sampler:
        """Where one client's noise comes from."""
        return skellam(self.variance) if self.family == "skellam" else discrete_gaussian(self.variance)

    def encode(self, below: bool, stream: Stream) -> Ring:
        """One client's noised bit, uint32 (1,), to be appended to its encoded update."""
        value = self.sampler().draw(1, stream) + (self.scale if below else -self.scale)
        return (value & ((1 << self.bits) - 1)).astype(np.uint32)

    def decode(self, total: Ring, survivors: int) -> float:
        """The noisy fraction of the survivors' bits that were set; may lie outside of [0, 1].

        Args:
            total: (1,), sum modulo 2^bits. survivors: public, how many clients are in it.

        Raises:
            PrivacyError: too few or too many survivors for the claimed noise, or another shape.
        """
        if total.shape != (1,):
            raise PrivacyError(f"a clip count is one coordinate, got shape {total.shape}")
        if not self.min_survivors <= survivors <= self.clients:
            raise PrivacyError(
                f"{survivors} clients survived, but the noise is scaled for {self.min_survivors} to {self.clients}; "
                "abort the round"
            )
        return 0.5 + int(centred(total, self.bits)[0]) / (2 * self.scale * survivors)

    def event(self, rounds: int = 1) -> SkellamSum | DiscreteGaussianSum:
        """What `rounds` counts spend, beside the updates' own event."""
        slack = self.honest * MOST_DISTANCE
        if self.family == "gaussian":
            return DiscreteGaussianSum(float(self.scale), 1, self.variance, self.honest, rounds, slack)
        variance = self.honest * self.variance * (1 - 2.0**-50)
        return SkellamSum(float(self.scale), float(self.scale), variance, rounds, slack)


def clip_count(
    count_std: float,
    *,
    clients: int,
    min_survivors: int,
    corrupt: int = 0,
    bits: int = 16,
    scale: int = 16,
    family: Family = "skellam",
) -> ClipCount:
    """The coordinate whose honest noise has deviation `count_std` on the count of set bits.

    Raises:
        PrivacyError: an argument out of range.
    """
    if not (math.isfinite(count_std) and count_std > 0) or min_survivors <= corrupt:
        raise PrivacyError(
            f"count_std must be a finite number above 0 and corrupt < min_survivors, got {count_std!r}, "
            f"{corrupt} and {min_survivors}"
        )
    variance = (2 * scale * count_std) ** 2 / (min_survivors - corrupt)
    return ClipCount(
        family=family,
        scale=scale,
        variance=variance * (1 + 2.0**-40),
        clients=clients,
        min_survivors=min_survivors,
        corrupt=corrupt,
        bits=bits,
    )
