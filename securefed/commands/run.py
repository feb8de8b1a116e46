"""`securefed run`: plays a job from its first round."""

from __future__ import annotations

import argparse
from pathlib import Path

from securefed.undisturbed import undisturbed

NAME = "run"
SUMMARY = "play a job from its first round"
EXAMPLE = "securefed run configs/quickstart.toml privacy.epsilon=3 rounds=10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A config, overrides, where to, how loud."""
    parser.add_argument("config", help="a TOML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change a field of the job, e.g. privacy.epsilon=3"
    )
    parser.add_argument(
        "--folder", type=_folder, help="result folder; must not exist (default: runs/NAME-TIME)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("give the folder a name")
    return Path(text)


def play(args: argparse.Namespace) -> int:
    """Reads the job before anything heavy is imported, so that a typo is told at once."""
    from securefed.commands.playing import interruptible, progress, stage, tell
    from securefed.config import load_config

    config = load_config(args.config, args.overrides)
    with stage(args):
        with undisturbed():
            from securefed.federation import new_folder, run
        folder = new_folder(config, args.folder)
        result = interruptible(
            lambda flag: run(config, folder=folder, trackers=[*progress(args), flag], stop_flag=flag), folder
        )
    return tell(result, folder, args)
