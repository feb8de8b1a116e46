"""From a data set and a job to shards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.config import DataConfig
from securefed.data import make_shards, shard_table
from securefed.data.digest import records_digest
from securefed.data.records import Dataset, Examples
from securefed.errors import DataError


def examples(n: int, first: int = 0, classes: int = 3) -> Examples:
    numbers = range(first, first + n)
    return Examples(
        texts=tuple(f"text {i}" for i in numbers),
        labels=np.array([i % classes for i in numbers], np.int64),
        groups=tuple("abcd"[i % 4] for i in numbers),
        documents=tuple(f"d{i // 8}" for i in numbers),
    )


def dataset(train: Examples, test: Examples, classes: tuple[str, ...] = ("x", "y", "z")) -> Dataset:
    return Dataset("toy", train, test, classes, records_digest(train, test), "here", "MIT")


TOY = dataset(examples(200), examples(60, 200))
PARTITIONS = ("natural", "iid", "dirichlet", "quantity")


def config(partition: Any = "iid", **fields: Any) -> DataConfig:
    return DataConfig(**{"partition": partition, "clients": 8, "min_examples": 3, **fields})


@given(
    st.sampled_from(PARTITIONS), st.integers(1, 20), st.integers(0, 2**31), st.sampled_from([1e-3, 0.3, 10])
)
def test_every_record_is_in_one_shard_and_the_seed_decides(
    partition: str, clients: int, seed: int, alpha: float
) -> None:
    job = config(partition, clients=clients, seed=seed, alpha=alpha)
    shards = make_shards(TOY, job)
    assert [s.client for s in shards] == list(range(clients))
    assert len({s.name for s in shards}) == len({s.digest for s in shards}) == clients
    for part, whole in (("train", TOY.train), ("test", TOY.test)):
        held = [t for s in shards for t in getattr(s, part).texts]
        assert sorted(held) == sorted(whole.texts or ())
    assert [s.digest for s in make_shards(TOY, job)] == [s.digest for s in shards]
    assert all(s.digest == records_digest(s.train) for s in shards)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_another_seed_divides_otherwise(partition: str) -> None:
    first, second = ([s.digest for s in make_shards(TOY, config(partition, seed=k))] for k in (0, 1))
    assert first != second


def test_labels_stay_with_their_texts() -> None:
    for partition in PARTITIONS:
        for shard in make_shards(TOY, config(partition)):
            for part in (shard.train, shard.test):
                assert part.labels is not None
                assert [int(t.split()[1]) % 3 for t in part.texts or ()] == part.labels.tolist()


@pytest.mark.parametrize(("partition", "floor"), itertools.product(["dirichlet", "quantity"], [5, 25]))
def test_the_larger_of_both_floors_holds(partition: str, floor: int) -> None:
    job = config(partition, alpha=0.01, min_examples=floor)
    assert min(len(s.train) for s in make_shards(TOY, job)) >= floor
    assert min(len(s.train) for s in make_shards(TOY, job, minimum=20)) >= max(floor, 20)


def test_test_records_have_the_mix_of_their_client() -> None:
    for shard in make_shards(TOY, config("dirichlet", alpha=0.05, clients=4)):
        assert shard.train.labels is not None
        assert shard.test.labels is not None
        train, test = (np.bincount(part.labels, minlength=3) for part in (shard.train, shard.test))
        assert np.abs(train * 60 / 200 - test).max() <= 1


def test_quantity_gives_test_records_in_proportion() -> None:
    for shard in make_shards(TOY, config("quantity", alpha=0.5)):
        assert abs(len(shard.train) * 60 / 200 - len(shard.test)) <= 1


@pytest.mark.parametrize(
    ("fields", "minimum", "message"),
    [
        ({"clients": 201}, 1, "201 clients, but toy has 200 training records"),
        ({"clients": 50}, 5, "client iid/0 has 4 training records, 5 are needed"),
        (
            {"partition": "natural", "clients": 20},
            11,
            r"client \w/\d has \d+ training records, 11 are needed",
        ),
        ({"partition": "natural", "clients": 150}, 1, "150 clients, but the groups hold only"),
        (
            {"partition": "dirichlet", "clients": 50, "min_examples": 5},
            1,
            "50 clients with at least 5 records each need 250",
        ),
        ({"partition": "quantity", "clients": 0}, 1, "partition 'quantity' needs a number"),
    ],
)
def test_a_division_that_cannot_be_names_its_numbers(
    fields: dict[str, Any], minimum: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_shards(TOY, config(**fields), minimum)


def test_label_skew_needs_labels() -> None:
    import dataclasses

    plain = dataclasses.replace(TOY.train, labels=None), dataclasses.replace(TOY.test, labels=None)
    with pytest.raises(DataError, match="'dirichlet' skews labels and toy has none"):
        make_shards(dataset(*plain, classes=()), config("dirichlet"))
    shards = make_shards(dataset(*plain, classes=()), config("quantity"))
    assert all(row["counts"] == {} for row in shard_table(shards, ()))


def test_images_are_divided_too() -> None:
    pixels = np.random.default_rng(0).random((40, 1, 4, 4), np.float32)
    images = Examples(images=pixels, labels=np.arange(40) % 2)
    shards = make_shards(dataset(images, images, ("a", "b")), config("dirichlet"))
    held = np.concatenate([s.train.images for s in shards if s.train.images is not None])
    assert sorted(map(bytes, held)) == sorted(map(bytes, pixels))


def test_the_table_counts_what_the_shards_hold() -> None:
    import json

    shards = make_shards(TOY, config("dirichlet"))
    table = shard_table(shards, TOY.classes)
    assert json.loads(json.dumps(table)) == table
    assert [row["client"] for row in table] == list(range(8))
    for row, shard in zip(table, shards, strict=True):
        assert (row["name"], row["train"], row["test"]) == (shard.name, len(shard.train), len(shard.test))
        assert sum(row["counts"].values()) == row["train"]
        assert list(row["counts"]) == ["x", "y", "z"]
    assert sum(row["counts"]["x"] for row in table) == 67


def test_no_record_shows_in_a_repr() -> None:
    assert "text 1" not in repr(make_shards(TOY, config())) + repr(TOY)
