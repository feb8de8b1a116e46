"""Client-level DP whose Gaussian noise is in shares that clients add before they encrypt: reserve, check, journal.

Unit: everything of one client; neighbours: its update becomes zero. Adversary: everyone who sees only decrypted sums, the
server included, with up to `corrupt` clients; whoever holds the key opens nothing else. The server chooses who takes
part, so every client counts as taking part in every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from securefed.crypto.entropy import Entropy, Stream
from securefed.errors import PrivacyError
from securefed.privacy.budget import Budget
from securefed.privacy.client_level import clip_update, noisy_share
from securefed.privacy.events import SharedGaussian
from securefed.privacy.journaled_release import JournaledRelease
from securefed.privacy.ledger import Ledger
from securefed.privacy.moving_clip import MovingClip, centred_bit, without_bit
from securefed.types import Collected, Vector


@dataclass(frozen=True, slots=True)
class Shares:
    """What a client knows of its share; public constants.

    Attributes:
        noise_multiplier: of the update, over its clip, in the sum of the honest. unit: the clip that a share is
            scaled to before it is encrypted, so that a clip that moves needs no other range.
        min_survivors: fewest clients in a sum. corrupt: of those, assumed to tell their noise.
        count_std: of the noise on the sum of bits; 0 where the clip does not move.
    """

    noise_multiplier: float
    unit: float
    min_survivors: int
    corrupt: int
    count_std: float = 0.0

    @property
    def honest(self) -> int:
        """Clients whose share is in every sum and unknown to the adversary."""
        return self.min_survivors - self.corrupt

    @property
    def farthest(self) -> float:
        """No coordinate of what a client sends lies beyond it, but with probability below 2^-100."""
        update = self.unit * (1 + 12 * self.noise_multiplier / math.sqrt(self.honest))
        return max(update, 0.5 + 12 * self.count_std / math.sqrt(self.honest))

    def update(self, vector: Vector, clip: float, stream: Stream) -> Vector:
        """The clipped update with its share of the noise, in units of clip / unit, float32 (d,)."""
        noised = noisy_share(clip_update(vector, clip), self.noise_multiplier, self.honest, stream)
        return (noised * np.float32(self.unit / clip)).astype(np.float32)

    def bit(self, vector: Vector, clip: float, stream: Stream) -> float:
        """The centred bit with its share of the noise."""
        return centred_bit(vector, clip) + self.count_std / math.sqrt(self.honest) * float(
            stream.normal(1)[0]
        )


def bounded(
    vector: Vector,
    clip: float,
    moves: bool,
    shares: Shares | None,
    stream: Callable[[], Stream],
    scale: float = 1.0,
) -> tuple[Vector, float | None]:
    """What a client does to its whole update: clips it, scales it, adds its share of the noise where it adds one.

    Args:
        clip: the round's. moves: whether the clip follows the norms, by the bit that is given back; else that is None.
        stream: of this client's share, opened only where there is one.
        scale: public, in (0, 1], so that no norm exceeds the clip after it.
    """
    short = vector if scale == 1 else np.float32(scale) * clip_update(vector, clip).vector
    if shares is None:
        return clip_update(short, clip).vector, centred_bit(vector, clip) if moves else None
    own = stream()
    bit = shares.bit(vector, clip, own) if moves else None
    return shares.update(short, clip, own), bit


@dataclass(frozen=True)
class SharedRelease(JournaledRelease):
    """Reserves, journals and releases one noisy mean a round; the server holds nothing less noised.

    Attributes:
        noise_multiplier: of the round as a whole. shares: what the clients add.
        clip: where it moves with the norms; None for a fixed one.
    """

    ledger: Ledger
    run: str
    noise_multiplier: float
    shares: Shares
    budget: Budget | None
    clip: MovingClip | None = None

    @property
    def event(self) -> SharedGaussian:
        """What one round spends, for every client, whether it is in the cohort or not."""
        return SharedGaussian(self.noise_multiplier, 1.0, 1)

    def release(self, reservation: int, round: int, collected: Collected, entropy: Entropy) -> Vector:
        """The mean over the survivors, who are public, float32 (d,), journaled before it is returned.

        Raises:
            PrivacyError: too few survivors for the claim, or the protection showed single updates.
        """
        n = len(collected.survivors)
        if collected.updates is not None:
            raise PrivacyError('noise shared among clients needs a sum that hides them; use "ckks"')
        if n < self.shares.min_survivors:
            raise PrivacyError(
                f"{n} clients survived, but the noise is scaled for {self.shares.min_survivors}; abort the round"
            )
        total, bits = (collected.total, 0.0) if self.clip is None else without_bit(collected.total)
        scale = 1.0 if self.clip is None else self.clip.value / self.shares.unit
        vector: Vector = (total * (scale / n)).astype(np.float32)
        payload = vector if self.clip is None else self.clip.payload(vector, bits, n)
        self._settle(reservation, payload)
        return vector if self.clip is None else self.clip.take(payload)
