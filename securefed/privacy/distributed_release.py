"""Client-level DP in a job whose noise the clients add: its constants, the words of a round, the released mean.

Unit: everything of one client; neighbours: its update becomes zero. Adversary: everyone who sees only sums,
the server included, with up to `corrupt` clients (`privacy/distributed.py` has the mechanism and its sources).
The server chooses who takes part, so nothing is gained by sampling: every client counts as taking part in
every round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.encoding import Writer
from securefed.crypto.entropy import Entropy, Stream
from securefed.errors import PrivacyError, ProtocolError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.adaptive_clip import ClipCount, clip_count, split_noise
from securefed.privacy.budget import Budget
from securefed.privacy.design import Cohort, calibrate, design
from securefed.privacy.distributed import (
    DistributedGaussian,
    DistributedMechanism,
    DistributedSkellam,
    Ring,
)
from securefed.privacy.events import DiscreteGaussianSum, Event, SkellamSum
from securefed.privacy.journaled_release import JournaledRelease
from securefed.privacy.ledger import Ledger
from securefed.privacy.moving_clip import MovingClip, count_deviation, without_bit
from securefed.types import Collected, GroupSum, RoundParameters, Vector

KINDS: Mapping[str, type[DistributedMechanism]] = {
    "skellam": DistributedSkellam,
    "discrete-gaussian": DistributedGaussian,
}
SEED = 16
_STEP = 1.001
"""By so much the noise is raised until rounds of several sizes together keep to epsilon."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a job says about its distributed noise, before any noise is chosen; all public.

    Attributes:
        kind: a key of `KINDS`. sizes: coordinates of each round's update, in the order of rounds.
        clip: L2 norm that bounds an update. clients: of a cohort. min_survivors: fewest in a sum.
        corrupt: of those, assumed to pool what they know with the server. bits: of the ring.
        vectors: most clipped vectors that one client adds up in a round; 1 at client level.
        sample_rate: of each record in a client's sum, in secret; 1 at client level.
        exposures: sizes of the rounds that one unit takes part in, for every kind of unit; all rounds if empty.
        count_std: where the clip moves, asked-for deviation of the noise on the count of bits, 0 for the rule's
            (`moving_clip.count_deviation`); None for a fixed clip.
    """

    kind: str
    sizes: tuple[int, ...]
    clip: float
    clients: int
    min_survivors: int
    corrupt: int
    bits: int
    vectors: int = 1
    sample_rate: float = 1.0
    exposures: tuple[tuple[int, ...], ...] = ()
    count_std: float | None = None

    def count(self, noise_multiplier: float) -> ClipCount | None:
        """The coordinate of the clip's bit, None for a fixed clip."""
        if self.count_std is None:
            return None
        deviation = count_deviation(self.count_std, self.clients, noise_multiplier)
        return clip_count(
            deviation,
            clients=self.clients,
            min_survivors=self.min_survivors,
            corrupt=self.corrupt,
            bits=self.bits,
            family=KINDS[self.kind].FAMILY,
        )

    def mechanisms(self, noise_multiplier: float) -> dict[int, DistributedMechanism]:
        """Size -> mechanism; its noise over the sensitivity after rounding is `noise_multiplier`.

        Where the clip moves it is a little more, so that the bit's noise and the update's together have that multiplier.

        Raises:
            PrivacyError: the ring is too narrow for this cohort and noise.
        """
        if self.count_std is not None:
            deviation = count_deviation(self.count_std, self.clients, noise_multiplier)
            noise_multiplier = split_noise(noise_multiplier, deviation)
        return {d: design(KINDS[self.kind], self._cohort(d), noise_multiplier) for d in set(self.sizes)}

    def noise_for(self, epsilon: float, delta: float) -> float:
        """The noise multiplier whose whole schedule spends at most epsilon at delta, up to 0.2 % above the least.

        Raises:
            PrivacyError: out of reach with this ring.
        """
        met = [Counter(sizes) for sizes in dict.fromkeys(self.exposures or (self.sizes,))]
        start = calibrate(
            KINDS[self.kind],
            self._cohort(max(self.sizes)),
            epsilon=epsilon,
            delta=delta,
            rounds=max(count.total() for count in met),
            sample_rate=self.sample_rate,
        )
        noise = start.noise_multiplier
        while any(self._spent(count, noise, delta) > epsilon for count in met):
            noise *= _STEP
        return noise

    def _spent(self, count: Counter[int], noise: float, delta: float) -> float:
        found, bit = self.mechanisms(noise), self.count(noise)
        events: list[Event] = [found[d].event(n, self.sample_rate) for d, n in count.items()]
        return epsilon_of([*events, *([] if bit is None else [bit.event(count.total())])], delta)

    def _cohort(self, dimension: int) -> Cohort:
        return Cohort(
            dimension=dimension,
            clip=self.clip,
            clients=self.clients,
            min_survivors=self.min_survivors,
            corrupt=self.corrupt,
            bits=self.bits,
            vectors=self.vectors,
        )


