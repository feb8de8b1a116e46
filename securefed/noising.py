"""From a job to its noise: how much, whose, in what constants, and what the whole schedule may spend."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from securefed.algorithms.algorithm import Algorithm
from securefed.algorithms.distill import Distill
from securefed.assembly import cohort, public_cohorts
from securefed.compression.sending import Sending
from securefed.config import Config
from securefed.crypto.entropy import SystemEntropy
from securefed.errors import ConfigError
from securefed.privacy.budget import Budget
from securefed.privacy.calibration import calibrate_noise
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.distributed_release import Design
from securefed.privacy.moving_clip import MovingClip, count_deviation
from securefed.privacy.shared_release import Shares
from securefed.privacy.step_noise import StepNoise
from securefed.registry import ALGORITHMS, make, make_compression, make_protection
from securefed.training.client import Guarantee
from securefed.training.limits import under_policy
from securefed.types import NoiseCarrying

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


def planned_releases(config: Config, clients: int) -> tuple[float, int]:
    """(sample rate, releases) of the unit that takes part most often over the whole schedule.

    Example level: its client's own rate, and its steps over all rounds in which that client is chosen;
    the schedule is public, so it is simply counted, turns that end too late for fedbuff included. Client level:
    the cohort's rate, one release a round; where it is public who is in which buffer, the rounds of the busiest; where each
    client adds its own noise, its rounds, which are public too. Where noise is correlated over rounds, the run is one release.
    """
    p, algorithm = config.privacy, _algorithm(config)
    if config.correlated:
        return 1.0, 1
    if p.unit == "client" and p.noise != "local":
        if (met := public_cohorts(config, clients)) is not None:
            return 1.0, max(Counter(k for one in met for k in one).values())
        rate = 1.0 if config.distributed else (config.clients_per_round or clients) / clients
        return rate, algorithm.released(config)
    chosen: Counter[int] = Counter()
    for round in range(config.rounds):
        chosen.update(cohort(config, clients, round, SystemEntropy(), algorithm))
        chosen.update(algorithm.late(config, clients, round))
    if p.unit == "client":
        return 1.0, max(chosen.values())
    return p.sample_rate, max(chosen.values()) * algorithm.steps(config)


def _algorithm(config: Config) -> Algorithm:
    algorithm: Algorithm = make("algorithm", config.algorithm, ALGORITHMS)
    return algorithm


def shared_sizes(config: Config, model: TaskModel) -> tuple[int, ...]:
    """Coordinates of an update, round by round, as long as something is sent."""
    algorithm = _algorithm(config)
    if isinstance(algorithm, Distill):
        return (algorithm.layout(config, model.classes).size,) * config.rounds
    plans = [algorithm.plan(config, model.part_of, round) for round in range(algorithm.released(config))]
    layouts = [model.layout.select(set(plan.share).__contains__) for plan in plans]
    sending = sending_of(config)
    if sending is None:
        return tuple(layout.size for layout in layouts)
    return tuple(sending.size(layout, round) for round, layout in enumerate(layouts))


def sending_of(config: Config) -> Sending | None:
    """How updates are compressed; None where they are sent whole."""
    return None if config.compression is None else Sending(make_compression(config.compression), config.seed)


def distributed_design(config: Config, sizes: tuple[int, ...], records: Sequence[int]) -> Design | None:
    """The public constants of noise that the clients add in integers, None where they add none of that kind.

    Args:
        sizes: coordinates of each round's update. records: of each client.

    Raises:
        ConfigError: the protection does not fit this cohort.
    """
    if not config.discrete:
        return None
    from securefed.protect.masking.protection import Masking

    masking = make_protection(config.protection)
    assert isinstance(masking, Masking)  # checked with the job
    n = config.clients_per_round or len(records)
    survivors, corrupt = noise_floor(config, n)
    design = Design(
        kind=config.privacy.noise,
        sizes=sizes,
        clip=config.privacy.max_grad_norm,
        clients=masking.largest_sum(n),
        min_survivors=survivors,
        corrupt=corrupt,
        bits=masking.bits,
        count_std=config.privacy.clip_count_std if config.privacy.clip == "adaptive" else None,
    )
    if not config.fedsgd:
        return design
    algorithm = _algorithm(config)
    cohorts = [
        cohort(config, len(records), round, SystemEntropy(), algorithm) for round in range(config.rounds)
    ]
    return replace(
        design,
        clip=design.clip / expected_batch(config, records),
        vectors=max(records),
        sample_rate=config.privacy.sample_rate,
        exposures=tuple(
            tuple(d for d, met in zip(sizes, cohorts, strict=True) if client in met)
            for client in range(len(records))
        ),
    )


def moving_clip(config: Config, clients: int, noise_multiplier: float) -> MovingClip | None:
    """The clip of a new run where it moves, None for a fixed one."""
    p = config.privacy
    if p.clip == "fixed" or p.unit != "client":
        return None
    deviation = count_deviation(p.clip_count_std, config.clients_per_round or clients, noise_multiplier)
    return MovingClip.starting(p.max_grad_norm, p.clip_quantile, p.clip_learning_rate, deviation)


def noise_shares(config: Config, clients: int, noise_multiplier: float, clip: MovingClip | None) -> Shares:
    """What each client adds to its whole update before it encrypts.

    Raises:
        ConfigError: nobody's noise would be left, or a share could lie beyond what the protection carries.
    """
    survivors, corrupt = noise_floor(config, config.clients_per_round or clients)
    if config.attack.name and config.attack.f > corrupt:
        raise ConfigError(
            f"attack.f={config.attack.f} liars send what they like in place of their share of the noise, which is claimed for "
            f"at most {corrupt} who leave theirs out; raise protection.gamma, lower attack.f, or use attack.poison"
        )
    found = Shares(
        noise_multiplier=noise_multiplier if clip is None else clip.update_noise(noise_multiplier),
        unit=config.privacy.max_grad_norm,
        min_survivors=survivors,
        corrupt=corrupt,
        count_std=0.0 if clip is None else clip.count_std,
    )
    require_range(config, found.farthest)
    return found


def expected_batch(config: Config, records: Sequence[int]) -> float:
    """sample_rate x the mean number of records of a client, a public constant."""
    return config.privacy.sample_rate * sum(records) / len(records)


def step_noise(
    config: Config,
    records: Sequence[int],
    noise_multiplier: float,
    mechanisms: Mapping[int, DistributedMechanism] | None,
) -> StepNoise:
    """How the steps of the algorithm fedsgd are noised.

    Args:
        mechanisms: of integer noise, by the size of an update.

    Raises:
        ConfigError: what a client sends could lie beyond what the protection carries.
    """
    p, n = config.privacy, config.clients_per_round or len(records)
    survivors, corrupt = noise_floor(config, n) if config.distributed else (1, 0)
    found = StepNoise(
        kind=p.noise,
        noise_multiplier=noise_multiplier,
        sample_rate=p.sample_rate,
        clip=p.max_grad_norm,
        expected=expected_batch(config, records),
        records=max(records),
        min_survivors=survivors,
        corrupt=corrupt,
        mechanisms=mechanisms,
    )
    require_range(config, found.farthest)
    return found


def noise_floor(config: Config, n: int) -> tuple[int, int]:
    """(fewest survivors of a released sum, of those assumed to collude) of a cohort of n.

    Raises:
        ConfigError: nobody's noise would be left.
    """
    protection = make_protection(config.protection)
    assert isinstance(protection, NoiseCarrying)  # checked with the job
    survivors, corrupt = protection.noise_floor(n)
    if survivors <= corrupt:
        raise ConfigError(
            f"protection.min_survivors={survivors} leaves no honest noise beside the {corrupt} of {n} clients that are "
            "assumed to collude (protection.gamma); raise min_survivors"
        )
    return survivors, corrupt


def require_range(config: Config, farthest: float) -> None:
    """Raises ConfigError where a noised coordinate may lie beyond what the protection carries.

    A client whose vector is refused for its values would tell about them, and its noise would be missing.
    """
    if config.privacy.noise in ("gaussian", "local"):
        bound = getattr(make_protection(config.protection), "value_range", math.inf)
        if bound < farthest:
            raise ConfigError(
                f"protection.value_range={bound:g} may not hold a noised coordinate, which reaches {farthest:.3g}; set "
                f"protection.value_range = {math.ceil(farthest)}"
            )


def make_guarantee(config: Config, clients: int, distributed: Design | None = None) -> Guarantee | None:
    """The job's noise and budget; noise is calibrated for the whole schedule, not for one round.

    Args:
        distributed: of noise that clients add; its multiplier is over the sensitivity after rounding.

    Raises:
        PrivacyError: no noise reaches the target epsilon on this schedule.
        PolicyRefusal: this site's policy forbids the job.
    """
    p = config.privacy
    if p.unit == "none":
        under_policy(config, 0.0, None, clients)
        return None
    budget = Budget(
        epsilon=float("inf") if p.epsilon is None else p.epsilon,
        delta=p.delta,
        site_epsilon=p.site_epsilon,
        accountant=p.accountant,
    )
    noise = p.noise_multiplier
    if noise is None:
        assert p.epsilon is not None
        rate, releases = planned_releases(config, clients)
        if distributed is None:
            noise = calibrate_noise(p.epsilon, p.delta, rate, releases, p.accountant)
        else:
            noise = distributed.noise_for(p.epsilon, p.delta)
    return Guarantee(noise, under_policy(config, noise, budget, clients))
