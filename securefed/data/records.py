"""Records as they come from a source, and who holds them: `Examples`, `Dataset`, `Shard`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Columns of equal length; the records themselves never appear in a repr.

    texts or images (float32 (n, c, h, w), scaled to [0, 1]) is given; labels int64 (n,) or None for
    language modelling; targets for seq2seq. `groups` is each record's natural client, `documents` the
    unit that a split must not cut (both strings).
    """

    texts: tuple[str, ...] | None = field(default=None, repr=False)
    images: NDArray[np.float32] | None = field(default=None, repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    targets: tuple[str, ...] | None = field(default=None, repr=False)
    groups: tuple[str, ...] = field(default=(), repr=False)
    documents: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return (
            len(self.texts) if self.texts is not None else len(self.images) if self.images is not None else 0
        )

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The records at these positions, in this order."""
        index = np.asarray(rows, np.int64)

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[i] for i in index) if column else column

        return Examples(
            texts=None if self.texts is None else pick(self.texts),
            images=None if self.images is None else self.images[index],
            labels=None if self.labels is None else self.labels[index],
            targets=None if self.targets is None else pick(self.targets),
            groups=pick(self.groups),
            documents=pick(self.documents),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A named data set with its public test split.

    Attributes:
        classes: names of the labels 0, 1, ...; empty for language modelling.
        digest: SHA-256 over all records of train and test as the task reads them, hex.
        source, licence: where it is from, in words for the report.
        account: the records' name in a privacy ledger, whatever the task; the digest if not given.
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    digest: str
    source: str
    licence: str
    account: str = ""

    def __post_init__(self) -> None:
        if not self.account:
            object.__setattr__(self, "account", self.digest)


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One client's data.

    Attributes:
        client: index 0, 1, ... name: readable ("movies/1").
        train: what it trains on. test: its own test records (may be empty).
        digest: SHA-256 over its training records, hex: the shard's name in the ledger.
    """

    client: int
    name: str
    train: Examples
    test: Examples
    digest: str
