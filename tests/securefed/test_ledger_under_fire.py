"""`kill -9` at random moments, again and again, on one ledger: never understated, never corrupt, and it goes on."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from securefed.federation import resume, run
from securefed.privacy.chain import Head
from securefed.privacy.events import steps_of
from securefed.privacy.ledger import Ledger
from tests.securefed.test_federation import PRIVATE

ROOT = Path(__file__).parents[2]
STEPS = 2
JOB = {**PRIVATE, "rounds": 12, "evaluate": {"every": 0, "baselines": False}}

NURSERY = """
import json, os, sys
import torch
from securefed.federation import resume, run
from securefed.privacy.ledger import Ledger
import securefed.assembly, securefed.models.small_nets, securefed.training.dp, sklearn.datasets

torch.set_num_threads(1)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def watched(name):
    plain = getattr(Ledger, name)
    def method(self, *args, **kwargs):
        found = plain(self, *args, **kwargs)  # on disk when it returns; only then is it told
        number = found if name == "reserve" else args[0]
        say(os.getpid(), name, number, self.head())
        return found
    setattr(Ledger, name, method)

watched("reserve"), watched("settle")
say("ready")
for line in sys.stdin:
    config, folder = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            say(os.getpid(), "starts")
            (resume if config is None else lambda f: run(config, folder=f))(folder)
            say(os.getpid(), "done")
        except BaseException as error:
            say(os.getpid(), "failed", type(error).__name__, str(error).replace(chr(10), " "))
        os._exit(0)
    if "--together" not in sys.argv:
        os.waitpid(child, 0)
        say(child, "ended")
if "--together" in sys.argv:
    try:
        while True:
            say(os.wait()[0], "ended")
    except ChildProcessError:
        pass
"""
"""Loads the heavy libraries once and forks one real process for each run, so that 200 of them are minutes."""


@dataclass
class Nursery:
    """The process that forks, and what its children have confirmed on their way."""

    process: subprocess.Popen[bytes]
    reserved: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)
    seen: Head | None = None
    _rest: bytes = b""

    def start(self, config: dict[str, Any] | None, folder: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([config, str(folder)]).encode() + b"\n")
        self.process.stdin.flush()
        return int(self.line(60).split()[0])

    def line(self, seconds: float) -> str:
        """The next line; empty if none comes within so many seconds."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return ""
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            assert chunk, "the nursery died"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return self.note(line.decode())

    def note(self, line: str) -> str:
        words = line.split()
        if len(words) == 4 and words[1] in ("reserve", "settle"):
            (self.reserved if words[1] == "reserve" else self.settled).add(int(words[2]))
            self.seen = Head.parse(words[3])
        return line

    def kill_after(self, child: int, seconds: float) -> str:
        """Kills the child so long after now, or lets it end before; "done" if it did, else ""."""
        end, last = time.monotonic() + seconds, ""
        killed = False
        while True:
            line = self.line(60 if killed else max(0.0, end - time.monotonic()))
            if not line and not killed:
                os.kill(child, signal.SIGKILL)
                killed = True
            elif line == f"{child} ended":
                return last
            else:
                assert "failed" not in line, line
                last = "done" if line == f"{child} done" else last


@pytest.fixture
def nursery(home: Path) -> Iterator[Nursery]:
    with nursery_of() as made:
        yield made


@contextmanager
def nursery_of(*args: str) -> Iterator[Nursery]:
    paths = os.pathsep.join(str(ROOT / p) for p in (".", "attacks", "defenses", "benchmarks"))
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY, *args],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    made = Nursery(process)
    assert made.line(120) == "ready"
    try:
        yield made
    finally:
        process.kill()
        process.wait()


def hold_to_it(nursery: Nursery) -> None:
    """Everything that a process was told is on disk is there, whole, and in its place in the chain."""
    with Ledger.site() as ledger:
        ledger.check(nursery.seen)
        ledger.export(ledger.path.with_suffix(".json"))
        rows = json.loads(ledger.path.with_suffix(".json").read_text())["reservations"]
        charged = {row["id"] for row in rows}
        assert nursery.reserved <= charged
        assert nursery.settled <= {row["id"] for row in rows if row["settled_at"] is not None}
        assert all(row["steps"] == STEPS for row in rows)
        assert sum(map(steps_of, ledger.events())) == STEPS * len(charged)


