"""The output of a shard's frozen lower layers, computed once and kept in memory.

Where adapters train in the top layers only, everything below gives the same hidden states in every
round; while every B is zero, an adapted model gives the frozen model's features.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from securefed.data.batch import Encoded
from securefed.layout import vector_digest
from securefed.training.feed import CachedStates, Feed

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
    data: Encoded = field(repr=False)
    key: str
    states: CachedStates = field(repr=False)


class FrozenCache:
    """Hidden states of many shards, float32, ragged, at most `cache_mib` MiB in all.

    A shard is known by its `Encoded` object, which the cache keeps alive: keep one for all rounds. States
    are as private as the text: never written to disk, gone with this object, hidden in its repr. An entry
    serves only the cut, base model and values of the tensors below the cut it was computed for.

    Args:
        cache_mib: the bound; a shard that does not fit any more is not cached (logged once).
    """

    def __init__(self, cache_mib: int = 4096) -> None:
        self.limit_bytes = cache_mib * 2**20
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._warned = False

    def __repr__(self) -> str:
        return f"FrozenCache({len(self._entries)} shards, {self.size_bytes} bytes)"

    @property
    def size_bytes(self) -> int:
        """What the cached states take."""
        return sum(entry.states.size_bytes for entry in self._entries.values())

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
        adapters = {name for name, part in model.part_of.items() if part in ("A", "B")}
        low = model.cut(adapters.union(trainable))
        below = (
            self._stage(model, data, low, None, physical_tokens, physical_batch) if 0 < low < cut else None
        )
        return self._stage(model, data, cut, below, physical_tokens, physical_batch)

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
        entry = self._entries.get(place)
        if entry is not None and entry.data is data and entry.key == key:
            return entry.states
        self._entries.pop(place, None)
        if not self._fits(model, data, cut):
            return None
        states = _compute(model, Feed(data, model.device, below), cut, physical_tokens, physical_batch)
        self._entries[place] = _Entry(data, key, states)
        return states

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


def key_of(model: TaskModel, cut: int) -> str:
    """What the states depend on: stage, frozen base, and the values of trainable tensors below the stage."""
    below = model.layout.select(lambda name: model.cut((name,)) < cut)
    text = f"{cut}:{model.base_digest}:{below.digest}:{vector_digest(model.read(below))}"
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def _compute(
    model: TaskModel, feed: Feed, cut: int, physical_tokens: int, physical_batch: int
) -> CachedStates:
    pooled = False
    records: list[torch.Tensor | None] = [None] * len(feed)
    sides: list[torch.Tensor | None] = [None] * len(feed)
    for rows in feed.pieces(np.arange(len(feed)), physical_tokens, physical_batch):
        batch = feed.batch(rows)
        out, below = model.stage(batch, cut)
        out, pooled = out.cpu(), out.dim() == 2
        for i, row in enumerate(rows):
            length = None if batch.attention_mask is None or pooled else int(batch.attention_mask[i].sum())
            records[row] = (
                out[i] if pooled else out[i, :length].clone()
            )  # a view would keep the padding alive
            sides[row] = None if below is None else below[i].cpu()
    done = [r for r in records if r is not None]
    if pooled:
        return CachedStates(cut, pooled=torch.stack(done))
    beside = [s for s in sides if s is not None]
    return CachedStates(cut, hidden=tuple(done), below=torch.stack(beside) if beside else None)
