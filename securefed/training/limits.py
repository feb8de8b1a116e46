"""A job held against this site's policy, on the side that owns the data."""

from __future__ import annotations

import math

from securefed.config import Config
from securefed.privacy.budget import Budget
from securefed.privacy.policy import Asked, Policy, load_policy


def under_policy(
    config: Config, noise_multiplier: float, budget: Budget | None, clients: int, policy: Policy | None = None
) -> Budget | None:
    """The budget, tightened to the site's own cap.

    Args:
        noise_multiplier: of the job, 0 without privacy. clients: holders of shards.

    Raises:
        PolicyRefusal: the job asks for more than the site allows; the line is named.
    """
    policy = policy or load_policy()
    p = config.privacy
    policy.check(
        Asked(
            epsilon=math.inf if p.epsilon is None else p.epsilon,
            delta=p.delta,
            noise_multiplier=noise_multiplier,
            protection=config.protection.name,
            cohort=min(config.clients_per_round or clients, clients),
            rounds=config.rounds,
        )
    )
    return None if budget is None else policy.tighten(budget)
