"""The command line: `securefed run | resume | report | bench | epsilon | audit | data | doctor`.

A user's mistake is one line on standard error and exit code 2; an interrupted run exits with 130. Heavy
libraries are imported when a command is played, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from securefed.commands import audit, bench, data, doctor, epsilon, report, resume, run
from securefed.commands.output import BAD_INPUT, INTERRUPTED, fail
from securefed.errors import SecureFedError

COMMANDS: dict[str, Any] = {
    module.NAME: module for module in (run, resume, report, bench, epsilon, audit, data, doctor)
}
OPTIONS = (
    "--help",
    "--version",
    "--json",
    "--debug",
    "--folder",
    "--quiet",
    "--delta",
    "--client",
    "--accountant",
    "--force",
    "--jobs",
    "--seeds",
    "--only",
    "--resume",
    "--dry-run",
    "--yes",
    *audit.OPTIONS,
)


class Parser(argparse.ArgumentParser):
    """argparse, with the house's one-line errors and the nearest word for a typo."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Exits with 2 and one line."""
        if message.endswith("required: COMMAND"):
            message = f"give a command: {', '.join(COMMANDS)}; securefed --help says more"
        if message.endswith("required: config, key=value"):
            message = f"give a job, e.g. {run.EXAMPLE}"
        choice = re.search(r"argument (\w+): invalid choice: '([^']*)'", message)
        if choice is not None:
            kind, word = choice.groups()
            known = (
                tuple(COMMANDS)
                if kind == "COMMAND"
                else tuple(re.findall(r"\w+", message.partition("choose from")[2]))
            )
            message = f"no {kind.lower()} {word!r}; {_nearest(word, known)}"
        sys.exit(fail(message, BAD_INPUT))


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def build_parser() -> Parser:
    """Every command with its arguments and an example."""
    from securefed import __version__

    parser = Parser(
        prog="securefed",
        description="Private and robust federated fine-tuning of foundation models.",
        epilog=f"example: {run.EXAMPLE}\nsecurefed COMMAND --help says more.",
    )
    parser.add_argument("--version", action="version", version=f"securefed {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, module in COMMANDS.items():
        summary = f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}."
        command = commands.add_parser(
            name, help=module.SUMMARY, description=summary, epilog=f"example: {module.EXAMPLE}"
        )
        module.add_arguments(command)
        command.add_argument(
            "--json", action="store_true", help="print JSON on standard output, nothing else"
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may also stand behind options, where argparse alone would refuse them."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):
        args.overrides = [*args.overrides, *(word for word in rest if _is_override(word))]
        rest = [word for word in rest if not _is_override(word)]
    if rest:
        near = difflib.get_close_matches(rest[0], OPTIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"see securefed {args.command} --help"
        parser.error(f"{args.command} does not take {rest[0]!r}; {hint}")
    return args


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def main(argv: Sequence[str] | None = None) -> int:
    """Plays one command and returns its exit code."""
    _replace_closed_streams()
    args = parse(argv)
    try:
        code: int = COMMANDS[args.command].play(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except KeyboardInterrupt:
        return fail("stopped", INTERRUPTED)
    except (SecureFedError, OSError) as error:
        if args.debug:
            raise
        return fail(*_line(error))


def _line(error: SecureFedError | OSError) -> tuple[str, int]:
    """What to say and the exit code; a full disk and a folder without permission are no bugs."""
    if isinstance(error, SecureFedError):
        return str(error), error.exit_code
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}", BAD_INPUT


def _replace_closed_streams() -> None:
    """A shell can start us with closed streams (`>&-`), which Python then has as None."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # lives as long as we do


def _silence_stdout() -> None:
    """Whoever read our output has left (`securefed ... | head`); the interpreter's last flush must not fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return  # a stream without a file has nothing to flush


if __name__ == "__main__":
    sys.exit(main())
