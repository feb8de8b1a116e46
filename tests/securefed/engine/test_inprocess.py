"""A pool that cannot gain says so."""

from __future__ import annotations

import os

import pytest

from securefed.engine import inprocess
from securefed.engine.inprocess import cores, warn_of_cores


@pytest.mark.parametrize(("have", "advice"), [(1, "set engine.workers to 0"), (3, "set engine.workers to 3")])
def test_more_workers_than_cores_are_told_in_one_line(
    have: int, advice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inprocess, "cores", lambda: have)
    warn_of_cores(4)
    (record,) = caplog.records
    assert "engine.workers=4" in record.getMessage()
    assert advice in record.getMessage()


def test_a_pool_that_fits_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inprocess, "cores", lambda: 2)
    warn_of_cores(2)
    assert not caplog.records


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