def under_fire(nursery: Nursery, folder: Path, kills: int, seed: int) -> None:
    drawn, runs, fired, longest = random.Random(seed), 0, 0, 1.5
    while fired < kills:
        path = folder / str(runs)
        config = None if (path / "run.json").exists() else JOB
        if config is not None and path.exists():  # killed before the ledger knew the run: nothing to resume
            runs += 1
            path = folder / str(runs)
        begun = time.monotonic()
        child = nursery.start(config, path)
        if nursery.kill_after(child, drawn.uniform(0, longest)) == "done":
            longest = max(0.3, 0.9 * (time.monotonic() - begun))
            runs += 1
        else:
            fired += 1
        hold_to_it(nursery)
    assert nursery.reserved  # some were killed while they were spending
    last = folder / str(runs)
    result = resume(last) if (last / "run.json").exists() else run(JOB, folder=folder / "last")
    assert result.rounds == JOB["rounds"]  # and the ledger goes on
    hold_to_it(nursery)


def test_killed_at_eight_moments_the_ledger_holds_what_was_spent(nursery: Nursery, tmp_path: Path) -> None:
    under_fire(nursery, tmp_path, kills=8, seed=int.from_bytes(os.urandom(4), "big"))


@pytest.mark.slow
def test_killed_at_two_hundred_moments_the_ledger_holds_what_was_spent(
    nursery: Nursery, tmp_path: Path
) -> None:
    under_fire(nursery, tmp_path, kills=200, seed=int.from_bytes(os.urandom(4), "big"))


def test_two_processes_on_one_data_set_share_its_budget(home: Path, tmp_path: Path) -> None:
    """Together they may play thirteen rounds; each wants twelve."""
    whole = run({**JOB, "rounds": 13}, folder=tmp_path / "measure").ledger
    assert whole is not None
    epsilon = whole.epsilon(1e-4) * 1.0001
    shutil.rmtree(home / "state")
    job = {**JOB, "privacy": {**JOB["privacy"], "site_epsilon": epsilon}}
    with nursery_of("--together") as nursery:
        assert nursery.process.stdin is not None
        for name in ("a", "b"):
            nursery.process.stdin.write(json.dumps([job, str(tmp_path / name)]).encode() + b"\n")
        nursery.process.stdin.close()
        lines = [nursery.line(120)]
        while sum(line.endswith("ended") for line in lines) < 2:
            lines.append(nursery.line(120))
    assert sum(line.endswith("done") for line in lines) == 2
    with Ledger.site() as ledger:
        ledger.check()
        events = ledger.events()
        spent = ledger.site_epsilon(1e-4, cap_dataset(ledger))
        assert spent <= epsilon
        per_client = [sum(map(steps_of, ledger.events(client=k))) for k in range(4)]
        assert max(per_client) == 13 * STEPS  # and nothing of it was left unused
        assert sum(map(steps_of, events)) == sum(per_client)


def cap_dataset(ledger: Ledger) -> str:
    ledger.export(ledger.path.with_suffix(".json"))
    runs = json.loads(ledger.path.with_suffix(".json").read_text())["runs"]
    assert len({r["dataset"] for r in runs}) == 1
    return str(runs[0]["dataset"])


def test_a_new_folder_and_a_clock_set_back_reset_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run({**JOB, "rounds": 2}, folder=tmp_path / "a")
    assert first.ledger is not None
    once = first.ledger.epsilon(1e-4)
    shutil.rmtree(tmp_path / "a")
    monkeypatch.setattr("securefed.privacy.ledger.now", lambda: "1970-01-01T00:00:00+00:00")
    run({**JOB, "rounds": 2}, folder=tmp_path / "b")
    with Ledger.site() as ledger:
        assert ledger.site_epsilon(1e-4, cap_dataset(ledger)) > once * 1.05
        ledger.check()
