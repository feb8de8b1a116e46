"""A server that holds a few records of its own, and the update that it trains on them in each round.

Rules that trust one update more than all others (FLTrust) compare the clients' updates with it. Its worth is that
of its records: few, but clean and of the clients' kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from securefed.algorithms.plan import RoundPlan
from securefed.config import Config
from securefed.data.batch import Encoded
from securefed.data.records import Dataset, Examples
from securefed.errors import ConfigError
from securefed.layout import Layout
from securefed.training.frozen_cache import FrozenCache
from securefed.training.local import LocalWork, train_locally
from securefed.types import Vector

if TYPE_CHECKING:
    import torch

    from securefed.models.task_model import TaskModel

_ROOT = 0x5007  # a label that keeps this stream of the seed apart


def set_aside(config: Config, dataset: Dataset) -> tuple[Dataset, Examples | None]:
    """The data set without the server's records, and those: `server.root_records` drawn from the public seed.

    No client trains on them. None where the server holds nothing.

    Raises:
        ConfigError: fewer records than that.
    """
    k, n = config.server.root_records, len(dataset.train)
    if k == 0:
        return dataset, None
    if k >= n:
        raise ConfigError(
            f"server.root_records={k} of {n} training records leaves the clients none; lower it"
        )
    drawn = np.zeros(n, bool)
    drawn[np.random.default_rng([config.seed, _ROOT]).choice(n, k, replace=False)] = True
    rest = replace(dataset, train=dataset.train.take(np.flatnonzero(~drawn)))
    return rest, dataset.train.take(np.flatnonzero(drawn))


@dataclass(eq=False)
class Root:
    """The server's own training: the clients' settings, on the server's records.

    Attributes:
        place: the client number whose seed it uses, one that no client has.
    """

    config: Config
    model: TaskModel = field(repr=False)
    records: Examples = field(repr=False)
    place: int
    _encoded: Encoded | None = field(default=None, repr=False)
    _cache: FrozenCache = field(default_factory=FrozenCache, repr=False)

    def update(self, round: int, start: Vector, plan: RoundPlan, shared: Layout) -> torch.Tensor:
        """New minus old over the layout of what clients send, (d,).

        Raises:
            DivergedError: the weights are no longer finite.
        """
        import torch

        if self._encoded is None:
            self._encoded = self.model.encode(self.records, self.config.data.max_length)
        found = train_locally(
            self.model,
            self._encoded,
            start,
            LocalWork(self.place, round, plan.train),
            self.config.train,
            dp=None,
            entropy=None,
            seed=self.config.seed,
            cache=self._cache if self.config.train.cache_frozen else None,
        )
        layout = self.model.layout
        return torch.from_numpy(layout.gather(found.vector, shared) - layout.gather(start, shared))
