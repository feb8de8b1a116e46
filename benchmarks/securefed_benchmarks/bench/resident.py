"""What a worker keeps in memory from cell to cell: data sets and models, loaded once."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from securefed.assembly import Fresh
from securefed.config import Config
from securefed.data.load import kept_rows, load_dataset
from securefed.data.records import Dataset

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel
    from securefed.types import Vector

T = TypeVar("T")
MOST_MODELS, MOST_SETS = 4, 4
SHARDING = ("clients", "partition", "alpha", "min_examples", "max_length", "limit", "seed")
"""Fields of [data] that do not change which records there are."""


@dataclass
class Resident:
    """Data sets whole, and models with the values that they began with; the oldest give way."""

    sets: OrderedDict[str, Dataset] = field(default_factory=OrderedDict, repr=False)
    models: OrderedDict[str, tuple[TaskModel, Vector]] = field(default_factory=OrderedDict, repr=False)

    def whole(self, config: Config) -> Dataset:
        """The data set before `data.limit`."""
        wanted = dataclasses.replace(config.data, limit=0)
        facts = {k: v for k, v in dataclasses.asdict(wanted).items() if k not in SHARDING}
        key = _key([facts, config.model.task])
        return _kept(self.sets, key, lambda: load_dataset(wanted, task=config.model.task), MOST_SETS)

    def dataset(self, config: Config) -> Dataset:
        """The data set that the job names."""
        found = self.whole(config)
        if not 0 < config.data.limit < len(found.train):
            return found
        rows = kept_rows(len(found.train), config.data)
        return dataclasses.replace(found, train=found.train.take(rows))

    def model(self, config: Config, dataset: Dataset) -> TaskModel:
        """The model that the job names, at the values of its first round."""
        images = dataset.train.images
        shape = None if images is None else images.shape[1:]
        told = [dataclasses.asdict(config.model), len(dataset.classes), shape, config.privacy.unit]

        def load() -> tuple[TaskModel, Vector]:
            model = Fresh().model(config, dataset)
            return model, model.read(model.layout)

        model, first = _kept(self.models, _key([*told, config.data.max_length]), load, MOST_MODELS)
        model.write(first, model.layout)
        return model


def _kept(table: OrderedDict[str, T], key: str, load: Callable[[], T], most: int) -> T:
    if key not in table:
        table[key] = load()
        while len(table) > most:
            table.popitem(last=False)
    table.move_to_end(key)
    return table[key]


def _key(facts: Any) -> str:
    return json.dumps(facts, sort_keys=True, default=str)
