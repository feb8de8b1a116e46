"""What `run` and `resume` share: the stage, Ctrl-C, and what is told at the end."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securefed.commands.interrupt import StopOnInterrupt
from securefed.commands.output import INTERRUPTED, fail, say, say_json
from securefed.commands.quiet import own_log, quiet_libraries, stdout_for
from securefed.errors import SecureFedError

if TYPE_CHECKING:
    from securefed.federation import Result
    from securefed.tracking.tracker import Tracker


@contextmanager
def stage(args: argparse.Namespace) -> Iterator[None]:
    """Our log on standard error, the libraries quiet, standard output clean where it is for machines."""
    with own_log(args.quiet), quiet_libraries(), stdout_for(args.json):
        yield


def progress(args: argparse.Namespace) -> Sequence[Tracker]:
    """The display for people, unless it is not wanted."""
    from securefed.tracking.progress import ProgressTracker

    return [] if args.quiet else [ProgressTracker(sys.stderr if args.json else sys.stdout)]


def interruptible(begin: Callable[[StopOnInterrupt], Result], folder: Path) -> Result | None:
    """The result; None if Ctrl-C ended the run at once.

    Raises:
        SecureFedError: a full disk or lost permissions, with the way to go on.
    """
    try:
        with StopOnInterrupt() as flag:
            return begin(flag)
    except KeyboardInterrupt:
        return None
    except BrokenPipeError:
        raise
    except OSError as error:
        if not (folder / "run.json").exists():
            raise
        where = error.filename or folder
        raise SecureFedError(
            f"{error.strerror or error}: {where}; mend it and go on with: {_resume(folder)}"
        ) from error


def _resume(folder: Path) -> str:
    return f"securefed resume {shlex.quote(str(folder))}"


def tell(result: Result | None, folder: Path, args: argparse.Namespace) -> int:
    """Says what was reached and how to go on; returns the exit code."""
    go_on = _resume(folder)
    if result is None:
        begun = (folder / "run.json").exists()
        hint = f"go on with: {go_on}" if begun else "nothing had begun"
        return fail(f"stopped at once; {hint}", INTERRUPTED)
    if args.json:
        say_json(_facts(result))
    else:
        _tell_people(result, "" if args.quiet else "\n")
    if result.stopped != "interrupted":
        return 0
    return fail(f"interrupted after round {result.rounds}; go on with: {go_on}", INTERRUPTED)


def _summary(result: Result) -> dict[str, Any]:
    from securefed.tracking.files import read_json

    return read_json(result.folder / "summary.json") or {}


def _facts(result: Result) -> dict[str, Any]:
    summary = _summary(result)
    statement = summary.get("statement") or {}
    return {
        "folder": str(result.folder),
        "metrics": dict(result.metrics),
        **{key: statement.get(key) for key in ("epsilon", "delta", "unit")},
        "stopped": result.stopped,
        "rounds": result.rounds,
        "seconds": summary.get("seconds"),
        "mib": {
            "up": summary.get("mib_up"),
            "down": summary.get("mib_down"),
            "peak": summary.get("peak_mib"),
        },
    }


def _tell_people(result: Result, gap: str) -> None:
    text = _summary(result).get("statement_text")
    if text:
        say(f"{gap}{text}")
        gap = "\n"
    report = result.folder / "report.html"
    if report.exists():
        say(f"{gap}report: {report}")
    else:  # tracking.report = false
        say(f"{gap}results: {result.folder}; the page: securefed report {shlex.quote(str(result.folder))}")
