"""Tables over seeds: what counts as a seed of a configuration, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from securefed_benchmarks.bench.report import write_bench_report
from securefed_benchmarks.bench.results import lines, of_one_job
from securefed_benchmarks.bench.store import Row, Store
from tests.benchmarks.bench.suites import row

JOB: dict[str, Any] = {
    "rounds": 20,
    "seed": 0,
    "data": {"name": "digits", "seed": 0},
    "evaluate": {"every": 1},
}


def played(seed: int, started: float, **changes: Any) -> Row:
    job = {**JOB, "seed": seed, "data": {"name": "digits", "seed": seed}, **changes}
    return row(seed, key=f"{seed}{sorted(changes.items())}", job=job, started=started)


def test_seeds_of_an_older_job_are_no_seeds_of_the_new_one() -> None:
    """The suite's rounds were doubled, and only two of five seeds played again."""
    old = [played(seed, 1.0, rounds=10) for seed in range(5)]
    new = [played(seed, 2.0) for seed in range(2)]
    assert len(lines([*old, *new])[0].values["accuracy"]) == 5, "what a table without this would say"
    assert of_one_job([*old, *new]) == new
    assert of_one_job(old) == old


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"name": "another", "engine": {"threads": 2}}, 2),
        ({"evaluate": {"every": 1, "clients": True}}, 2),
        ({"evaluate": {"every": 2}}, 1),
        ({"field_of_newer_code": 3}, 2),
        ({"data": {"name": "other", "seed": 0}}, 1),
    ],
)
def test_only_what_decides_a_number_makes_another_job(changes: dict[str, Any], kept: int) -> None:
    assert len(of_one_job([played(0, 1.0, **changes), played(1, 2.0)])) == kept


def test_a_report_says_what_it_leaves_out(tmp_path: Path) -> None:
    grid = {"name": "small", "job": {}, "axes": {}, "seeds": [0, 1], "measures": []}
    store = Store(tmp_path)
    store.note("suites", "s", {"name": "tiny", "grids": [grid], "skipped": []}, "tiny")
    for one in (played(0, 1.0, rounds=10), played(1, 1.0, rounds=10), played(0, 2.0)):
        store.append(one)
    store.close()
    report = write_bench_report([tmp_path])
    assert "2 of an older job under the same labels are left out" in report.summary
    assert "2 results of an older job" in report.page.read_text(encoding="utf-8")
