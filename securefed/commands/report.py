"""`securefed report`: builds report.html anew from a result folder's files."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
SUMMARY = "build report.html anew from a result folder, also of a run that has not ended"
EXAMPLE = "securefed report runs/quickstart-20261121-101500"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder."""
    parser.add_argument("folder", type=Path, help="the folder that securefed run printed")


def play(args: argparse.Namespace) -> int:
    """Writes the page and the pictures; prints the page's path."""
    from securefed.commands.output import say, say_json
    from securefed.tracking.report import write_report

    path = write_report(args.folder)
    if args.json:
        say_json({"report": str(path)})
    else:
        say(str(path))
    return 0
