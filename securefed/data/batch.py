"""What a model is fed: encoded records of one shard, and batches drawn from them.

Records are encoded once; a batch is padded only to its own longest record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""The label that a language-model loss leaves out: padding, by attention mask, never by token id."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A shard's records as the model reads them.

    Exactly one of `tokens` (one int64 array per record) and `images` (float32 (n, c, h, w)) is given.
    `labels`: int64 (n,) for classification. `targets`: one int64 array per record for seq2seq.
    """

    tokens: tuple[NDArray[np.int64], ...] | None = field(default=None, repr=False)
    images: NDArray[np.float32] | None = field(default=None, repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    targets: tuple[NDArray[np.int64], ...] | None = field(default=None, repr=False)
    pad_id: int = 0

    def __len__(self) -> int:
        return (
            len(self.tokens)
            if self.tokens is not None
            else len(self.images)
            if self.images is not None
            else 0
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Cost of each record: its number of tokens (source and target), or 1 for an image."""
        if self.tokens is None:
            return np.ones(len(self), np.int64)
        source = np.array([len(t) for t in self.tokens], np.int64)
        return source if self.targets is None else np.maximum(source, [len(t) for t in self.targets])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tensors of one physical batch; `hidden` replaces the frozen lower layers when it is cached.

    input_ids, attention_mask: int64 (b, t). labels: int64 (b,), or (b, t) with IGNORE for language
    models. images: float32 (b, c, h, w). hidden: float32 (b, t, h), or (b, h) after pooling; `depth`
    says after how many layers it was taken. below: float32 (b, j, h), what a head that reads several
    layers needs of those before `depth`, pooled (`TaskModel.stage`).
    """

    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    images: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    depth: int = 0
    below: torch.Tensor | None = None

    def __len__(self) -> int:
        for tensor in (self.input_ids, self.images, self.hidden, self.labels):
            if tensor is not None:
                return int(tensor.shape[0])
        return 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on this device."""
        names = ("input_ids", "attention_mask", "labels", "images", "hidden", "below")
        held = {name: value for name in names if (value := getattr(self, name)) is not None}
        if all(value.device == device for value in held.values()):
            return self
        return replace(self, **{name: value.to(device) for name, value in held.items()})


def collate(encoded: Encoded, rows: Sequence[int] | NDArray[np.int64]) -> Batch:
    """The batch of these records, padded to its longest.

    For language models (tokens without class labels or targets) the labels are the tokens themselves,
    IGNORE where the attention mask is 0.
    """
    import torch

    rows = np.asarray(rows, np.int64)
    labels = None if encoded.labels is None else torch.from_numpy(encoded.labels[rows])
    if encoded.images is not None:
        return Batch(images=torch.from_numpy(encoded.images[rows]), labels=labels)
    assert encoded.tokens is not None
    ids, mask = _pad([encoded.tokens[i] for i in rows], encoded.pad_id)
    if encoded.targets is not None:
        target, target_mask = _pad([encoded.targets[i] for i in rows], encoded.pad_id)
        labels = target.masked_fill(target_mask == 0, IGNORE)
    elif labels is None:
        labels = ids.masked_fill(mask == 0, IGNORE)
    return Batch(input_ids=ids, attention_mask=mask, labels=labels)


def _pad(records: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    width = max((len(r) for r in records), default=0)
    ids = np.full((len(records), width), pad_id, np.int64)
    mask = np.zeros((len(records), width), np.int64)
    for i, record in enumerate(records):
        ids[i, : len(record)] = record
        mask[i, : len(record)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def physical_batches(
    lengths: NDArray[np.int64], rows: NDArray[np.int64], max_tokens: int, max_rows: int
) -> list[NDArray[np.int64]]:
    """`rows` sorted by length and cut so that each piece pads to at most `max_tokens` tokens.

    Sorting happens only inside an already drawn batch, so it changes no sampling probability.
    """
    order = rows[np.argsort(lengths[rows], kind="stable")]
    pieces: list[NDArray[np.int64]] = []
    start = 0
    for end in range(len(order)):
        too_wide = (end + 1 - start) * int(lengths[order[end]]) > max_tokens
        if end > start and (too_wide or end - start >= max_rows):
            pieces.append(order[start:end])
            start = end
    if start < len(order):
        pieces.append(order[start:])
    return pieces
