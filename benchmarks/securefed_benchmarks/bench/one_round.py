"""What a server sees of one round, from a model of its choice: the job's own clients, protection and noise.

The round is an ordinary one: shards train, updates go through the protection's messages, and what is left is what
`securefed.views` would hand an attack. A server that may see single updates keeps them, whatever its rule needs.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from securefed.config import Component, Config
from securefed.data.records import Examples
from securefed.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from securefed.assembly import Assembly
    from securefed.types import Collected, Vector


@dataclass(frozen=True, eq=False)
class Seen:
    """One vector that the server holds after the round.

    Attributes:
        update: name -> new minus old, or a weighted sum of that; the attacks here do not mind the scale.
        clients: whose it is. records: all that they trained on, each once.
    """

    update: Mapping[str, torch.Tensor] = field(repr=False)
    clients: tuple[int, ...]
    records: Examples


def check_one_step(config: Config) -> None:
    """Raises ConfigError unless each client takes one step of plain SGD over its whole shard."""
    t, p = config.train, config.privacy
    if t.epochs > 0 or t.steps != 1 or t.optimizer != "sgd" or t.momentum:
        raise ConfigError(
            "reconstruction reads one step of plain SGD; set train.epochs = 0, train.steps = 1, train.momentum = 0"
        )
    if p.unit == "example" and p.sample_rate != 1.0:
        raise ConfigError(
            "reconstruction must know who was in the step; under example-level DP set privacy.sample_rate = 1.0"
        )
    if config.attack.f:
        raise ConfigError("reconstruction is measured among honest clients; set f = 0")


def play_round(config: Config, assembly: Assembly, start: Vector) -> list[Seen]:
    """Every vector that the server holds after one round from `start`, by the protection of the job.

    Raises:
        ConfigError: a client with more records than a step takes, so that nobody knows which it took.
    """
    from securefed.algorithms.server_optimizer import Moments
    from securefed.checkpoint import State
    from securefed.cohorts import Cohorts
    from securefed.crypto.entropy import SystemEntropy
    from securefed.parts import Parts

    most = max(len(s.train) for s in assembly.shards)
    if config.privacy.unit != "example" and most > config.train.batch_size:
        raise ConfigError(
            f"a client has {most} records and a step takes train.batch_size = {config.train.batch_size}; lower data.limit"
        )
    if config.protection.name == "plain":
        config = dataclasses.replace(config, aggregator=Component("median"))  # a rule that asks for the rows
    parts = Parts(dataclasses.replace(assembly, config=config), secrets.token_hex(8), SystemEntropy())
    try:
        plan = parts.algorithm.plan(config, assembly.model.part_of, 0)
        chosen = tuple(range(len(assembly.shards)))
        _, collected, _ = Cohorts(parts).train_and_collect(
            State(0, start, Moments.zeros(len(start))), plan, chosen
        )
    finally:
        parts.close()
    layout = assembly.model.layout.select(set(plan.share).__contains__)
    return [
        Seen(layout.unflatten(vector.astype(np.float32)), clients, _records(assembly, clients))
        for vector, clients in _vectors(collected)
    ]


def _vectors(collected: Collected) -> Sequence[tuple[NDArray[Any], tuple[int, ...]]]:
    if collected.updates is not None:
        return [(vector, (client,)) for client, vector in sorted(collected.updates.items())]
    if collected.groups is not None:
        return [(group.total, tuple(group.members)) for _, group in sorted(collected.groups.items())]
    return [(collected.total, collected.survivors)]


def _records(assembly: Assembly, clients: Sequence[int]) -> Examples:
    from securefed_benchmarks.bench.play import joined

    by_client = {shard.client: shard.train for shard in assembly.shards}
    return joined([by_client[client] for client in clients])
