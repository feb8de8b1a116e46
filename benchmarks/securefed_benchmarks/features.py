"""What frozen layers of MiniLM say of the records of `sentiment`, computed once for every run of a process.

Training is the same mathematics on states from memory; seconds in place of minutes. A record is known by its tokens and
by all that its states depend on, so runs with other shards, seeds and adapters share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from securefed.assembly import Fresh
from securefed.config import Config, ModelConfig
from securefed.data import load_dataset, make_shards
from securefed.data.batch import Encoded
from securefed.data.records import Dataset, Examples, Shard
from securefed.models import load_model
from securefed.models.task_model import TaskModel
from securefed.training.feed import CachedStates
from securefed.training.frozen_cache import FrozenCache, key_of

_BELOW = ":below"
FEATURES = ModelConfig(name="minilm", adapter="head", head_layers=4)


class SharedStates(FrozenCache):
    """A cache that knows records by their tokens.

    Args:
        file: where states are kept from one process to the next (the sentences are public); None keeps none.
    """

    def __init__(self, file: Path | None = None) -> None:
        super().__init__(1 << 14)
        self.file = file
        self._rows: dict[str, torch.Tensor] = load_file(file) if file is not None and file.exists() else {}

    def _stage(
        self,
        model: TaskModel,
        data: Encoded,
        cut: int,
        below: CachedStates | None,
        physical_tokens: int,
        physical_batch: int,
    ) -> CachedStates | None:
        """The states of these records after `cut`, those that are new computed now."""
        if data.tokens is None:
            return super()._stage(model, data, cut, below, physical_tokens, physical_batch)
        key = f"{key_of(model, cut)}:{model.config.head_layers}".encode()
        names = [hashlib.sha256(key + t.tobytes()).hexdigest() for t in data.tokens]
        new = [i for i, name in enumerate(names) if name not in self._rows]
        if new:
            part = Encoded(tokens=tuple(data.tokens[i] for i in new), pad_id=data.pad_id)
            found = FrozenCache(1 << 14)._stage(
                model, part, cut, _taken(below, new), physical_tokens, physical_batch
            )
            assert found is not None
            self._keep([names[i] for i in new], found)
        rows = [self._rows[name] for name in names]
        if rows[0].dim() == 1:
            return CachedStates(cut, pooled=torch.stack(rows))
        beside = [self._rows[name + _BELOW] for name in names if name + _BELOW in self._rows]
        return CachedStates(cut, hidden=tuple(rows), below=torch.stack(beside) if beside else None)

    def _keep(self, names: Sequence[str], found: CachedStates) -> None:
        rows = found.hidden if found.pooled is None else found.pooled
        self._rows |= {name: row.clone() for name, row in zip(names, rows, strict=True)}
        if found.below is not None:
            self._rows |= {name + _BELOW: row.clone() for name, row in zip(names, found.below, strict=True)}
        if self.file is not None:
            save_file(self._rows, self.file)


def _taken(states: CachedStates | None, rows: Sequence[int]) -> CachedStates | None:
    """The hidden states of these rows alone."""
    if states is None:
        return None
    beside = None if states.below is None else states.below[list(rows)]
    return CachedStates(states.cut, hidden=tuple(states.hidden[i] for i in rows), below=beside)


@dataclass
class Shared(Fresh):
    """One data set for every run: `tests` of its test records (0: all)."""

    tests: int = 0
    cache: SharedStates = field(default_factory=SharedStates)
    _held: Dataset | None = None

    def dataset(self, config: Config) -> Dataset:
        if self._held is None:
            whole = load_dataset(config.data)
            rows = np.random.default_rng(0).permutation(len(whole.test))[: self.tests or len(whole.test)]
            self._held = replace(whole, test=whole.test.take(np.sort(rows)))
        return self._held


def features(examples: Examples, max_length: int, cache: SharedStates) -> NDArray[np.float32]:
    """What the frozen model gives a head to read, float32 (n, 1, 1, width)."""
    model = load_model(FEATURES, classes=2, unit="example", max_length=max_length)
    data = model.encode(examples, max_length)
    states = cache.states(model, data, set(model.part_of), physical_tokens=8192, physical_batch=256)
    assert states is not None
    assert states.pooled is not None
    return states.pooled.numpy()[:, None, None, :]


def in_features(dataset: Dataset, max_length: int, cache: SharedStates) -> Dataset:
    """The data set with features in place of its texts; groups and documents as they were."""

    def changed(examples: Examples) -> Examples:
        return replace(examples, texts=None, images=features(examples, max_length, cache))

    return replace(dataset, train=changed(dataset.train), test=changed(dataset.test))


def frozen(config: Config, cache: SharedStates) -> tuple[Dataset, tuple[Shard, ...]]:
    """The job's data and shards in features; clients have no test records of their own."""
    dataset = in_features(load_dataset(config.data, task="classification"), config.data.max_length, cache)
    shards = make_shards(dataset, config.data)
    return dataset, tuple(replace(s, test=s.test.take([])) for s in shards)
