"""`make_shards`: who holds what, the same for the same seed; and a table of it for simulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from securefed.config import DataConfig
from securefed.data.digest import records_digest
from securefed.data.load import names_clients
from securefed.data.natural import NO_GROUPS, Piece, natural
from securefed.data.partition import Rows, apportion, cut, dirichlet, iid, quantity, same_mix
from securefed.data.records import Dataset, Shard
from securefed.errors import DataError

SHARD_STREAM = 0x5A4D
"""Separates the division among clients from every other use of the seed."""


def make_shards(dataset: Dataset, config: DataConfig, minimum: int = 1) -> list[Shard]:
    """The clients' shards; every training record is in exactly one of them.

    `natural` follows the data's groups (`natural.natural`); `iid` deals at random; `dirichlet` skews
    the labels and `quantity` the sizes, both by `config.alpha` (smaller is more skewed) and with
    `config.min_examples` records or more for everyone. A client's test records are like its training
    records: of the same groups, or of the same mix of labels, or random.

    Args:
        minimum: training records every shard must have, whatever the partition.

    Raises:
        DataError: a division that cannot give every client its records, with the numbers.
    """
    pieces = _pieces(dataset, config, max(minimum, config.min_examples))
    for name, train, _ in pieces:
        if len(train) < minimum:
            raise DataError(
                f"client {name} has {len(train)} training records, {minimum} are needed; lower data.clients, "
                "raise data.limit, or set data.clients = 0 with a higher data.min_examples"
            )
    return [
        Shard(k, name, mine := dataset.train.take(train), dataset.test.take(test), records_digest(mine))
        for k, (name, train, test) in enumerate(pieces)
    ]


def check_division(config: DataConfig) -> None:
    """Refuses, before a record is read, a division of which the job alone says that it cannot be.

    Raises:
        DataError: natural clients of records that name none, no number of clients for another partition, or an unknown
            data set. What a class of one's own gives is not known before it is called.
    """
    named = names_clients(config)
    if config.partition != "natural":
        _refuse_no_number(config)
    elif named is False:
        raise DataError(NO_GROUPS)


def _refuse_no_number(config: DataConfig) -> None:
    if not config.clients:
        raise DataError(
            f"data.clients = 0 means one client per natural group; partition {config.partition!r} needs a number"
        )


def _pieces(dataset: Dataset, config: DataConfig, floor: int) -> list[Piece]:
    train, test, clients = dataset.train, dataset.test, config.clients
    if clients > len(train):
        raise DataError(
            f"{clients} clients, but {dataset.name} has {len(train)} training records; lower data.clients or raise data.limit"
        )
    if config.partition == "natural":
        return natural(train, test, clients, config.min_examples, config.seed)
    _refuse_no_number(config)
    generator = np.random.default_rng([config.seed, SHARD_STREAM])
    if config.partition == "dirichlet":
        dealt = _dirichlet(dataset, config, floor, generator)
    else:
        mine = (
            iid(len(train), clients, generator)
            if config.partition == "iid"
            else quantity(len(train), clients, config.alpha, floor, generator)
        )
        sizes = apportion(len(test), [len(rows) for rows in mine])
        dealt = mine, cut(generator.permutation(len(test)), sizes)
    return [(f"{config.partition}/{k}", *rows) for k, rows in enumerate(zip(*dealt, strict=True))]


def _dirichlet(
    dataset: Dataset, config: DataConfig, floor: int, generator: np.random.Generator
) -> tuple[list[Rows], list[Rows]]:
    labels, test_labels, classes = dataset.train.labels, dataset.test.labels, len(dataset.classes)
    if labels is None or test_labels is None:
        raise DataError(
            f"partition 'dirichlet' skews labels and {dataset.name} has none here; set data.partition to 'iid' or 'quantity'"
        )
    mine = dirichlet(labels, classes, config.clients, config.alpha, floor, generator)
    counts = np.stack([np.bincount(labels[rows], minlength=classes) for rows in mine], axis=1)
    return mine, same_mix(test_labels, counts, generator)


def shard_table(shards: Sequence[Shard], classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row per client: client, name, train, test, and counts: class -> training records of it.

    A diagnostic of simulations: sizes and label counts are private, and a real client never sends
    them. `classes` is empty where the records have no labels.
    """
    return [
        {
            "client": shard.client,
            "name": shard.name,
            "train": len(shard.train),
            "test": len(shard.test),
            "counts": dict(zip(classes, class_counts(shard, len(classes)).tolist(), strict=True)),
        }
        for shard in shards
    ]


def class_counts(shard: Shard, classes: int) -> Rows:
    """Training records of each class; int64 (classes,), zeros without labels."""
    if shard.train.labels is None:
        return np.zeros(classes, np.int64)
    return np.bincount(shard.train.labels, minlength=classes)
