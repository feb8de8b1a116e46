"""Tables over seeds: what counts as a seed of a configuration, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from securefed.config import load_config, to_tree
from securefed_benchmarks.bench.current import mixed_codes
from securefed_benchmarks.bench.report import write_bench_report
from securefed_benchmarks.bench.results import lines, of_one_job
from securefed_benchmarks.bench.store import Row, Store, read_facts
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


# ------------------------------------------------------------------------------ a suite that was repaired

TREE = {"rounds": 2, "data": {"name": "digits", "partition": "iid"}, "train": {"epochs": 1}}


def a_grid(**changed: Any) -> dict[str, Any]:
    axes = {"attack": ["none", "ipm(tau=10.0)"], "defence": ["mean"]}
    return {"name": "small", "job": TREE, "axes": axes, "seeds": [0, 1], "measures": [], **changed}


def a_row(attack: str, seed: int, *, failed: str = "", grid: str = "small", **job: Any) -> Row:
    state: dict[str, Any] = {"state": "failed", "scores": {}, "error": failed} if failed else {}
    tree = to_tree(load_config({**TREE, **job}, [f"seed={seed}", f"data.seed={seed}"]))
    return row(
        seed,
        key=f"{grid} {attack} {seed} {job}",
        grid=grid,
        labels={"attack": attack, "defence": "mean"},
        job=tree,
        changed=[f"seed={seed}", f"data.seed={seed}"],
        **state,
    )


def a_folder(folder: Path, rows: list[Row], *suites: dict[str, Any]) -> Path:
    store = Store(folder)
    for k, facts in enumerate(suites):
        store.note("suites", f"s{k}", {"name": "tiny", "skipped": [], **facts}, "tiny")
    for one in rows:
        store.append(one)
    store.close()
    return folder


@pytest.mark.parametrize(
    "old",
    [
        a_row(
            "none", 0, failed="no such thing", data={"name": "digits"}
        ),  # played again, by a job that works
        a_row("ipm(tau=10.0)", 0, failed="no such thing", data={"name": "digits"}),  # not played again yet
        a_row("ipm(tau=x)", 0, failed="no such thing"),  # the choice is called otherwise now
        a_row("none", 0, failed="no such thing", grid="gone"),
    ],
    ids=["same labels", "not played again", "other label", "other grid"],
)
def test_failures_of_what_the_suite_no_longer_has_are_not_missing(tmp_path: Path, old: Row) -> None:
    now = [a_row("none", seed) for seed in range(2)]
    report = write_bench_report([a_folder(tmp_path, [old, *now], {"grids": [a_grid()]})])
    assert report.summary == ["2 results"]
    assert "failed" not in (tmp_path / "tables.md").read_text(encoding="utf-8")
    page = report.page.read_text(encoding="utf-8")
    assert "no such thing" not in page
    assert "left out" not in page


def test_failures_of_the_suite_as_it_is_are_told(tmp_path: Path) -> None:
    lost = a_row("ipm(tau=10.0)", 1, failed="killed")
    report = write_bench_report([a_folder(tmp_path, [a_row("none", 0), lost], {"grids": [a_grid()]})])
    assert report.summary == ["1 results, 1 failed"]
    assert "killed" in report.page.read_text(encoding="utf-8")


def test_what_an_older_suite_skipped_is_told_as_long_as_its_grid_is_the_same(tmp_path: Path) -> None:
    mistake = {"grid": "small", "labels": {"attack": "none", "defence": "mean"}, "reason": "a mistake"}
    pair = {**mistake, "labels": {"attack": "ipm(tau=10.0)", "defence": "mean"}, "reason": "cannot be"}
    before = {"grids": [a_grid(seeds=[0])], "skipped": [mistake, pair]}
    same = a_folder(tmp_path / "same", [a_row("none", 0)], before, {"grids": [a_grid()]})
    other = a_folder(tmp_path / "other", [a_row("none", 0)], before, {"grids": [a_grid(measures=["loss"])]})
    pages = [write_bench_report([f]).page.read_text(encoding="utf-8") for f in (same, other)]
    assert ["cannot be</td>" in page for page in pages] == [True, False]
    assert not any("a mistake" in page for page in pages)  # it has a result now


def test_a_suite_that_was_put_back_is_the_newest_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for id in ("one", "two", "two", "one", "one"):
        store.note("suites", id, {"name": "tiny", "is": id}, "tiny")
    store.close()
    assert [facts["is"] for facts in read_facts(tmp_path, "suites").values()] == ["one", "two", "one"]


# ---------------------------------------------------------------------------------- versions of the code


def by(code: str, attack: str, seed: int = 0) -> Row:
    return row(seed, key=f"{attack}{seed}{code}", code=code, labels={"attack": attack})


@pytest.mark.parametrize(
    ("rows", "mixed"),
    [
        ([by("c", "none"), by("c+1", "Mine"), by("c+2", "Other"), by("c+2", "Other", 1)], []),
        ([by("c", "none"), by("c+1", "Mine"), by("c+2", "Mine", 1)], ["c+1", "c+2"]),
        ([by("c", "none"), by("d", "none", 1), by("d+1", "Mine")], ["c", "d"]),
        ([by("c+1", "Mine"), by("d+1", "Mine", 1)], ["c", "d"]),
    ],
)
def test_parts_of_ones_own_are_versions_of_the_code_only_within_one_configuration(
    tmp_path: Path, rows: list[Row], mixed: list[str]
) -> None:
    assert mixed_codes(rows) == mixed
    page = write_bench_report([a_folder(tmp_path, rows, {"grids": [a_grid(axes={})]})]).page
    said = f"Results of {len(mixed)} versions of the code are mixed here: {', '.join(mixed)}."
    text = page.read_text(encoding="utf-8")
    assert (said in text) if mixed else ("are mixed here" not in text)
