"""`securefed bench`: plays a suite of jobs, a grid over attacks, defences, privacy and more, and judges it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from securefed.errors import SecureFedError

NAME = "bench"
SUMMARY = "play a suite of jobs and report it with intervals"
EXAMPLE = "securefed bench quick --jobs 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A suite, which part of it, how many at a time, where to."""
    parser.add_argument("suite", help="a suite.toml, its folder, or the name of one that ships, e.g. quick")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (default: 1)")
    parser.add_argument(
        "--seeds", metavar="LIST", help="in place of the suite's: 5 (the first five), 0-4 or 0,3,7"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="axis=label",
        help="a part of the grid, e.g. defence=median 'attack=sign*'",
    )
    parser.add_argument(
        "--claims", action="store_true", help="only the cells that the suite's claims speak of"
    )
    parser.add_argument("--folder", type=Path, help="where results are kept (default: runs/bench-NAME)")
    parser.add_argument(
        "--resume", action="store_true", help="go on in a folder; what is done is not played again"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the cells and the estimate, play nothing"
    )
    parser.add_argument("--yes", action="store_true", help="play also what takes hours")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def play(args: argparse.Namespace) -> int:
    """Hands over to the outer package, which is found by name as the registry finds components."""
    try:
        command = importlib.import_module("securefed_benchmarks.bench.command")
    except ModuleNotFoundError as error:
        raise SecureFedError(
            f"the bench is not installed ({error.name} is missing); reinstall securefed"
        ) from None
    code: int = command.play(args)
    return code
