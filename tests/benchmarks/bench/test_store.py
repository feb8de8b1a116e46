"""The store: appended to and never changed, whatever happens to its writer."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from securefed.errors import CheckpointError
from securefed_benchmarks.bench.store import FILE, Store, locked, read_columns, read_rows
from tests.benchmarks.bench.suites import row


def filled(folder: Path, rows: int = 3) -> Path:
    store = Store(folder)
    for k in range(rows):
        store.append(row(k))
    store.close()
    return folder


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    assert read_rows(filled(tmp_path)) == [row(k) for k in range(3)]


def test_infinity_and_nothing_survive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(row(scores={"epsilon": float("inf"), "loss": float("nan"), "accuracy": 0.1}))
    assert read_rows(tmp_path)[0].scores == {"epsilon": float("inf"), "accuracy": 0.1}


@pytest.mark.parametrize("sql", ["update results set scores = '{}'", "delete from results"])
def test_no_row_can_be_changed_or_deleted(tmp_path: Path, sql: str) -> None:
    db = sqlite3.connect(filled(tmp_path) / FILE)
    with pytest.raises(sqlite3.DatabaseError, match="append only"):
        db.execute(sql)
    db.close()
    assert len(read_rows(tmp_path)) == 3


def test_a_result_beats_a_failure_and_a_newer_result_an_older(tmp_path: Path) -> None:
    store = Store(tmp_path)
    failed = row(state="failed", scores={}, error="killed")
    for one in (failed, row(), replace(failed, error="killed again"), row(code="newer")):
        store.append(one)
    assert read_rows(tmp_path) == [row(code="newer")]
    assert store.done() == {("key0", "c0de"), ("key0", "newer")}


def test_columns_are_a_data_frame(tmp_path: Path) -> None:
    store = Store(filled(tmp_path))
    store.append(row(7, labels={"f": 2}, scores={"epsilon": 3.0}))
    columns = read_columns(tmp_path)
    assert {len(c) for c in columns.values()} == {4}
    assert columns["accuracy"] == [0.9, 0.9, 0.9, None]
    assert columns["f"] == [None, None, None, 2]
    pandas = pytest.importorskip("pandas", reason="pandas is not needed, only served")
    assert pandas.DataFrame(columns).groupby("grid")["accuracy"].mean()["small"] == pytest.approx(0.9)


@pytest.mark.parametrize("damage", ["text", "middle", "short"])
def test_a_damaged_store_is_a_clear_error_and_is_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = filled(tmp_path, 60) / FILE
    whole = path.read_bytes()
    broken = {
        "text": b"not a database at all, but a page long" * 200,
        "middle": whole[:8192] + b"\xff" * 8192 + whole[16384:],
        "short": whole[: len(whole) // 2],
    }[damage]
    path.write_bytes(broken)
    for act in (lambda: Store(tmp_path), lambda: read_rows(tmp_path)):
        with pytest.raises(CheckpointError, match="nothing in it was changed"):
            act()
    assert path.read_bytes() == broken


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(filled(tmp_path) / FILE)
    db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(CheckpointError, match="format 99"):
        Store(tmp_path)


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("create table things (a)")
    db.close()
    with pytest.raises(CheckpointError, match="format 0"):
        Store(tmp_path)


def test_a_folder_without_results_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no results"):
        read_rows(tmp_path)


def test_two_benches_on_one_folder_are_refused_and_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CheckpointError, match="another bench"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
