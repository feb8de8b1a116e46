"""`securefed doctor`: what this machine has and lacks, each with the command that mends it."""

from __future__ import annotations

import argparse

NAME = "doctor"
SUMMARY = "check this machine: versions, models, data, ledger, disk, memory"
EXAMPLE = "securefed doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what every command takes."""


def play(args: argparse.Namespace) -> int:
    """One line a finding; exit code 1 if something needed is missing."""
    from securefed.commands.output import say, say_json
    from securefed.commands.quiet import quiet_libraries, stdout_for
    from securefed.doctor import examine

    with quiet_libraries(), stdout_for(args.json):
        findings = examine()
    broken = [f for f in findings if f.state == "missing"]
    if args.json:
        say_json({"ok": not broken, "findings": [f.to_tree() for f in findings]})
        return int(bool(broken))
    for found in findings:
        say(f"{found.state:<8} {found.what:<20} {found.found}")
        if found.mend:
            say(f"{'':<8} {'':<20} -> {found.mend}")
    say("all that is needed is here" if not broken else f"missing: {', '.join(f.what for f in broken)}")
    return int(bool(broken))
