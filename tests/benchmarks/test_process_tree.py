"""CPU seconds of a command and of all that it starts: nothing is lost where a parent ends before its child."""

from __future__ import annotations

import subprocess
import sys

import pytest

from securefed_benchmarks import process_tree
from securefed_benchmarks.process_tree import watched

BURN = "import time\nend = time.process_time() + {s}\nwhile time.process_time() < end: pass\n"
GRANDCHILD = (
    "import subprocess, sys\n"
    # a child that starts the busy one and ends at once, so the busy one is an orphan
    "start = 'import subprocess, sys; subprocess.Popen([sys.executable, \"-c\", sys.argv[1]])'\n"
    "subprocess.run([sys.executable, '-c', start, {busy!r}])\n"
    "import time\n"
    "for _ in range(5):\n"
    "    end = time.process_time() + 0.1\n"
    "    while time.process_time() < end: pass\n"
    "    print('mark', flush=True)\n"
)


def test_an_orphans_seconds_are_counted_between_the_marks() -> None:
    alone = watched([sys.executable, "-c", GRANDCHILD.format(busy="pass")])
    beside = watched([sys.executable, "-c", GRANDCHILD.format(busy=BURN.format(s=2.0))])
    assert len(alone.cpu) == len(beside.cpu) == 5
    assert alone.round_cpu == pytest.approx(0.1, abs=0.05)
    assert beside.cpu[-1] - alone.cpu[-1] > 0.2  # the orphan ran while the marks were printed


def test_seconds_of_an_earlier_command_are_not_counted_again() -> None:
    watched([sys.executable, "-c", GRANDCHILD.format(busy=BURN.format(s=1.0))])
    again = watched([sys.executable, "-c", GRANDCHILD.format(busy="pass")])
    assert again.cpu[0] < 0.9


def test_a_command_that_fails_says_its_last_words() -> None:
    with pytest.raises(RuntimeError, match=r"status 1, 0 marks of at least 4.*ValueError: no shards"):
        watched([sys.executable, "-c", "raise ValueError('no shards')"])


def test_without_adopted_orphans_their_seconds_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that `adopt_orphans` is there for, put in on purpose."""
    monkeypatch.setattr(process_tree, "adopt_orphans", lambda yes: None)
    lost = watched([sys.executable, "-c", GRANDCHILD.format(busy=BURN.format(s=2.0))])
    assert lost.round_cpu == pytest.approx(0.1, abs=0.05)


def test_processes_that_were_here_before_are_neither_counted_nor_waited_for() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert len(watched([sys.executable, "-c", GRANDCHILD.format(busy="pass")]).cpu) == 5
        assert other.poll() is None
    finally:
        other.communicate()
