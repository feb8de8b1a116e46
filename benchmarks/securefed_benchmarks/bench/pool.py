"""Worker processes that survive each other: a cell that crashes, hangs or is killed is one failure on record.

Each worker is spawned, holds its own resident data and models, and answers over its own pipe. A worker that
dies takes its cell with it and nothing else; another is started in its place.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from securefed.errors import SecureFedError
from securefed_benchmarks.bench.grid import Cell
from securefed_benchmarks.bench.outcome import Outcome

_CONTEXT = multiprocessing.get_context("spawn")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
READY = "ready"
START_S = 900.0
"""A worker that has not loaded its libraries after this long never will."""
DOING = ("loading", "playing", "waiting")
PAUSE_S = 0.5
"""How long to wait for an answer before the clock and Ctrl-C are looked at again."""


@dataclass(frozen=True)
class Answer:
    """One cell's end: an outcome, or why there is none."""

    cell: Cell
    outcome: Outcome | None
    error: str
    started: float
    seconds: float


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    ready: bool = False
    began: float = 0.0
    started: float = 0.0
    since: float = field(default_factory=time.monotonic)
    """When it began what it does now: to load, to play a cell, to wait for one."""
    used: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DOING, 0.0))

    def give(self, cell: Cell) -> None:
        if self.ready:
            self.spent("waiting")
        self.cell, self.began, self.started = cell, time.monotonic(), time.time()
        self.pipe.send((dict(cell.job), cell.measures))

    def loaded(self) -> None:
        """Its libraries are there, and its cell's clock begins."""
        self.spent("loading")
        self.ready, self.began = True, time.monotonic()

    def answer(self, outcome: Outcome | None, error: str) -> Answer:
        assert self.cell is not None
        self.spent("playing" if self.ready else "loading")
        found = Answer(self.cell, outcome, error, self.started, time.monotonic() - self.began)
        self.cell = None
        return found

    def spent(self, what: str) -> None:
        """Counts the seconds since it began what it did."""
        now = time.monotonic()
        self.used[what] += now - self.since
        self.since = now


@dataclass
class Pool:
    """`jobs` workers. `answers` plays the cells and gives each one's end as it comes.

    Attributes:
        stop: asked between answers; once it says yes no further cell begins. timeout_s: of one cell.
        work: a worker's life; `serve` with something else than jobs, for tests of the pool alone.
        used: seconds that all workers spent loading libraries, playing cells, and waiting for one.
    """

    jobs: int
    threads: int = 1
    timeout_s: float = 3600.0
    stop: Callable[[], bool] = lambda: False
    work: Callable[[Connection, int], None] | None = None
    used: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DOING, 0.0), repr=False)
    _workers: list[_Worker] = field(default_factory=list, repr=False)

    def answers(self, cells: Sequence[Cell]) -> Iterator[Answer]:
        """Each cell's end, in the order in which they end.

        The next cells are given out first, so that no worker waits for what the caller does with an answer.
        """
        waiting = list(reversed(cells))
        with _pinned(self.threads):
            try:
                busy = self._hand_out(waiting)
                while busy:
                    found = list(self._collect())
                    busy = self._hand_out(waiting)
                    yield from found
            finally:
                self._end()

    def _hand_out(self, waiting: list[Cell]) -> bool:
        """Gives every idle worker a cell, starting workers as they are needed; False when nothing runs."""
        while waiting and not self.stop():
            idle = next((w for w in self._workers if w.cell is None), None)
            if idle is None:
                if len(self._workers) >= self.jobs:
                    break
                idle = self._start()
            cell = waiting.pop()
            try:
                idle.give(cell)
            except (BrokenPipeError, ConnectionResetError):  # it died while it was idle
                idle.cell = None
                self._drop(idle)
                waiting.append(cell)
        return any(w.cell is not None for w in self._workers)

    def _collect(self) -> Iterator[Answer]:
        busy = [w for w in self._workers if w.cell is not None]
        ready = wait([w.pipe for w in busy], PAUSE_S)
        for worker in busy:
            if worker.pipe in ready:
                yield from self._receive(worker)
            elif time.monotonic() - worker.began > (self.timeout_s if worker.ready else START_S):
                yield worker.answer(
                    None, f"given up after {self.timeout_s:g} s; raise timeout_s in the suite"
                )
                self._drop(worker)

    def _receive(self, worker: _Worker) -> Iterator[Answer]:
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            found = worker.answer(None, _death(worker.process.exitcode))
            self._drop(worker)
            yield found
            return
        if message == READY:
            worker.loaded()
        else:
            yield worker.answer(*message)

    def _start(self) -> _Worker:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=self.work or _work, args=(theirs, self.threads), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.spent("waiting" if worker.cell is None and worker.ready else "playing")
        for what, seconds in worker.used.items():
            self.used[what] += seconds
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()

    def _end(self) -> None:
        for worker in list(self._workers):
            self._drop(worker)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Workers started within it read how many threads their libraries may use."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ |= dict.fromkeys(THREADS, str(threads))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, threads: int) -> None:
    """A worker's life: cells in, outcomes out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also while the libraries load
    warnings.filterwarnings("ignore")
    logging.getLogger("securefed").setLevel(logging.ERROR)
    import torch

    from securefed_benchmarks.bench.play import play
    from securefed_benchmarks.bench.resident import Resident

    torch.set_num_threads(threads)
    resident = Resident()
    serve(pipe, lambda job, measures: play(job, measures, resident))


def serve(pipe: Connection, act: Callable[[Any, Any], Any]) -> None:
    """Answers cells until the pipe closes, and ends when the bench is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the bench decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pipe.send(READY)
    while True:
        try:
            job, measures = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(_guarded(act, job, measures))


def _guarded(act: Callable[[Any, Any], Any], job: Any, measures: Any) -> tuple[Any, str]:
    """(result, "") or (None, what went wrong and where); a cell's failure is a result too."""
    try:
        return act(job, measures), ""
    except SecureFedError as error:
        return None, str(error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(last.filename)}:{last.lineno}"
        return None, f"{type(error).__name__} at {place}: {str(error)[:200]}"


def _die_with_parent() -> None:
    """Ends this worker when the bench is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
