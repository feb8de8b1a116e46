"""The benches of uneven clients play what they say: one clock for both, one budget for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import load_config
from securefed.data import load_dataset
from securefed.tracking.tracker import RoundRecord
from securefed_benchmarks import asynchronous, personalization


def record(round: int, accuracy: float | None) -> RoundRecord:
    return RoundRecord(
        round=round,
        rounds=9,
        phase="full",
        metrics=None if accuracy is None else {"accuracy": accuracy},
        client_metrics=None,
        epsilon=None,
        site_epsilon=None,
        mib_up=0.0,
        mib_down=0.0,
        cohort=(),
        survivors=(),
        refused={},
        seconds=0.0,
        train_seconds=0.0,
        sim_seconds=10.0 * (round + 1),
    )


def test_the_watch_notes_the_first_round_at_the_target_and_stops_there() -> None:
    watch = asynchronous.Watch(0.5)
    for round, accuracy in enumerate((0.2, None, 0.4)):
        watch.round(record(round, accuracy))
        assert not watch.is_set()
    watch.round(record(3, 0.6))
    watch.round(record(4, 0.7))
    assert (watch.is_set(), watch.seconds, watch.rounds) == (True, 40.0, 5)


def test_every_way_has_the_same_clock_data_and_local_work() -> None:
    jobs = [load_config(asynchronous.JOB, way) for way in asynchronous.WAYS.values()]
    assert len({(j.clock, j.train.steps, j.train.learning_rate, j.data) for j in jobs}) == 1
    assert [j.buffered for j in jobs] == [True, True, False, False]
    assert {j.clients_per_round for j in jobs} == {asynchronous.BUFFER, asynchronous.AT_WORK}


def test_fedbuff_meets_a_target_that_rounds_with_stragglers_meet_later(home: Path) -> None:
    small = [
        "data.name=digits",
        "data.clients=20",
        "train.steps=5",
        "train.learning_rate=0.5",
        "model.hidden=16",
    ]
    way = {"clients_per_round": 5, "algorithm": {"name": "fedbuff", "concurrency": 10}}
    mine = asynchronous.played(way, 0, 0.6, small)
    theirs = asynchronous.played({"clients_per_round": 10}, 0, 0.6, small)
    assert mine.seconds is not None
    assert theirs.seconds is not None
    assert mine.seconds < 0.6 * theirs.seconds
    never = asynchronous.played(way, 0, 1.1, [*small, "rounds=2"])
    assert (never.seconds, never.rounds) == (None, 2)


def test_every_personal_way_reports_each_domain(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On digits in place of features: two made-up domains of two clients each."""
    job = {"data.name": "digits", "data.limit": 300, "rounds": 2, "data.clients": 4, "model.hidden": 8}
    first = load_config(personalization.JOB, job)
    dataset = load_dataset(first.data, task="classification")

    def named(examples: Any) -> Any:
        return replace(examples, groups=tuple("ab"[i % 2] for i in range(len(examples))))

    images = dataset.train.images
    assert images is not None
    flat = replace(dataset, train=named(flattened(dataset.train)), test=named(flattened(dataset.test)))
    monkeypatch.setattr(personalization, "CLASSES", 10)
    for name in ("fedavg", "fedper"):
        found = personalization.played(load_config(first, personalization.WAYS[name]), flat)
        facts = personalization.facts_of([found])
        assert set(facts["own"]) == {"a", "b"}
        assert set(facts["global"]) == ({"a", "b"} if name == "fedavg" else set())
        assert facts["worst_domain"][0] in {"a", "b"}


def flattened(examples: Any) -> Any:
    return replace(examples, images=np.ascontiguousarray(examples.images.reshape(len(examples), 1, 1, -1)))
