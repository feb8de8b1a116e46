"""A run's noise made ready: what clients add, what a protection must carry for it, what releases and charges.

The same for a job from a file and for somebody's own training code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from securefed.assembly import public_cohorts
from securefed.config import Config
from securefed.config.distill import noised_reach
from securefed.crypto.entropy import Entropy
from securefed.errors import ConfigError
from securefed.noising import (
    distributed_design,
    make_guarantee,
    moving_clip,
    noise_shares,
    require_range,
    step_noise,
)
from securefed.privacy.adaptive_clip import ClipCount
from securefed.privacy.buffer_mechanism import BufferMechanism
from securefed.privacy.correlated_release import CorrelatedRelease
from securefed.privacy.dealing import deal_of
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.distributed_release import DistributedRelease, RunWords
from securefed.privacy.ledger import Ledger
from securefed.privacy.moving_clip import MovingClip
from securefed.privacy.server_mechanism import ServerMechanism, server_mechanism
from securefed.privacy.shared_release import SharedRelease
from securefed.privacy.step_release import StepRelease
from securefed.protect.grouped import OpenGrouped
from securefed.protect.masking.protection import OpenMasking
from securefed.training.client import Guarantee
from securefed.types import Protection

Sizes = Callable[[], tuple[int, ...]]
"""Coordinates of each round's update; asked only where noise depends on it."""

Mechanism = ServerMechanism | CorrelatedRelease | DistributedRelease | SharedRelease | StepRelease


@dataclass(frozen=True)
class NoisePlan:
    """A run's noise; all public.

    Attributes:
        guarantee: None without privacy. clip: where it moves.
        sizes: of each round's update, where noise depends on it; else empty.
        mechanisms: of integer noise, by size. count: of the clip's bit, in integers.
    """

    guarantee: Guarantee | None = None
    clip: MovingClip | None = None
    sizes: tuple[int, ...] = ()
    mechanisms: Mapping[int, DistributedMechanism] | None = None
    count: ClipCount | None = None

    def carried(self, protection: Protection, entropy: Entropy) -> Protection:
        """The protection, carrying the integers of this noise where it is in integers."""
        if self.mechanisms is None:
            return protection
        assert isinstance(protection, OpenMasking | OpenGrouped)
        return protection.carrying(RunWords(self.mechanisms, entropy, self.count, self.clip))

    def mechanism(self, config: Config, clients: int, ledger: Ledger | None, run: str) -> Mechanism | None:
        """What releases and charges a round; None where clients do it by themselves, or nobody."""
        if self.guarantee is None:
            return None
        if self.guarantee.steps is not None:
            return StepRelease(self.guarantee.steps, self.sizes, ledger)
        if config.privacy.unit == "example" or config.privacy.noise == "local":
            return None  # each client adds and charges its own
        assert ledger is not None
        sigma, budget = self.guarantee.noise_multiplier, self.guarantee.budget
        if config.correlated:
            deal = deal_of(config, clients)
            return CorrelatedRelease(ledger, run, sigma, config.privacy.max_grad_norm, deal, budget)
        if (met := public_cohorts(config, clients)) is not None:
            clip, size = config.privacy.max_grad_norm, float(config.clients_per_round or clients)
            return BufferMechanism(ledger, run, sigma, clip, 1.0, size, budget, self.clip, cohorts=met)
        if self.mechanisms is not None:
            return DistributedRelease(ledger, run, self.mechanisms, self.sizes, budget, self.count, self.clip)
        if self.guarantee.shares is not None:
            return SharedRelease(ledger, run, sigma, self.guarantee.shares, budget, self.clip)
        return server_mechanism(config, sigma, budget, ledger, run, clients, self.clip)


def plan_noise(config: Config, sizes: Sizes, records: Sequence[int]) -> NoisePlan:
    """The noise of a job.

    Args:
        records: of each client; at client level only their number counts.

    Raises:
        ConfigError: the protection does not fit this cohort, or cannot hold a share of noise.
        PrivacyError: no noise reaches the target epsilon. PolicyRefusal: this site forbids the job.
    """
    clients = len(records)
    known = sizes() if config.discrete or config.fedsgd or config.correlated else ()
    if config.correlated and len(set(known)) > 1:
        raise ConfigError(
            f"correlated noise needs the same coordinates in every round, found updates of {min(known)} to {max(known)}; "
            'share the same tensors in every round, or use privacy.noise = "central"'
        )
    design = distributed_design(config, known, records)
    guarantee = make_guarantee(config, clients, design)
    if guarantee is None:
        return NoisePlan()
    sigma = guarantee.noise_multiplier
    mechanisms = None if design is None else design.mechanisms(sigma)
    clip = moving_clip(config, clients, sigma)
    if config.fedsgd:
        guarantee = replace(guarantee, steps=step_noise(config, records, sigma, mechanisms))
    elif config.privacy.noise == "gaussian":
        guarantee = replace(guarantee, shares=noise_shares(config, clients, sigma, clip))
    elif config.privacy.noise == "local":
        require_range(config, noised_reach(config.privacy.max_grad_norm, sigma))
    count = None if design is None else design.count(sigma)
    return NoisePlan(guarantee, clip, known, mechanisms, count)
