"""The default engine: every client on this machine, one after another or in a pool of processes.

It holds all keys and all data, so whatever protection the bytes go through, nothing is hidden from
this process; reports say so.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Protocol

from securefed.errors import SecureFedError

if TYPE_CHECKING:
    from securefed.training.client import ClientJob, ClientOutcome, ClientRunner


logger = logging.getLogger(__name__)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warn_of_cores(workers: int) -> None:
    """One line where a pool has more workers than cores: it gains nothing, and each holds a model of its own."""
    have = cores()
    if workers > have:
        logger.warning(
            "engine.workers=%d, but this process may use %d core%s: workers wait for each other, and each holds a base "
            "model of its own; set engine.workers to %d",
            workers,
            have,
            "" if have == 1 else "s",
            0 if have == 1 else have,
        )


class Engine(Protocol):
    """Where clients run. The answers come in the order of the jobs."""

    def train(self, jobs: Sequence[ClientJob]) -> list[ClientOutcome]: ...

    def close(self) -> None: ...


class InProcess:
    """Clients one after another over one resident base model."""

    def __init__(self, runner: ClientRunner) -> None:
        self._runner = runner

    def train(self, jobs: Sequence[ClientJob]) -> list[ClientOutcome]:
        return [self._runner.run_job(job) for job in jobs]

    def close(self) -> None:
        """Nothing to end."""


class Pool:
    """Clients in `workers` processes, each with its own resident base model.

    A client always goes to whichever worker is free; its update does not depend on which one,
    because nothing but the job enters it (per-client generators, fresh local optimizers).

    Args:
        build: makes the worker's `ClientRunner`; called once in each process, so it must be importable.
        threads: torch threads per worker; fixed, because sums depend on it in the last bit.
    """

    def __init__(self, build: Callable[[], ClientRunner], workers: int, threads: int = 1) -> None:
        warn_of_cores(workers)
        context = multiprocessing.get_context("spawn")  # fork would copy torch's thread pool half alive
        self._pool = ProcessPoolExecutor(workers, context, _start_worker, (build, threads))

    def train(self, jobs: Sequence[ClientJob]) -> list[ClientOutcome]:
        try:
            return list(self._pool.map(_run_job, jobs))
        except BrokenProcessPool:
            raise SecureFedError(
                "a worker process died (out of memory, or killed); the run can be resumed, with fewer engine.workers if memory was short"
            ) from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            with contextlib.suppress(OSError, ValueError):
                process.terminate()


_worker: ClientRunner | None = None  # one per worker process, set by `_start_worker` and read by `_run_job`


def _start_worker(build: Callable[[], ClientRunner], threads: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent, which ends the round first
    import torch

    torch.set_num_threads(threads)
    _worker = build()


def _run_job(job: ClientJob) -> ClientOutcome:
    assert _worker is not None
    return _worker.run_job(job)
