"""Small suites, rows and workers that the bench's tests share."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from securefed.errors import ConfigError
from securefed_benchmarks.bench.outcome import Outcome
from securefed_benchmarks.bench.pool import serve
from securefed_benchmarks.bench.store import Row

JOB = """
[job]
rounds = 2
data = { name = "digits", clients = 8, partition = "iid" }
model = { name = "logistic", adapter = "full" }
train = { epochs = 1, learning_rate = 0.3 }
evaluate = { every = 1, clients = false, baselines = false }
"""
GRID = """
[[grid]]
name = "small"
seconds = 0.5
f = [2]
attack = ["none", "sign_flip"]
defence = ["mean", "median", "krum"]
"""


def write(folder: Path, text: str = GRID, top: str = 'name = "tiny"\nseeds = 2\n', job: str = JOB) -> Path:
    """A suite file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "suite.toml"
    path.write_text(top + job + text, encoding="utf-8")
    return path


def row(number: int = 0, **changed: Any) -> Row:
    """A row as the runner writes it."""
    facts: dict[str, Any] = {
        "key": f"key{number}",
        "code": "c0de",
        "suite": "tiny",
        "grid": "small",
        "labels": {"attack": "none", "defence": "mean"},
        "seed": number,
        "state": "done",
        "scores": {"accuracy": 0.9},
        "curves": {"accuracy": [[1, 0.5], [2, 0.9]]},
        "job": {"rounds": 2},
        "changed": ["seed=1"],
        "error": "",
        "environment": "here",
        "commit": "abc",
        "started": 1.0,
        "seconds": 0.5,
        "cpu_seconds": 0.4,
    }
    return Row(**{**facts, **changed})


def act(job: Mapping[str, Any], measures: Any) -> Outcome:
    """A cell that does what its job says, without any library."""
    what = job["do"]
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        os._exit(3)
    if what == "refuse":
        raise ConfigError("refused on purpose")
    if what == "break":
        raise RuntimeError("broken on purpose")
    if what == "hang":
        threading.Event().wait()
    return Outcome({"accuracy": 0.5, "worker": float(os.getpid())}, {}, 0.1, 0.1)


def worker(pipe: Connection, threads: int) -> None:
    """A worker for `Pool.work`."""
    serve(pipe, act)
