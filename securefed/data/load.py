"""`load_dataset`: from the name in the job to a data set with its public test split."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from securefed.config import DataConfig
from securefed.data import images, sentiment, spam
from securefed.data.catalogue import SOURCES
from securefed.data.digest import records_digest, table_digest
from securefed.data.files import READERS, read_file
from securefed.data.hub import read_hub
from securefed.data.records import Dataset, Examples
from securefed.data.sources import Source, fetch, find_source
from securefed.data.split import split
from securefed.data.table import Table, table_examples
from securefed.errors import DataError
from securefed.registry import find_class, is_path

log = logging.getLogger("securefed.data")

LIMIT_STREAM = 0x11417
"""Separates the draw of `limit` from every other use of the seed."""


def load_dataset(config: DataConfig, *, task: str = "classification", offline: bool = False) -> Dataset:
    """The data set that `config.name` names, fetched and checked where that is needed.

    `config.limit` > 0 keeps that many training records, drawn by `config.seed`. The digest is over all
    records before that, so a run on a part is charged to the same data set. The test split depends on
    `config.test_fraction` alone (Fashion-MNIST and hub data sets keep the one they publish).

    A name "package.module:Class" is a class of yours: made without arguments and called with the task, it
    gives a `Dataset`.

    Args:
        task: "classification", "causal-lm" (texts without labels) or "seq2seq" (own files, hub, and `spam`: the subject
            of a mail's body).
        offline: use only what is on this machine.

    Raises:
        DataError: unknown, missing, corrupt or badly labelled data, or data that cannot do the task.
    """
    if config.name.startswith("hub:"):
        dataset = _from_hub(config, task, offline)
    elif is_path(config.name):
        dataset = _from_class(config.name, task)
    elif _is_file(config.name):
        dataset = _from_file(config, task)
    else:
        dataset = _named(config, find_source(config.name), task, offline)
    return _limited(dataset, config)


def names_clients(config: DataConfig) -> bool | None:
    """Whether the records name their client, as far as it is known before they are read; None: not known.

    Raises:
        DataError: no data set of this name.
    """
    if config.name.startswith("hub:") or _is_file(config.name):
        return bool(config.client_column)
    return None if is_path(config.name) else bool(find_source(config.name).clients)


def _is_file(name: str) -> bool:
    return Path(name).suffix.lower() in READERS or "/" in name


def _from_class(name: str, task: str) -> Dataset:
    """What the class behind "package.module:Class" gives when its instance is called with the task."""
    found = find_class("data set", name, {})()(task)
    if not isinstance(found, Dataset):
        raise DataError(
            f"data set {name} gave a {type(found).__name__}; called with a task it gives a Dataset"
        )
    return found


def _named(config: DataConfig, source: Source, task: str, offline: bool) -> Dataset:
    name = source.name
    classes: tuple[str, ...]
    if (task == "causal-lm" and name in ("fashion-mnist", "digits")) or (
        task == "seq2seq" and name != "spam"
    ):
        raise DataError(
            f"{name} has no {'texts' if task == 'causal-lm' else 'targets'} for model.task={task!r}"
        )
    folder = fetch(name, offline=offline)
    if name == "fashion-mnist":
        train, test = images.read_fashion_mnist(folder)
        classes = images.FASHION_CLASSES
    else:
        if name == "digits":
            examples, classes = images.read_digits(), images.DIGIT_CLASSES
        elif name == "spam":
            examples = spam.read_spam(
                folder, bodies_of_ham=task != "classification", subjects=task == "seq2seq"
            )
            classes = spam.CLASSES
        else:
            examples, classes = sentiment.read_sentiment(folder), sentiment.CLASSES
        train, test = split(examples, config.test_fraction)
    if task != "classification":
        train, test = (dataclasses.replace(part, labels=None) for part in (train, test))
        classes = ()
    return Dataset(
        name, train, test, classes, _source_digest(source, train, test), source.origin, source.licence
    )


def _source_digest(source: Source, train: Examples, test: Examples) -> str:
    """One identity for a named set whatever the task: its records are spent by every task that reads them."""
    return _files_digest(source) if source.files else records_digest(train, test)


def _files_digest(source: Source) -> str:
    return hashlib.sha256("".join(f"{n}:{d};" for n, d in sorted(source.files.items())).encode()).hexdigest()


def is_named(dataset: Dataset, name: str) -> bool:
    """Whether a data set is the public one of this name, and not somebody's own records under a job that names it."""
    source = SOURCES.get(name)
    if source is None or dataset.name != name:
        return False
    return not source.files or dataset.digest == _files_digest(source)


def _from_file(config: DataConfig, task: str) -> Dataset:
    path = Path(config.name).expanduser()
    table = read_file(path)
    examples, classes = table_examples(table, config, task)
    train, test = split(examples, config.test_fraction)
    return Dataset(
        path.stem,
        train,
        test,
        classes,
        records_digest(train, test),
        f"own file {path.name}",
        "its owner's",
        account=_account(config, table),
    )


def _account(config: DataConfig, *tables: Table) -> str:
    """What a ledger calls the records: the name their owner gives them, else all columns of the table.

    Whatever the task reads of them, they are the same records. Without a name a row more is another
    data set, whose spending begins at zero.
    """
    if config.ledger_name:
        return hashlib.sha256(b"ledger name:" + config.ledger_name.encode()).hexdigest()
    log.info(
        "spending on %s is kept under a digest of its rows; name it with data.ledger_name if it will change",
        tables[0].name,
    )
    return table_digest(*tables)


def _from_hub(config: DataConfig, task: str, offline: bool) -> Dataset:
    name = config.name.removeprefix("hub:")
    train_table, test_table = read_hub(
        name, config.label_column if task == "classification" else "", offline=offline
    )
    train, classes = table_examples(train_table, config, task)
    if test_table is None:
        train, test = split(train, config.test_fraction)
    else:
        test, _ = table_examples(test_table, config, task, classes)
    return Dataset(
        config.name,
        train,
        test,
        classes,
        records_digest(train, test),
        f"Hugging Face hub, {name}",
        "see its page on the hub",
        account=_account(config, *filter(None, (train_table, test_table))),
    )


def _limited(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data set with at most `config.limit` training records, in their old order."""
    n = len(dataset.train)
    if not 0 < config.limit < n:
        return dataset
    log.info("data.limit keeps %d of %d training records of %s", config.limit, n, dataset.name)
    return dataclasses.replace(dataset, train=dataset.train.take(kept_rows(n, config)))


def kept_rows(n: int, config: DataConfig) -> NDArray[np.int64]:
    """Which of n training records `limit` keeps, ascending; the others are drawn from the same source."""
    kept = config.limit if 0 < config.limit < n else n
    rows: NDArray[np.int64] = np.random.default_rng([config.seed, LIMIT_STREAM]).permutation(n)[:kept]
    return np.sort(rows)
