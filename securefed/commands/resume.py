"""`securefed resume`: goes on with a run that was stopped, killed or interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path

from securefed.undisturbed import undisturbed

NAME = "resume"
SUMMARY = "go on with a stopped run"
EXAMPLE = "securefed resume runs/quickstart-20261121-101500"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder, how loud."""
    parser.add_argument("folder", type=Path, help="the folder that securefed run printed")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def play(args: argparse.Namespace) -> int:
    """From the newest whole checkpoint to the end."""
    from securefed.commands.playing import interruptible, progress, stage, tell

    with stage(args):
        with undisturbed():
            from securefed.federation import resume

        result = interruptible(
            lambda flag: resume(args.folder, trackers=[*progress(args), flag], stop_flag=flag), args.folder
        )
    return tell(result, args.folder, args)