def constants_of(m: DistributedMechanism, count: ClipCount | None = None) -> bytes:
    """The canonical bytes of a round's mechanism, which the round's parameters carry and the server signs.

    Args:
        count: of the clip's bit, where the clip moves; the round's clip is the mechanism's.
    """
    w = Writer().text(m.FAMILY).u64(m.dimension).f64(m.clip).f64(m.levels).f64(m.variance)
    w.u32(m.clients).u32(m.min_survivors).u32(m.corrupt).u8(m.bits).u32(m.vectors)
    if count is not None:
        w.text("clip count").u32(count.scale).f64(count.variance)
    return w.raw(m.seed).finish()


@dataclass(frozen=True, eq=False)
class RoundWords:
    """One round's mechanism as a secure sum carries it: exactly its integers, decoded to the noisy sum."""

    mechanism: DistributedMechanism
    count: ClipCount | None = None

    @property
    def bits(self) -> int:
        """Of the ring."""
        return self.mechanism.bits

    @property
    def min_survivors(self) -> int:
        """The fewest clients whose noise makes the claim."""
        return self.mechanism.min_survivors

    def encode(self, update: Vector, stream: Stream) -> Ring:
        """One client's noised sum, uint32 (d,), of its update or of b rows, each clipped, rotated and rounded by itself."""
        if self.count is None:
            return self.mechanism.encode_sum(update if update.ndim == 2 else (update,), stream)
        words = self.mechanism.encode(update[:-1], stream)
        return np.append(words, self.count.encode(bool(update[-1] > 0), stream))

    def decode(self, total: Ring, survivors: int) -> NDArray[np.float64]:
        """The noisy sum, float64 (d,). Raises ProtocolError where too few survived for the claim."""
        try:
            if self.count is None:
                return self.mechanism.decode(total, survivors).astype(np.float64)
            bits = (self.count.decode(total[-1:], survivors) - 0.5) * survivors
            return np.append(self.mechanism.decode(total[:-1], survivors).astype(np.float64), bits)
        except PrivacyError as error:
            raise ProtocolError(str(error)) from error


