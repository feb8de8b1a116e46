"""Central client-level differential privacy: clip each client's whole update, add noise to the sum.

Adversary: other clients and outsiders, who see only noised means. The server adds the noise and sees
what it was given before that, so there is no guarantee against the server. Unit: everything of one
client; neighbours: add or remove one client, each with its whole update of every round.

DP-FedAvg with flat clipping (McMahan, Ramage, Talwar and Zhang 2018, arXiv 1710.06963).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError
from securefed.types import Vector

_HAIR = 2.0**-22  # rounding to float32 lengthens a vector by at most 2^-24 of its norm


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """A vector whose L2 norm is at most `sensitivity`, the bound that its noise must be scaled to.

    The sensitivity is the public clipping norm, never the vector's own norm.
    """

    vector: Vector = field(repr=False)
    sensitivity: float


def clip_update(vector: Vector, max_norm: float) -> Clipped:
    """The update scaled down to L2 norm max_norm if it is longer.

    Args:
        vector: float32 (d,). Zero stays zero; not a number or infinite is refused.
        max_norm: public clipping norm, > 0.

    Returns:
        float32 (d,), norm at most max_norm *after* rounding: it is clipped a hair (2^-22) below.

    Raises:
        PrivacyError: non-finite values, another dtype or shape, max_norm out of range.
    """
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise PrivacyError(f"max_norm must be a finite number above 0, got {max_norm!r}")
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise PrivacyError(f"an update is a float32 vector (d,), got {vector.dtype} {vector.shape}")
    wide = vector.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    if not math.isfinite(norm):
        raise PrivacyError("an update with a value that is not finite has no bounded norm; drop this client")
    limit = max_norm * (1 - _HAIR)
    clipped = (wide * (limit / norm) if norm > limit else wide).astype(np.float32)
    if float(np.linalg.norm(clipped.astype(np.float64))) > max_norm:
        raise PrivacyError(f"max_norm={max_norm:g} is too small for float32; raise it or rescale the update")
    return Clipped(clipped, float(max_norm))


def noisy_share(clipped: Clipped, noise_multiplier: float, honest: int, stream: Stream) -> Vector:
    """One client's update with its share of the noise, float32 (d,): for sums of real numbers, as under CKKS.

    The sum over at least `honest` clients that keep their noise to themselves carries Gaussian noise of deviation
    sensitivity x noise_multiplier, against everyone who sees only sums. Record one
    `SampledGaussian(noise_multiplier, 1.0, 1)` a round; fewer survivors than honest + corrupt: abort.

    Floating point: hardened as `Stream.normal`, not exact; in a ring of integers use `DistributedSkellam`.

    Args:
        clipped: from `clip_update`. noise_multiplier: > 0. honest: minimum of survivors minus clients
            assumed corrupt, >= 1. stream: secret, fresh, this client's own.

    Raises:
        PrivacyError: an argument out of range.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0) or honest < 1:
        raise PrivacyError(
            f"a share of noise needs noise_multiplier > 0 and honest >= 1, got {noise_multiplier!r} and {honest}"
        )
    deviation = clipped.sensitivity * noise_multiplier / math.sqrt(honest)
    noised = clipped.vector + deviation * stream.normal(len(clipped.vector))
    return noised.astype(np.float32)


def noisy_mean(
    total_of_clipped: NDArray[np.floating],
    sensitivity: float,
    noise_multiplier: float,
    denominator: float,
    stream: Stream,
) -> Vector:
    """(sum + Gaussian noise of standard deviation sensitivity x noise_multiplier) / denominator, float32 (d,).

    Private against other clients and outsiders, not against the server. Record one
    `SampledGaussian(noise_multiplier, sample_rate, 1)` per call in the ledger, before it.

    Args:
        total_of_clipped: sum of `clip_update` vectors (d,), each client once, weights all one.
        sensitivity: of those `Clipped`.
        noise_multiplier: > 0.
        denominator: public expected cohort size, > 0. Never the number of clients that came, which
            would need noise of its own.
        stream: secret randomness, e.g. `entropy.stream("central noise", run, round)`.

    Raises:
        PrivacyError: an argument out of range, or a sum that is not finite.
    """
    for name, value in (
        ("sensitivity", sensitivity),
        ("noise_multiplier", noise_multiplier),
        ("denominator", denominator),
    ):
        if not (math.isfinite(value) and value > 0):
            raise PrivacyError(f"{name} must be a finite number above 0, got {value!r}")
    total = np.asarray(total_of_clipped, np.float64)
    if total.ndim != 1 or not bool(np.isfinite(total).all()):
        raise PrivacyError("the sum of clipped updates is not a finite vector (d,); nothing is released")
    noised = total + sensitivity * noise_multiplier * stream.normal(len(total))
    return (noised / denominator).astype(np.float32)
