"""The job behind a call of `federate`: its fields, what cannot hold, and its name in the ledger."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from typing import Any

from securefed.config import Config, DataConfig, ModelConfig, TrainConfig, typed
from securefed.config.check import check
from securefed.errors import ConfigError, DataError, PrivacyError
from securefed.registry import make_protection
from securefed.wrapping.fingerprint import fingerprint

logger = logging.getLogger("securefed.wrapping.federate")


def make_config(clients: int, **fields: Any) -> Config:
    """The job in the words of `securefed run`; what train_fn does is not in it.

    Raises:
        ConfigError: a field of another type, or a word it does not take. A unit that nobody knows is one that nobody
            adds noise for.
    """
    whole = ModelConfig(adapter="full")  # every round shares every tensor
    return typed(
        Config(
            name="federate",
            data=DataConfig(clients=clients),
            model=whole,
            train=TrainConfig(steps=1),
            **fields,
        )
    )


def check_job(config: Config, clients: int, weights: Sequence[float] | None) -> None:
    """Raises ConfigError or PrivacyError for what cannot hold or run as asked."""
    p = config.privacy
    if weights is not None:
        if p.unit != "none":
            raise PrivacyError(
                "client-level DP bounds what one client adds, so all weigh the same; leave weights out"
            )
        if len(weights) != clients or not all(math.isfinite(w) and w > 0 for w in weights):
            raise ConfigError(f"weights must be {clients} finite numbers above 0, one for each shard")
    if clients < 1:
        raise DataError("federate needs at least one shard")
    if p.epsilon is not None and p.noise_multiplier is not None:
        raise PrivacyError(
            "give epsilon (noise is calibrated) or noise_multiplier (epsilon follows), not both"
        )
    check(config)
    if config.clients_per_round > clients:
        raise ConfigError(f"clients_per_round={config.clients_per_round} but there are {clients} shards")
    if p.unit == "none":
        return
    if p.noise_multiplier == 0:
        raise PrivacyError('noise_multiplier=0 adds no noise; raise it, or say unit="none"')
    if p.delta >= 1 / clients:
        raise PrivacyError(
            f"delta={p.delta:g} must be below 1/clients = 1/{clients}; a larger one allows the release of a whole client"
        )
    if make_protection(config.protection).reveals != "updates" and not config.distributed:
        raise PrivacyError(
            f"protection {config.protection.name} hides the updates whose norms the server must bound before it adds noise; "
            'use protection="plain" with unit="client", or let the clients add it: noise="skellam" with masking'
        )


def name_of(shards: Sequence[Any]) -> str:
    """The federation's name in the ledger where it was given none; it is logged."""
    digests = sorted(fingerprint(shard) for shard in shards)
    name = hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
    logger.warning(
        "data_id=%r names this federation in the privacy ledger (a fingerprint of its shards)", name
    )
    return name
