"""The output of a shard's frozen lower layers, computed once, kept in memory and, where that is allowed, on disk.

Where adapters train in the top layers only, everything below gives the same hidden states in every
round; while every B is zero, an adapted model gives the frozen model's features.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from securefed.config import Config
from securefed.crypto.entropy import Entropy
from securefed.data.batch import Encoded
from securefed.layout import vector_digest
from securefed.training.feed import CachedStates, Feed
from securefed.training.kept_states import model_digest, open_store, records_digest
from securefed.training.state_store import StateStore

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel

logger = logging.getLogger(__name__)


def usable_cut(model: TaskModel, trainable: Collection[str]) -> int:
    """The stage whose output may be cached while these tensors train; 0 for none.

    While every B of the model is exactly zero and no adapter trains, adapters do nothing, so it is the
    stage below `trainable`: the pooled features if that is the head. Otherwise it is below every adapter.
    """
    adapters = {name for name, part in model.part_of.items() if part in ("A", "B")}
    idle = not adapters.intersection(trainable) and all(
        not bool(model.parameters[name].detach().any()) for name in adapters if model.part_of[name] == "B"
    )
    return model.cut(set(trainable) if idle else adapters.union(trainable))


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """What is known of one shard at one stage; without states, they are on disk and counted all the same."""

    data: Encoded = field(repr=False)
    key: str
    size_bytes: int
    states: CachedStates | None = field(default=None, repr=False)


SAY_EVERY = 15.0
"""Seconds between two lines about a long pass."""


class _Pace:
    """Says in the log that a long pass goes on, and how fast: a first run is silent for minutes otherwise."""

    def __init__(self, what: str) -> None:
        self.what, self.records, self.seconds, self._said = what, 0, 0.0, 0.0

    def add(self, records: int, seconds: float) -> None:
        """Counts what one batch was, and tells every now and then."""
        self.records, self.seconds = self.records + records, self.seconds + seconds
        if self.seconds - self._said >= SAY_EVERY:
            self._said = self.seconds
            logger.info(
                "%s: %d records so far, %.0f a second (once; then from memory)",
                self.what,
                self.records,
                self.records / self.seconds,
            )


class FrozenCache:
    """Hidden states of many shards, float32, ragged, at most `cache_mib` MiB in all.

    A shard is known by its `Encoded` object, which the cache keeps alive: keep one for all rounds. States
    are as private as the text: without a store they are gone with this object; hidden in its repr. An entry
    serves only the cut, base model and values of the tensors below the cut it was computed for.

    Args:
        cache_mib: the bound; a shard that does not fit any more is not cached (logged once).
        store: where states are looked for before they are computed, and kept after; the same shards are
            cached and the same bits come out as without it.
    """

    def __init__(self, cache_mib: int = 4096, store: StateStore | None = None) -> None:
        self.limit_bytes = cache_mib * 2**20
        self.store = store
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._digests: dict[int, tuple[TaskModel, str]] = {}
        self._warned = False
        self._pace = _Pace("frozen layers")
        self._above = _Pace("features above frozen layers")

    def __repr__(self) -> str:
        return f"FrozenCache({len(self._entries)} shards, {self.size_bytes} bytes)"

    @property
    def size_bytes(self) -> int:
        """What the cached states take."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def clear(self) -> None:
        """Forgets every state."""
        self._entries.clear()

    def states(
        self,
        model: TaskModel,
        data: Encoded,
        trainable: Collection[str],
        *,
        physical_tokens: int,
        physical_batch: int,
    ) -> CachedStates | None:
        """The states from which training of `trainable` may continue; None where nothing is cached.

        Computed now if they are not there yet. The model's mode is left as it was.
        """
        cut = usable_cut(model, trainable)
        if cut == 0 or len(data) == 0:
            return None
        moves = {name for name, part in model.part_of.items() if part in ("A", "B", "anchor")}
        low = model.cut(moves.union(trainable))
        bounds = (physical_tokens, physical_batch)
        if not 0 < low < cut:
            return self._stage(model, data, cut, None, *bounds)
        if self.store is not None and (found := self._both(model, data, low, cut, bounds)) is not None:
            return found
        return self._stage(model, data, cut, self._stage(model, data, low, None, *bounds), *bounds)

    def _both(
        self, model: TaskModel, data: Encoded, low: int, cut: int, bounds: tuple[int, int]
    ) -> CachedStates | None:
        """The states after `cut` where both stages are at hand; those after `low` are read when they are needed.

        They are counted as they would be had they been computed, so that the same shards fit.
        """
        keys = key_of(model, low), key_of(model, cut)
        held = self._held(data, cut, keys[1])
        if held is not None and held.states is not None:
            return held.states
        assert self.store is not None
        first, second = (
            self.store.find(self._description(model, data, key, start, bounds))
            for key, start in zip(keys, (0, low), strict=True)
        )
        if first is None or second is None or self._held(data, low, keys[0]) is not None:
            return None
        if self.size_bytes + first.size + second.size > self.limit_bytes:
            return None
        states = self.store.load(second, data.lengths.tolist())
        if states is not None:
            self._entries[(id(data), low)] = _Entry(data, keys[0], first.size)
            self._entries[(id(data), cut)] = _Entry(data, keys[1], second.size, states)
        return states

    def _held(self, data: Encoded, cut: int, key: str) -> _Entry | None:
        entry = self._entries.get((id(data), cut))
        return entry if entry is not None and entry.data is data and entry.key == key else None

    def _description(
        self, model: TaskModel, data: Encoded, key: str, start: int, bounds: tuple[int, int]
    ) -> str:
        """All that the bits of a shard's states depend on: model, stage, where the pass began, records, batches."""
        if id(model) not in self._digests:
            self._digests[id(model)] = model, model_digest(model)
        return f"{self._digests[id(model)][1]}:{key}:{start}:{bounds}:{records_digest(data)}"

    def _stage(
        self,
        model: TaskModel,
        data: Encoded,
        cut: int,
        below: CachedStates | None,
        physical_tokens: int,
        physical_batch: int,
    ) -> CachedStates | None:
        """The states after `cut`, computed on top of those `below` if they are at hand.

        So the pass that gives the features of the head's rounds also leaves the hidden states that the
        adapters' rounds start from.
        """
        key, place = key_of(model, cut), (id(data), cut)
        entry = self._held(data, cut, key)
        if entry is not None and entry.states is not None:
            return entry.states
        before = self._entries.pop(place, None)
        bounds = (physical_tokens, physical_batch)
        start = 0 if below is None else below.cut
        text = "" if self.store is None else self._description(model, data, key, start, bounds)
        states = self._read(data, text)
        if states is None:
            if not self._fits(model, data, cut):
                return None
            pace = self._pace if below is None else self._above
            states = _compute(model, Feed(data, model.device, below), cut, *bounds, pace)
            if self.store is not None and (before is None or before.key == key) and not _anchored(model, cut):
                self.store.put(text, states)  # else they change with training, and no later run asks for them
        self._entries[place] = _Entry(data, key, states.size_bytes, states)
        return states

    def _read(self, data: Encoded, text: str) -> CachedStates | None:
        """From the store, if it is there whole and there is room for it in memory."""
        stored = None if self.store is None else self.store.find(text)
        if self.store is None or stored is None or self.size_bytes + stored.size > self.limit_bytes:
            return None
        return self.store.load(stored, data.lengths.tolist())

    def _fits(self, model: TaskModel, data: Encoded, cut: int) -> bool:
        """From the shape that one record gives, before the rest is computed."""
        first, below = model.stage(Feed(data, model.device).batch(np.array([0])), cut)
        records = len(data) if first.dim() == 2 else int(data.lengths.sum())
        needed = 4 * (records * first.shape[-1] + (0 if below is None else len(data) * below.numel()))
        if self.size_bytes + needed <= self.limit_bytes:
            return True
        if not self._warned:
            logger.warning(
                "frozen states of a shard need %d MiB, the cache has %d of %d MiB left; it trains uncached, raise train.cache_mib",
                -(-needed // 2**20),
                max(0, self.limit_bytes - self.size_bytes) // 2**20,
                self.limit_bytes // 2**20,
            )
            self._warned = True
        return False


def _anchored(model: TaskModel, cut: int) -> bool:
    """Whether the states are taken at an anchor that this run has trained, so that no other run asks for them."""
    return any(
        part == "anchor" and model.cut((name,)) < cut and bool(model.parameters[name].detach().any())
        for name, part in model.part_of.items()
    )


def open_cache(
    config: Config, entropy: Entropy | None = None, *, own_records: bool = False
) -> FrozenCache | None:
    """The cache that a job asks for, with a store on disk where job and site allow one; None for none.

    Args:
        own_records: the records are not of the data set that the job names.

    Raises:
        PolicyRefusal: the job asks for a store that the site's policy forbids.
    """
    store = open_store(config, entropy, own_records=own_records)
    return FrozenCache(config.train.cache_mib, store) if config.train.cache_frozen else None


def key_of(model: TaskModel, cut: int) -> str:
    """What the states depend on: stage, frozen base, and the values of trainable tensors below the stage."""
    below = model.layout.select(lambda name: model.cut((name,)) < cut)
    text = f"{cut}:{model.base_digest}:{below.digest}:{vector_digest(model.read(below))}"
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def _compute(
    model: TaskModel, feed: Feed, cut: int, physical_tokens: int, physical_batch: int, pace: _Pace
) -> CachedStates:
    pooled = False
    records: list[torch.Tensor | None] = [None] * len(feed)
    sides: list[torch.Tensor | None] = [None] * len(feed)
    for rows in feed.pieces(np.arange(len(feed)), physical_tokens, physical_batch):
        began = time.perf_counter()
        batch = feed.batch(rows)
        out, below = model.stage(batch, cut)
        out, pooled = out.cpu(), out.dim() == 2
        for i, row in enumerate(rows):
            length = None if batch.attention_mask is None or pooled else int(batch.attention_mask[i].sum())
            records[row] = (
                out[i] if pooled else out[i, :length].clone()
            )  # a view would keep the padding alive
            sides[row] = None if below is None else below[i].cpu()
        pace.add(len(rows), time.perf_counter() - began)
    done = [r for r in records if r is not None]
    if pooled:
        return CachedStates(cut, pooled=torch.stack(done))
    beside = [s for s in sides if s is not None]
    return CachedStates(cut, hidden=tuple(done), below=torch.stack(beside) if beside else None)
