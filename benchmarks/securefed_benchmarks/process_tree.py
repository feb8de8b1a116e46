"""CPU seconds of a command and of everything that it starts, at marks that it prints; Linux."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MARK = "mark"
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Marks:
    """What was read at each mark, and of the whole command.

    Attributes:
        cpu: CPU seconds of all its processes so far. clock: seconds since it was started. whole: seconds to its end.
    """

    cpu: tuple[float, ...]
    clock: tuple[float, ...]
    whole: float

    @property
    def round_cpu(self) -> float:
        """Mean CPU seconds from mark to mark but the first two, which start what the others use."""
        return (self.cpu[-1] - self.cpu[2]) / (len(self.cpu) - 3)

    @property
    def round_clock(self) -> float:
        """The median by the clock, over the same."""
        return float(np.median(np.diff(self.clock[2:])))


def adopt_orphans(yes: bool) -> None:
    """Whether this process becomes the parent of descendants whose own has ended, so that they are still counted.

    Raises:
        OSError: the kernel refused.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) != 0:
        raise OSError(
            ctypes.get_errno(), "prctl: orphans cannot be adopted, so their CPU seconds would be lost"
        )


def tree_cpu(roots: Iterable[int]) -> float:
    """CPU seconds of these processes and their descendants, those that have ended included where somebody waited."""
    return sum(sum(cpu_of(pid)) for root in roots for pid in (root, *_descendants(root)))


def _children() -> set[int]:
    return set(children_of(os.getpid()))


def children_of(pid: int) -> Iterator[int]:
    """Ids of the processes that this one has started, or adopted, and that still live."""
    try:
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            yield from map(int, (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return


def _descendants(pid: int) -> Iterator[int]:
    for child in children_of(pid):
        yield child
        yield from _descendants(child)


def cpu_of(pid: int) -> tuple[float, float]:
    """CPU seconds (of the process itself, of its ended children that it waited for); zeros once it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    fields = stat.rpartition(")")[2].split()  # behind the name, which may hold blanks
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(map(int, fields[11:13])) / ticks, sum(map(int, fields[13:15])) / ticks


def watched(command: Sequence[str], more: Mapping[str, str] | None = None) -> Marks:
    """Plays a command that prints a line `mark` where it wants to be read, and waits for all that it leaves behind.

    Args:
        more: environment variables. One thread a process unless they say otherwise.

    Raises:
        RuntimeError: it failed, or gave fewer than four marks; its last words are in the message.
    """
    older = _children()
    adopt_orphans(True)
    try:
        return _read(command, {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}, older)
    finally:
        _wait_for_those_after(older)
        adopt_orphans(False)


def _read(command: Sequence[str], environment: Mapping[str, str], older: set[int]) -> Marks:
    cpu, clock = [], []
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(environment)
        )
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == MARK:
                clock.append(time.perf_counter() - began)
                cpu.append(tree_cpu(_children() - older))
        code = child.wait()
        whole = time.perf_counter() - began
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    if code or len(cpu) < 4:
        raise RuntimeError(f"{' '.join(command[:3])}: status {code}, {len(cpu)} marks of at least 4; {last}")
    return Marks(tuple(cpu), tuple(clock), whole)


def _wait_for_those_after(older: set[int]) -> None:
    """What the command left behind ends by itself; until then it would disturb the next one."""
    while left := _children() - older:
        for pid in left:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue
