"""A suite from file to results: what is to be played, the question before a long one, the playing itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from securefed.errors import CheckpointError, ConfigError
from securefed.tracking.environment import environment
from securefed.tracking.numbers import clock
from securefed_benchmarks.bench.grid import Cell, Only, Skipped, count, expand, sizes
from securefed_benchmarks.bench.pool import Answer, Pool
from securefed_benchmarks.bench.progress import Progress, hours
from securefed_benchmarks.bench.store import Row, Store, locked
from securefed_benchmarks.bench.suite import Suite
from securefed_benchmarks.bench.version import code_version, own_code

ASK_CELLS, ASK_SECONDS = 1000, 2 * 3600.0
"""From so many cells, or so long an estimate, on a bench asks before it begins."""
GUESS_S = 5.0
"""Seconds of a cell about which nobody has said anything."""
WORKER_START_S = 8.0
"""What a worker takes until it has loaded the libraries."""


@dataclass(frozen=True)
class Plan:
    """What a bench would play now.

    Attributes:
        cells: to play. known: how many are on record by this code. outdated: results of other code, which
            stay on record. expected: grid -> seconds a cell.
    """

    suite: Suite
    cells: Sequence[Cell] = field(repr=False)
    skipped: Sequence[Skipped] = field(repr=False)
    known: int
    outdated: int
    expected: Mapping[str, float]

    def seconds(self, jobs: int) -> float:
        """About how long it takes."""
        total = sum(self.expected[cell.grid] for cell in self.cells)
        return WORKER_START_S + total / max(1, jobs) if self.cells else 0.0


@dataclass(frozen=True)
class Played:
    """How a bench ended.

    Attributes:
        used: seconds that all workers spent loading, playing and waiting.
    """

    folder: Path
    done: int
    failed: int
    left: int
    used: Mapping[str, float] = field(default_factory=dict)


def ask_before(
    suite: Suite, only: Only, jobs: int, agreed: bool, ask: Callable[[str], bool] | None = None
) -> None:
    """Lets a long bench begin only if somebody wants it; nothing is multiplied out before.

    Args:
        agreed: `--yes`. ask: puts a question to a person; None where there is none to ask.

    Raises:
        ConfigError: nobody agreed; the message has the estimate.
    """
    total = count(suite, only)
    if total == 0:
        raise ConfigError(f"{suite.name} has no cell left; widen --only or --seeds")
    seconds = _rough(suite, only) / jobs
    if agreed or (total <= ASK_CELLS and seconds <= ASK_SECONDS):
        return
    text = f"{suite.name} has {total:,} cells, about {hours(seconds)} at {jobs} at a time"
    if ask is not None and ask(text):
        return
    raise ConfigError(f"{text}; say --yes to play them all, or take a part with --only or --seeds")


def _rough(suite: Suite, only: Only) -> float:
    """CPU seconds of the whole, by the suite's own estimates."""
    return sum(cells * (grid.seconds or GUESS_S) for grid, cells in sizes(suite, only))


def plan(suite: Suite, only: Only, store: Store | None) -> Plan:
    """What is left to play, what cannot be, and how long a cell of each grid takes.

    Raises:
        ConfigError: nothing of the suite can be played.
    """
    cells, skipped = expand(suite, only)
    if not cells:
        reason = skipped[0].reason if skipped else "nothing is left"
        raise ConfigError(f"{suite.name} has no cell that can be played: {reason}")
    done = set() if store is None else store.done()
    keys = {key for key, _ in done}
    left = [cell for cell in cells if (cell.key, version(cell)) not in done]
    expected = {}
    for grid in suite.grids:
        took = [] if store is None else store.seconds(grid.name)
        expected[grid.name] = statistics.fmean(took) if took else grid.seconds or GUESS_S
    outdated = sum(cell.key in keys for cell in left)
    return Plan(suite, left, skipped, len(cells) - len(left), outdated, expected)


def longest_first(todo: Plan) -> list[Cell]:
    """Seed by seed, so that a stopped bench has whole tables; in a seed the longest first, so that workers end together."""
    return sorted(todo.cells, key=lambda cell: (cell.seed, -todo.expected[cell.grid]))


def version(cell: Cell) -> str:
    """Digest of the code behind a cell, the user's own classes included."""
    own = own_code([cell.job, list(cell.measures)])
    return f"{code_version()}+{own}" if own else code_version()


