"""`securefed report`: builds the report anew from a result folder's files, of a run or of benches."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from securefed.errors import CheckpointError

NAME = "report"
SUMMARY = "build the report anew from a result folder, also of a run or bench that has not ended"
EXAMPLE = "securefed report runs/quickstart-20261121-101500"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder, or those of benches."""
    parser.add_argument(
        "folder",
        type=Path,
        nargs="+",
        help="the folder that securefed run or securefed bench printed; several benches make one page, in the first",
    )


def play(args: argparse.Namespace) -> int:
    """Writes the page and the pictures; prints the page's path."""
    from securefed.commands.output import say, say_json
    from securefed.tracking.report import write_report

    bench = importlib.import_module("securefed_benchmarks.bench.report")
    if any(bench.is_bench(folder) for folder in args.folder):
        path = bench.write_bench_report(args.folder).page
    elif len(args.folder) > 1:
        raise CheckpointError("several folders make one report of benches only; give one run's folder")
    else:
        path = write_report(args.folder[0])
    if args.json:
        say_json({"report": str(path)})
    else:
        say(str(path))
    return 0
