"""The pool: cells that crash, hang or are killed are failures on record, and everything else is played."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from securefed_benchmarks.bench.grid import Cell
from securefed_benchmarks.bench.pool import Answer, Pool
from tests.benchmarks.bench import suites


def cells(*what: str) -> list[Cell]:
    return [Cell("g", {}, k, {"do": w}, (), (), f"key{k}") for k, w in enumerate(what)]


def played(*what: str, **options: Any) -> list[Answer]:
    pool = Pool(options.pop("jobs", 1), work=suites.worker, **options)
    found = sorted(pool.answers(cells(*what)), key=lambda a: a.cell.seed)
    assert pool._workers == []
    return found


def test_every_cell_is_answered_once_and_a_worker_is_used_again() -> None:
    found = played(*["go"] * 6, jobs=2)
    assert [a.cell.seed for a in found] == list(range(6))
    assert len({a.outcome.scores["worker"] for a in found if a.outcome}) <= 2


def test_a_worker_has_its_next_cell_before_the_caller_has_looked_at_the_answer() -> None:
    pool = Pool(1, work=suites.worker)
    answers = pool.answers(cells("go", "go", "go"))
    first = next(answers)
    assert first.cell.seed == 0
    assert [w.cell.seed for w in pool._workers if w.cell] == [1]
    assert len(list(answers)) == 2


def test_what_workers_did_with_their_time_adds_up() -> None:
    pool = Pool(2, work=suites.worker)
    began = time.monotonic()
    list(pool.answers(cells("go", "go", "die", "go")))
    assert sum(pool.used.values()) <= 2 * (time.monotonic() - began)
    assert pool.used["loading"] > pool.used["playing"] >= 0  # a cell that does nothing, a process that starts
    assert pool.used["waiting"] >= 0


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("die", "SIGKILL"),
        ("leave", "exit code 3"),
        ("refuse", "refused on purpose"),
        ("break", "RuntimeError at suites.py"),
    ],
)
def test_a_cell_that_fails_is_one_failure_and_the_next_is_played(what: str, told: str) -> None:
    before, failed, after = played("go", what, "go")
    assert before.outcome is not None
    assert failed.outcome is None
    assert told in failed.error
    assert after.outcome is not None


def test_a_cell_that_hangs_is_given_up() -> None:
    hung, after = played("hang", "go", timeout_s=4.0)
    assert "given up after 4 s" in hung.error
    assert after.outcome is not None


def test_no_cell_begins_after_the_stop_and_running_ones_end() -> None:
    asked: list[bool] = []
    pool = Pool(1, work=suites.worker, stop=lambda: bool(asked))
    answers = pool.answers(cells("go", "go", "go"))
    assert next(answers).outcome is not None
    asked.append(True)
    assert len(list(answers)) <= 1


def test_workers_are_gone_when_the_caller_leaves_in_the_middle() -> None:
    pool = Pool(2, work=suites.worker)
    answers = pool.answers(cells("go", "hang", "go", "hang"))
    next(answers)
    processes = [w.process for w in pool._workers]
    answers.close()  # as an exception in the caller does
    assert not any(p.is_alive() for p in processes)


def test_ctrl_c_once_lets_running_cells_end_and_twice_stops_at_once() -> None:
    from securefed_benchmarks.bench.command import Interrupt

    before, interrupt = signal.getsignal(signal.SIGINT), Interrupt()
    with interrupt.caught():
        signal.raise_signal(signal.SIGINT)
        assert interrupt()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answers_time_is_its_cells_own() -> None:
    began = time.time()
    (only,) = played("go")
    assert began <= only.started
    assert only.seconds < 60
