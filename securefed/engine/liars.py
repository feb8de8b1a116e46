"""Liars in a simulation: who they are, when they lie, and what they send in place of what they trained.

The seam lies after training and before protection: a liar may send any vector, but it goes through the honest
client half of the protection like everyone's. All of it is simulation. A real liar says nothing; here the
liars are drawn from the public seed, and reports name them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed.config import Config, check_liars
from securefed.config.attack import declared
from securefed.data.records import Dataset, Examples, Shard
from securefed.errors import ConfigError
from securefed.registry import make_attack, make_poison
from securefed.types import Vector

if TYPE_CHECKING:
    import torch

    from securefed.training.client import ClientOutcome

_WHO, _WHEN, _WHAT, _POISON = 0xB12A, 0xB12B, 0xB12C, 0xB12D  # labels that keep the streams of one seed apart
_KEY = "liars:"
"""Before the layout's digest, in a checkpoint's named vectors."""


def liars_of(config: Config, clients: int) -> tuple[int, ...]:
    """The liars of the run, ascending: `attack.f` of the clients, from the public seed.

    Raises:
        ConfigError: nobody honest would be left.
    """
    if config.attack.f == 0:
        return ()
    check_liars(config, clients)
    drawn = np.random.default_rng([config.seed, _WHO]).choice(clients, config.attack.f, replace=False)
    return tuple(sorted(int(k) for k in drawn))


def lying(config: Config, clients: int, round: int) -> tuple[int, ...]:
    """The liars that lie in this round: each with probability `attack.participation`."""
    liars = liars_of(config, clients)
    coins = np.random.default_rng([config.seed, _WHEN, round]).random(len(liars))
    return tuple(k for k, coin in zip(liars, coins, strict=True) if coin < config.attack.participation)


def poisoned(config: Config, dataset: Dataset, shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """The shards, the liars' records changed where the job says so.

    A shard keeps its digest: whose data it is, and what the ledger calls it, does not change.

    Raises:
        ConfigError: the poison does not fit the records.
    """
    poison = make_poison(config.attack)
    if poison is None:
        return tuple(shards)
    liars, classes = set(liars_of(config, len(shards))), len(dataset.classes)

    def changed(shard: Shard) -> Shard:
        generator = np.random.default_rng([config.seed, _POISON, shard.client])
        return dataclasses.replace(shard, train=poison(shard.train, classes, generator))

    try:
        return tuple(changed(s) if s.client in liars else s for s in shards)
    except ValueError as error:
        raise ConfigError(f"attack.poison: {error}") from None


def triggered(config: Config, dataset: Dataset) -> Examples | None:
    """Test records on which the poison has succeeded where the model says their label; None where it has none."""
    poison = make_poison(config.attack)
    found: Examples | None = None if poison is None else poison.triggered(dataset.test, len(dataset.classes))
    return found


@dataclass
class Liars:
    """One run's attack on the aggregate.

    Attributes:
        last: the last aggregate by layout digest, for attacks that use it.
    """

    config: Config
    clients: int
    attack: Any
    last: dict[str, Vector] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: Config, clients: int) -> Liars:
        """The liars that the job names (nobody, where it names none)."""
        return cls(config, clients, make_attack(config.attack, config.aggregator))

    def lie(self, outcomes: Sequence[ClientOutcome], round: int, digest: str) -> list[ClientOutcome]:
        """The outcomes, each lying client's update replaced.

        The honest rows are the updates of the cohort that are not lies, liars on an honest day included.
        Where the whole cohort lies, their own training stands for the honest rows.

        Raises:
            ConfigError: the attack is not defined for so many honest rows.
        """
        if self.attack is None:
            return list(outcomes)
        today = set(lying(self.config, self.clients, round))
        liars = [o.client for o in outcomes if o.update is not None and o.client in today]
        vectors = {o.client: o.update.vector for o in outcomes if o.update is not None}
        if not liars:
            return list(outcomes)
        try:
            rows = self._rows(vectors, liars, round, digest)
        except ValueError as error:
            raise ConfigError(f"attack.name={self.config.attack.name}, round {round}: {error}") from None
        return [_replaced(o, rows[o.client]) if o.client in rows else o for o in outcomes]

    def remember(self, aggregate: Vector, digest: str) -> None:
        """Everyone sees two successive global models, so everyone knows the aggregate."""
        if getattr(self.attack, "remembers", False):
            self.last[digest] = aggregate

    def pack(self) -> dict[str, Vector]:
        """What the liars remember, as named vectors for a checkpoint."""
        return {_KEY + digest: vector for digest, vector in self.last.items()}

    def unpack(self, stored: Mapping[str, Vector]) -> dict[str, Vector]:
        """Takes back what `pack` stored; the rest is the rule's."""
        self.last = {k.removeprefix(_KEY): v for k, v in stored.items() if k.startswith(_KEY)}
        return {k: v for k, v in stored.items() if not k.startswith(_KEY)}

    def _rows(
        self, vectors: Mapping[int, Vector], liars: Sequence[int], round: int, digest: str
    ) -> dict[int, Vector]:
        import torch

        truth = [v for k, v in vectors.items() if k not in set(liars)]
        own = torch.from_numpy(np.stack([vectors[k] for k in liars]))
        honest = torch.from_numpy(np.stack(truth)) if truth else own
        last = self.last.get(digest)
        previous = None if last is None else torch.from_numpy(last.copy())
        generator = torch.Generator().manual_seed(_seed(self.config.seed, round))
        if self.config.attack.colluding:
            rows = self.attack(honest, len(liars), generator, own=own, previous=previous)
        else:
            rows = torch.cat(
                [
                    self.attack(honest, 1, generator, own=own[i : i + 1], previous=previous)
                    for i in range(len(own))
                ]
            )
        return {k: _array(row) for k, row in zip(liars, rows, strict=True)}


def describe(config: Config, clients: int) -> dict[str, Any] | None:
    """The attack in plain values for `run.json` and the report; None where there is none."""
    a = config.attack
    if a.f == 0:
        return None
    attack, poison = make_attack(a, config.aggregator), make_poison(a)
    seen = [p.knowledge for p in (attack, poison) if p is not None]
    return {
        "simulated": True,
        "name": a.name or None,
        "options": {k: str(v) if isinstance(v, Mapping) else v for k, v in a.options.items()},
        "poison": None if a.poison is None else a.poison.name,
        "knowledge": "omniscient" if "omniscient" in seen else max(seen),
        "f": a.f,
        "declared_f": declared(config),
        "liars": list(liars_of(config, clients)),
        "participation": a.participation,
        "colluding": a.colluding,
    }


def _replaced(outcome: ClientOutcome, vector: Vector) -> ClientOutcome:
    assert outcome.update is not None
    return dataclasses.replace(
        outcome, update=dataclasses.replace(outcome.update, vector=vector, private=False)
    )


def _array(row: torch.Tensor) -> Vector:
    array: Vector = row.cpu().numpy().astype(np.float32)
    return array


def _seed(seed: int, round: int) -> int:
    return int(np.random.SeedSequence([seed, _WHAT, round]).generate_state(1, np.uint64)[0] >> 1)
