"""The public records of a distillation: what everybody may see, held apart from what clients hold.

Answers on a record that a client trained on tell whether it did, as plainly as its weights do. So a public set that
shares a record with any client's is refused, by a digest of what the model reads and not of the label.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from securefed.config import Config
from securefed.data.load import load_dataset
from securefed.data.records import Dataset, Examples
from securefed.errors import DataError

HELD_OUT = "held-out"
_PUBLIC = 0x90B1  # a label that keeps this stream of the seed apart


def public_records(config: Config, dataset: Dataset) -> tuple[Dataset, Examples | None]:
    """The data set without its public records, and those, `distill.records` of them with empty labels; None without distill.

    Raises:
        DataError: too few records, records of another kind, or records that clients or the test set hold too.
    """
    if not config.distills:
        return dataset, None
    if config.distill.public == HELD_OUT:
        return _held_out(config, dataset)
    named = replace(config.data, name=config.distill.public, limit=0, client_column="", ledger_name="")
    found = load_dataset(
        named, task="causal-lm" if dataset.train.texts is not None else "classification"
    ).train
    if (found.texts is None) != (dataset.train.texts is None):
        raise DataError(
            f"distill.public={config.distill.public} and data.name={config.data.name} are of different kinds, texts and "
            "images; choose a public set that the clients' models can read"
        )
    refuse_overlap(found, dataset, config.distill.public)
    return dataset, _unlabelled(found.take(_drawn(config, np.arange(len(found)))))


def refuse_overlap(public: Examples, dataset: Dataset, name: str) -> None:
    """Raises DataError where a public record is one that a client trains on, or that the job is tested on."""
    for held, whose in ((dataset.train, "clients' own"), (dataset.test, "test")):
        known = set(reading_digests(held))
        shared = sum(digest in known for digest in reading_digests(public))
        if shared:
            raise DataError(
                f"{shared} of the {len(public)} records of distill.public={name} are among the {whose} records; answers on a "
                f'private record give it away, so take them out, choose another set, or use distill.public = "{HELD_OUT}"'
            )


def reading_digests(examples: Examples) -> Iterator[bytes]:
    """SHA-256 of what a model reads of each record; letters' case and spaces do not make another text."""
    for i in range(len(examples)):
        if examples.texts is not None:
            text = " ".join(examples.texts[i].casefold().split())
            yield hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        elif examples.images is not None:
            yield hashlib.sha256(np.ascontiguousarray(examples.images[i], "<f4").tobytes()).digest()


def _held_out(config: Config, dataset: Dataset) -> tuple[Dataset, Examples]:
    """Drawn among the training records that occur once and not in the test set."""
    mine = list(reading_digests(dataset.train))
    times, tested = Counter(mine), set(reading_digests(dataset.test))
    rows = _drawn(config, np.flatnonzero([times[d] == 1 and d not in tested for d in mine]))
    if len(rows) == len(mine):
        raise DataError(f"distill.records={len(rows)} leaves the clients no training record; lower it")
    rest = np.setdiff1d(np.arange(len(mine)), rows)
    public = _unlabelled(dataset.train.take(rows))
    return replace(dataset, train=dataset.train.take(rest)), public


def _drawn(
    config: Config, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    m = config.distill.records
    if len(rows) < m:
        raise DataError(
            f"distill.records={m}, but distill.public={config.distill.public} has {len(rows)} records to give; lower it"
        )
    return np.sort(np.random.default_rng([config.seed, _PUBLIC]).choice(rows, m, replace=False))


def _unlabelled(examples: Examples) -> Examples:
    """The same records, every label 0: what is not there cannot be learned from."""
    return Examples(texts=examples.texts, images=examples.images, labels=np.zeros(len(examples), np.int64))