def bench(
    suite: Suite,
    folder: Path,
    *,
    only: Only,
    jobs: int,
    resume: bool,
    stream: IO[str],
    stop: Callable[[], bool],
) -> tuple[Played, Plan]:
    """Plays what is not on record; every cell is on disk before the next is given out.

    Raises:
        CheckpointError: the folder has results and `resume` was not said, holds another suite's, is in use,
            or its store is damaged.
    """
    with locked(folder):
        store = Store(folder)
        try:
            if len(store) and not resume:
                raise CheckpointError(
                    f"{folder} holds {len(store)} results; go on with --resume, or give another --folder"
                )
            _refuse_other(suite, folder)
            todo = plan(suite, only, store)
            _keep_files(suite, folder)
            return _play(suite, folder, todo, store, jobs, stream, stop), todo
        finally:
            store.close()


def _play(
    suite: Suite, folder: Path, todo: Plan, store: Store, jobs: int, stream: IO[str], stop: Callable[[], bool]
) -> Played:
    made = environment()
    where = _digest(made)
    store.note("environments", where, made)
    facts = suite_facts(suite, todo)
    store.note("suites", _digest(facts), facts, suite.name)
    progress = Progress(stream, len(todo.cells), jobs, dict(todo.expected))
    progress.begin(todo.cells, todo.skipped, todo.known)
    if todo.outdated:
        stream.write(f"{todo.outdated} of them have results of other code, which stay on record\n")
    pool = Pool(jobs, suite.threads, suite.timeout_s, stop)
    for answer in pool.answers(longest_first(todo)) if todo.cells else ():
        store.append(_row(suite, answer, where, str(made["commit"] or "")))
        progress.cell(answer)
    progress.end(pool.used)
    return Played(
        folder, progress.done - progress.failed, progress.failed, len(todo.cells) - progress.done, pool.used
    )


def _row(suite: Suite, answer: Answer, where: str, commit: str) -> Row:
    cell, found = answer.cell, answer.outcome
    return Row(
        key=cell.key,
        code=version(cell),
        suite=suite.name,
        grid=cell.grid,
        labels=cell.labels,
        seed=cell.seed,
        state="failed" if found is None else "done",
        scores={} if found is None else found.scores,
        curves={} if found is None else found.curves,
        job=cell.job,
        changed=cell.changed,
        error=answer.error,
        environment=where,
        commit=commit,
        started=answer.started,
        seconds=answer.seconds,
        cpu_seconds=0.0 if found is None else found.cpu_seconds,
    )


def suite_facts(suite: Suite, todo: Plan) -> dict[str, Any]:
    """What a report says of the suite: its grids, and what could not be."""
    grids = [
        {
            "name": g.name,
            "about": g.about,
            "job": g.job,
            "axes": {axis: [c.label for c in choices] for axis, choices in g.axes.items()},
            "seeds": list(g.seeds),
            "measures": list(g.measures),
        }
        for g in suite.grids
    ]
    skipped = [{"grid": s.grid, "labels": dict(s.labels), "reason": s.reason} for s in todo.skipped]
    return {"name": suite.name, "about": suite.about, "grids": grids, "skipped": skipped}


def _refuse_other(suite: Suite, folder: Path) -> None:
    """One folder, one suite: tables of two would be read as one."""
    noted = folder / "suite.json"
    if noted.exists():
        name = json.loads(noted.read_text(encoding="utf-8"))["name"]
        if name != suite.name:
            raise CheckpointError(
                f"{folder} holds results of suite {name}, not {suite.name}; give another --folder"
            )


def _keep_files(suite: Suite, folder: Path) -> None:
    """The suite and its claims beside the results, so that a report needs nothing else."""
    (folder / "suite.json").write_text(json.dumps({"name": suite.name}) + "\n", encoding="utf-8")
    for name, source in (("suite.toml", suite.path), ("claims.toml", suite.path.with_name("claims.toml"))):
        target = folder / name
        if source.is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source, target)


def describe(todo: Plan, jobs: int) -> list[str]:
    """The plan for people: every cell of the first seed, and what the whole takes."""
    first = min((cell.seed for cell in todo.cells), default=0)
    shown = [str(cell) for cell in todo.cells if cell.seed == first]
    lines = [f"  {one}" for one in shown]
    text = f"{len(todo.cells)} cells to play, about {clock(todo.seconds(jobs))} at {jobs} at a time"
    return [*lines, text + (f"; {todo.known} on record" if todo.known else "")]


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:16]
