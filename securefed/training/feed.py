"""Batches of one shard, as fast as its kind allows.

Images, labels and pooled features are tensors held once, so a batch is one index operation; texts are
padded to their batch's longest; cached hidden states stand in for tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.data.batch import Batch, Encoded, collate, physical_batches


@dataclass(frozen=True, slots=True, eq=False)
class CachedStates:
    """Output of the frozen lower layers for one shard; as private as its text, so not in a repr.

    `pooled`: float32 (n, width of the head), after the last stage; or `hidden`: one float32 (t_i, h) per
    record, its padding left out, and beside it `below`, float32 (n, j, h), where the head reads j layers
    before the cut.
    """

    cut: int
    pooled: torch.Tensor | None = field(default=None, repr=False)
    hidden: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    below: torch.Tensor | None = field(default=None, repr=False)

    @property
    def size_bytes(self) -> int:
        tensors = (*self.hidden, self.pooled, self.below)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


class Feed:
    """One shard's records on their way into the model.

    Args:
        data: the shard, n records. device: where images are held.
        states: what replaces tokens, if the lower layers' output is cached.
    """

    def __init__(self, data: Encoded, device: torch.device, states: CachedStates | None = None) -> None:
        self.data = data
        self.states = states
        self.labels = None if data.labels is None else torch.from_numpy(data.labels).to(device)
        self.images = None if data.images is None else torch.from_numpy(data.images).to(device)
        self.pooled = None if states is None or states.pooled is None else states.pooled.to(device)
        self.even = self.images is not None or self.pooled is not None
        self.lengths = None if self.even else data.lengths

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of these records."""
        if not self.even and self.states is None:
            return collate(self.data, rows)
        index = torch.from_numpy(rows)
        if self.images is not None:
            return Batch(images=_take(self.images, index), labels=self._labels(index))
        assert self.states is not None
        if self.pooled is not None:
            return Batch(hidden=_take(self.pooled, index), labels=self._labels(index), depth=self.states.cut)
        hidden = torch.nn.utils.rnn.pad_sequence([self.states.hidden[i] for i in rows], batch_first=True)
        lengths = torch.tensor([self.states.hidden[i].shape[0] for i in rows])
        mask = (torch.arange(hidden.shape[1]) < lengths[:, None]).long()
        below = None if self.states.below is None else _take(self.states.below, index)
        labels = collate(self.data, rows).labels if self.labels is None else self._labels(index)
        return Batch(
            hidden=hidden,
            attention_mask=mask,
            labels=labels,
            depth=self.states.cut,
            below=below,
        )

    def pieces(self, rows: NDArray[np.int64], max_tokens: int, max_rows: int) -> list[NDArray[np.int64]]:
        """`rows` as physical batches; sorted by length where records differ in it."""
        if self.lengths is not None:
            return physical_batches(self.lengths, rows, max_tokens, max_rows)
        if len(rows) <= max_rows:
            return [rows] if len(rows) else []
        return [rows[i : i + max_rows] for i in range(0, len(rows), max_rows)]

    def _labels(self, index: torch.Tensor) -> torch.Tensor | None:
        return None if self.labels is None else _take(self.labels, index)


def _take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tensor.index_select(0, index.to(tensor.device))
