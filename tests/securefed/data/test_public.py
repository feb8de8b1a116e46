"""Public records: apart from everybody's, without labels, and refused where they are not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import Config, load_config
from securefed.data import load_dataset
from securefed.data.public import public_records, reading_digests, refuse_overlap
from securefed.data.records import Dataset, Examples
from securefed.errors import DataError


def job(**changes: Any) -> Config:
    base: dict[str, Any] = {
        "algorithm": "distill",
        "data": {"name": "digits", "clients": 3, "partition": "iid"},
        "model": {"name": "logistic", "adapter": "full"},
        "train": {"epochs": 1},
        "distill": {"records": 50},
    }
    return load_config(base, changes)


def texts(*words: str) -> Examples:
    return Examples(texts=words, labels=np.arange(len(words), dtype=np.int64) % 2)


def dataset(train: Examples, test: Examples) -> Dataset:
    return Dataset("own", train, test, ("no", "yes"), "0" * 64, "a test", "none")


def test_held_out_records_are_with_no_client_and_carry_no_label() -> None:
    whole = load_dataset(job().data)
    rest, public = public_records(job(), whole)
    assert public is not None
    assert len(public) == 50
    assert len(rest.train) + 50 == len(whole.train)
    assert not set(reading_digests(public)) & set(reading_digests(rest.train))
    assert public.labels is not None
    assert not public.labels.any()


def test_the_draw_follows_the_seed() -> None:
    whole = load_dataset(job().data)
    drawn = [public_records(job(seed=s), whole)[1] for s in (0, 0, 1)]
    digests = [set(reading_digests(p)) for p in drawn if p is not None]
    assert digests[0] == digests[1] != digests[2]


def test_a_record_that_occurs_twice_or_in_the_test_set_is_never_held_out() -> None:
    own = dataset(texts("twice", "once", "Twice ", "tested", "alone"), texts("tested", "other"))
    rest, public = public_records(job(**{"distill.records": 2}), own)
    assert public is not None
    assert set(public.texts or ()) == {"once", "alone"}
    assert rest.train.texts == ("twice", "Twice ", "tested")
    with pytest.raises(DataError, match="has 2 records to give"):
        public_records(job(**{"distill.records": 3}), own)


def test_without_the_algorithm_nothing_is_set_aside() -> None:
    whole = load_dataset(job().data)
    plain = load_config({"train": {"epochs": 1}})
    assert public_records(plain, whole) == (whole, None)


@pytest.mark.parametrize(("where", "whose"), [("train", "clients' own"), ("test", "test")])
def test_a_public_set_that_shares_a_record_is_refused(where: str, whose: str) -> None:
    mine = {"train": texts("a", "b"), "test": texts("c", "d")}
    public = texts("x", "y", (mine[where].texts or ())[0].upper() + "  ")  # another case is no other record
    with pytest.raises(DataError, match=f"1 of the 3 records of distill.public=p are among the {whose}"):
        refuse_overlap(public, dataset(mine["train"], mine["test"]), "p")


def test_the_same_words_with_another_label_overlap() -> None:
    public = Examples(texts=("a",), labels=np.array([7]))
    with pytest.raises(DataError, match="give it away"):
        refuse_overlap(public, dataset(texts("a"), texts("c")), "p")


def test_an_own_file_is_read_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "public.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([f"open record {i}"] for i in range(60))])
    own = dataset(texts("a", "b"), texts("c"))
    rest, public = public_records(job(**{"distill.public": str(path)}), own)
    assert rest is own
    assert public is not None
    assert len(public) == 50


def test_texts_for_clients_that_read_images_are_refused(tmp_path: Path) -> None:
    own = dataset(texts("a", "b"), texts("c"))
    with pytest.raises(DataError, match="has no texts"):
        public_records(job(**{"distill.public": "digits"}), own)
    path = tmp_path / "public.csv"
    path.write_text("text,label\nx,1\n")
    whole = load_dataset(job().data)
    with pytest.raises(DataError):
        public_records(job(**{"distill.public": str(path)}), whole)


def test_too_many_held_out_records_are_refused() -> None:
    with pytest.raises(DataError, match="lower it"):
        public_records(job(**{"distill.records": 10**6}), load_dataset(job().data))
