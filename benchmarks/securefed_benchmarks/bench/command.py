"""What `securefed bench` does; the command's arguments are in `securefed.commands.bench`."""

from __future__ import annotations

import argparse
import dataclasses
import io
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from securefed.commands.output import INTERRUPTED, fail, say, say_json
from securefed.errors import ConfigError
from securefed_benchmarks.bench.claims import check_claims, load_claims, sides_of
from securefed_benchmarks.bench.grid import Only
from securefed_benchmarks.bench.progress import hours, tell_skipped
from securefed_benchmarks.bench.runner import Plan, Played, ask_before, bench, describe, plan
from securefed_benchmarks.bench.suite import Suite, find_suite, load_suite, seed_list


class Interrupt:
    """The first Ctrl-C lets running cells end, the second ends the bench at once; all that ended is on record."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within it SIGINT is ours; elsewhere than in the main thread it never comes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        sys.stderr.write("securefed: running cells end, no other begins; Ctrl-C again stops at once\n")
        sys.stderr.flush()


def play(args: argparse.Namespace) -> int:
    """Plays or lists a suite; exit code 1 if a cell failed, 130 after Ctrl-C."""
    _find_own_code(find_suite(args.suite))
    suite = load_suite(args.suite, None if args.seeds is None else seed_list(args.seeds, "--seeds"))
    claims = load_claims(suite.path.with_name("claims.toml"))
    check_claims(claims, suite)
    only = Only.parse(args.only or [], suite)
    if args.claims:
        only = dataclasses.replace(only, sides=sides_of(claims, suite))
    if args.jobs < 1:
        raise ConfigError(f"--jobs is 1 or more, found {args.jobs}")
    folder = args.folder or Path("runs") / f"bench-{suite.name}"
    ask = _ask if sys.stdin is not None and sys.stdin.isatty() and not args.json else None
    if args.dry_run:
        return _list(suite, only, args)
    ask_before(suite, only, args.jobs, args.yes, ask)
    stream: IO[str] = io.StringIO() if args.quiet else sys.stderr if args.json else sys.stdout
    interrupt = Interrupt()
    try:
        with interrupt.caught():
            played, todo = bench(
                suite, folder, only=only, jobs=args.jobs, resume=args.resume, stream=stream, stop=interrupt
            )
    except KeyboardInterrupt:
        return fail(
            f"stopped at once; what ended is on record, go on with: {_again(args, folder)}", INTERRUPTED
        )
    return _end(args, played, todo, interrupt.asked, folder)


def _find_own_code(path: Path) -> None:
    """Lets "module:Class" mean a file beside the suite, as Python lets a script import its neighbours."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _end(args: argparse.Namespace, played: Played, todo: Plan, stopped: bool, folder: Path) -> int:
    from securefed_benchmarks.bench.report import write_bench_report

    if played.done + todo.known == 0:
        return fail("no cell gave a result; the lines above say why", INTERRUPTED if stopped else 1)
    report = write_bench_report([folder])
    if args.json:
        say_json(
            {
                "folder": str(folder),
                "done": played.done,
                "failed": played.failed,
                "left": played.left,
                "known": todo.known,
                "skipped": len(todo.skipped),
                "worker_seconds": {what: round(s, 2) for what, s in played.used.items()},
                "claims": report.claims,
                "report": str(report.page),
            }
        )
    else:
        for line in report.summary:
            say(line)
        say(f"report: {report.page}")
    if stopped:
        return fail(f"interrupted, {played.left} cells left; go on with: {_again(args, folder)}", INTERRUPTED)
    return int(played.failed > 0)


def _list(suite: Suite, only: Only, args: argparse.Namespace) -> int:
    """`--dry-run`: the cells of one seed, the impossible ones, the estimate; nothing is played."""
    ask_before(suite, only, args.jobs, args.yes)
    todo = plan(suite, only, None)
    if args.json:
        seconds = todo.seconds(args.jobs)
        skipped = [{"grid": s.grid, "labels": s.labels, "reason": s.reason} for s in todo.skipped]
        cells = [{"grid": c.grid, **c.labels, "seed": c.seed, "key": c.key} for c in todo.cells]
        say_json({"cells": cells, "skipped": skipped, "seconds": seconds})
        return 0
    for line in (*describe(todo, args.jobs), *tell_skipped(todo.skipped)):
        say(line)
    say(f"estimate: {hours(todo.seconds(args.jobs))}")
    return 0


def _ask(text: str) -> bool:
    sys.stderr.write(f"{text}. Play them all? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _again(args: argparse.Namespace, folder: Path) -> str:
    return f"securefed bench {shlex.quote(str(args.suite))} --folder {shlex.quote(str(folder))} --resume"