@dataclass(frozen=True, eq=False)
class RunWords:
    """What a party demands of every round: its own constants; only the rotation seed is the server's choice.

    Where the clip moves, every party follows it by itself (the bits' noisy sums are public), and accepts no other.

    The bound on the sensitivity holds for every rotation, so a server that chooses the seed badly can make
    sums wrap around, never leak. An honest one draws it when the cohort is fixed, afresh in each attempt.
    """

    mechanisms: Mapping[int, DistributedMechanism]
    entropy: Entropy = field(repr=False)
    count: ClipCount | None = None
    clip: MovingClip | None = None

    def propose(self, base: RoundParameters) -> bytes:
        """The constants of this attempt at the round, with a fresh public seed."""
        seed = self.entropy.stream("public rotation", base.run, base.round).bytes(SEED)
        return constants_of(self._own(base).at_round(bytes(seed), self._clip), self.count)

    def accept(self, base: RoundParameters, constants: bytes) -> RoundWords:
        """The words of a round with these constants. Raises ProtocolError unless all but the seed are its own."""
        mine = self._own(base).at_round(constants[-SEED:], self._clip)
        if constants_of(mine, self.count) != constants:
            raise ProtocolError(
                "the round's clip or noise is not what this client's job says; it sends nothing under others"
            )
        return RoundWords(mine, self.count)

    @property
    def _clip(self) -> float | None:
        """The clip that came with the round's model, where it moves; it is within the rule's bounds by itself."""
        return None if self.clip is None else self.clip.value

    def _own(self, base: RoundParameters) -> DistributedMechanism:
        found = self.mechanisms.get(base.size - (0 if self.count is None else 1))
        if found is None or len(base.clients) > found.clients:
            raise ProtocolError(
                f"no noise was designed for {len(base.clients)} clients with updates of {base.size} coordinates"
            )
        return found


@dataclass(frozen=True)
class DistributedRelease(JournaledRelease):
    """Reserves, journals and releases one noisy mean a round; the server holds nothing less noised.

    Attributes:
        mechanisms: size of an update -> its mechanism. sizes: of each round's update.
        count, clip: of a clip that moves; its bits' noise is an event beside the update's.
    """

    ledger: Ledger
    run: str
    mechanisms: Mapping[int, DistributedMechanism]
    sizes: Sequence[int]
    budget: Budget | None
    count: ClipCount | None = None
    clip: MovingClip | None = None

    @property
    def event(self) -> SkellamSum | DiscreteGaussianSum:
        """What the first round spends."""
        return self.event_of(0)

    def event_of(self, round: int) -> SkellamSum | DiscreteGaussianSum:
        """What a round spends, for every client, whether it is in the cohort or not."""
        return self.mechanisms[self.sizes[round]].event()

    def admit(self) -> None:
        """Raises BudgetExceeded where not even the first round fits, with its bits; charges nothing."""
        self._admit_round(0)

    def _admit_round(self, round: int) -> None:
        self._admit(self.event_of(round), *([] if self.count is None else [self.count.event()]))

    def reserve(self, round: int) -> int:
        """Charges the round before anything is trained. Raises BudgetExceeded, charging nothing.

        Where the clip moves these are two charges: both are looked at before the first is made.
        """
        if self.count is not None:
            self._admit_round(round)
        reservation = self._reserve(round, self.event_of(round))
        if self.count is not None:  # nothing of it is sent by itself, so it is settled here
            self.ledger.settle(self._reserve(round, self.count.event()), steps_taken=1)
        return reservation

    def release_groups(
        self, reservation: int, round: int, groups: Mapping[int, GroupSum], aggregate: Vector
    ) -> Vector:
        """What a rule made of the groups' noisy sums, journaled: each sum has all of its noise, and one client is in one.

        Raises:
            PrivacyError: too few survivors in some group.
        """
        for group in groups.values():
            self.mechanisms[self.sizes[round]].check_survivors(len(group.members))
        self._settle(reservation, aggregate)
        return aggregate

    def release(self, reservation: int, round: int, collected: Collected, entropy: Entropy) -> Vector:
        """The mean over the survivors, who are public, float32 (d,), journaled before it is returned.

        Nothing is drawn from `entropy`: the noise is in the sum already.

        Raises:
            PrivacyError: too few survivors for the claim, or the protection showed single updates.
        """
        if collected.updates is not None:
            raise PrivacyError('noise shared among clients needs a sum that hides them; use "masking"')
        self.mechanisms[self.sizes[round]].check_survivors(len(collected.survivors))
        n = len(collected.survivors)
        total, bits = (collected.total, 0.0) if self.clip is None else without_bit(collected.total)
        vector: Vector = (total / n).astype(np.float32)
        payload = vector if self.clip is None else self.clip.payload(vector, bits, n)
        self._settle(reservation, payload)
        return vector if self.clip is None else self.clip.take(payload)
