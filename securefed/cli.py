"""The command line: `securefed run | resume | report | epsilon | data | doctor`.

A user's mistake is one line on standard error and exit code 2; an interrupted run exits with 130. Heavy
libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from securefed.errors import CheckpointError, SecureFedError

COMMANDS = ("run", "resume", "report", "epsilon", "data", "doctor")
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse, with the house's one-line errors and the nearest command for a typo."""

    def error(self, message: str) -> NoReturn:
        for word in sys.argv[1:2]:
            near = difflib.get_close_matches(word, COMMANDS, 1)
            if near and word not in COMMANDS:
                message = f"no command {word!r}; did you mean {near[0]}?"
        self.exit(2, f"securefed: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments and an example."""
    from securefed import __version__

    parser = Parser(
        prog="securefed",
        description="Private and robust federated fine-tuning of foundation models.",
        epilog="example: securefed run configs/quickstart.toml privacy.epsilon=3\nsecurefed COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"securefed {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="print JSON on standard output, nothing else")
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return added

    run = command(
        "run",
        "play a job from its first round",
        "securefed run configs/quickstart.toml privacy.epsilon=3 rounds=10",
    )
    run.add_argument("config", help="a TOML file")
    run.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change a field of the job, e.g. privacy.epsilon=3"
    )
    run.add_argument("--folder", type=Path, help="result folder; must not exist (default: runs/NAME-TIME)")
    run.add_argument("--quiet", action="store_true", help="no progress")
    resume = command("resume", "go on with a stopped run", "securefed resume runs/quickstart-20261121-101500")
    resume.add_argument("folder", type=Path)
    resume.add_argument("--quiet", action="store_true", help="no progress")
    report = command(
        "report",
        "build report.html anew from a result folder",
        "securefed report runs/quickstart-20261121-101500",
    )
    report.add_argument("folder", type=Path)
    epsilon = command(
        "epsilon",
        "print what a run has spent and what that means",
        "securefed epsilon runs/quickstart-20261121-101500 --delta 1e-6",
    )
    epsilon.add_argument("run", help="a result folder, or the run's id")
    epsilon.add_argument("--delta", type=float, help="default: the job's")
    epsilon.add_argument("--client", type=int, help="one client instead of the worst")
    epsilon.add_argument("--accountant", choices=("pld", "prv", "rdp"), help="default: the one of the record")
    data = command("data", "list the named data sets, or fetch one", "securefed data get sentiment")
    data.add_argument("action", choices=("list", "get"))
    data.add_argument("name", nargs="?", help="the data set to get")
    data.add_argument("--force", action="store_true", help="fetch it again")
    command("doctor", "check this machine: versions, models, data, ledger, disk", "securefed doctor")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Plays one command and returns its exit code."""
    args = build_parser().parse_args(argv)
    play = {
        "run": _run,
        "resume": _resume,
        "report": _report,
        "epsilon": _epsilon,
        "data": _data,
        "doctor": _doctor,
    }
    try:
        return play[args.command](args)
    except SecureFedError as error:
        if args.debug:
            raise
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that the interpreter's flush is silent
        return 0
    except OSError as error:
        if args.debug:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", 2)
    except KeyboardInterrupt:
        return _fail("stopped at once; what was journaled can be resumed", INTERRUPTED)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"securefed: {line}", file=sys.stderr)
    return code


def _print_json(tree: Any) -> None:
    print(json.dumps(tree, indent=1, default=str))


class StopOnInterrupt:
    """The first Ctrl-C asks for a stop after the round; the second one stops at once."""

    def __init__(self) -> None:
        self._set = False
        self._old: Any = None

    def is_set(self) -> bool:
        return self._set

    def __enter__(self) -> StopOnInterrupt:
        self._old = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._old)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._set:
            raise KeyboardInterrupt
        self._set = True
        print("securefed: stopping after this round; Ctrl-C again stops at once", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------- run, resume


def _run(args: argparse.Namespace) -> int:
    from securefed.config import load_config

    config = load_config(args.config, args.overrides)  # before torch is imported: a typo is told at once
    from securefed.federation import run

    with StopOnInterrupt() as flag:
        result = run(config, folder=args.folder, trackers=_progress(args), stop_flag=flag)
    return _tell(result, args)


def _resume(args: argparse.Namespace) -> int:
    from securefed.federation import resume

    with StopOnInterrupt() as flag:
        result = resume(args.folder, trackers=_progress(args), stop_flag=flag)
    return _tell(result, args)


def _progress(args: argparse.Namespace) -> list[Any]:
    import logging

    from securefed.tracking.progress import ProgressTracker

    level = logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("securefed").setLevel(level)

    return [] if args.quiet else [ProgressTracker(sys.stderr if args.json else sys.stdout)]


def _tell(result: Any, args: argparse.Namespace) -> int:
    summary = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))
    statement = summary["statement"] or {}
    if args.json:
        facts = {key: statement.get(key) for key in ("epsilon", "delta", "unit")}
        facts |= {
            "folder": str(result.folder),
            "metrics": dict(result.metrics),
            "stopped": result.stopped,
            "rounds": result.rounds,
        }
        _print_json({**facts, **{k: summary[k] for k in ("seconds", "mib_up", "mib_down", "peak_mib")}})
    else:
        if summary["statement_text"]:
            print(summary["statement_text"])
        print(f"report: {result.folder / 'report.html'}")
        if result.stopped == "interrupted":
            print(f"go on with: securefed resume {result.folder}")
    return INTERRUPTED if result.stopped == "interrupted" else 0


# -------------------------------------------------------------------------------------- report, epsilon


def _report(args: argparse.Namespace) -> int:
    from securefed.tracking.report import write_report

    path = write_report(args.folder)
    if args.json:
        _print_json({"report": str(path)})
    else:
        print(path)
    return 0


def _epsilon(args: argparse.Namespace) -> int:
    from securefed.privacy.ledger import Ledger

    run, delta = args.run, args.delta
    if Path(args.run).is_dir():
        run, job_delta = _run_of(Path(args.run))
        delta = job_delta if delta is None else delta
    delta = 1e-5 if delta is None else delta
    if not 0 < delta < 1:
        raise CheckpointError(f"--delta must be in (0, 1), found {delta:g}")
    with Ledger.site() as ledger:
        view = ledger.run_view(run)
        if args.client is not None:
            spent = view.epsilon(delta, client=args.client, accountant=args.accountant)
            facts = {
                "run": run,
                "client": args.client,
                "epsilon": spent if math.isfinite(spent) else "infinity",
                "delta": delta,
                "unit": view.unit,
            }
            if args.json:
                _print_json(facts)
            else:
                print(
                    f"client {args.client} of run {run}: epsilon = {spent:.4g} at delta = {delta:g} ({view.unit} level)"
                )
            return 0
        statement = view.statement(delta, args.accountant)
    print(statement.to_json() if args.json else statement.text())
    return 0


def _run_of(folder: Path) -> tuple[str, float]:
    """The run id and the job's delta of a result folder."""
    from securefed.config import load_config

    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder} is not the folder of a run; give the folder that securefed run printed"
        ) from None
    config = load_config(folder / "config.toml")
    if not config.private:
        raise CheckpointError(
            f"run {run} was not private: it has no epsilon (nothing bounds what its updates tell)"
        )
    return run, config.privacy.delta


# ----------------------------------------------------------------------------------------- data, doctor


def _data(args: argparse.Namespace) -> int:
    import logging

    from securefed.data.sources import SOURCES, fetch

    if args.action == "get":
        if args.name is None:
            raise CheckpointError(f"securefed data get needs a name: {', '.join(SOURCES)}")
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        path = fetch(args.name, force=args.force)
        if args.json:
            _print_json({"name": args.name, "folder": str(path)})
        else:
            print(f"{args.name} is ready in {path}")
        return 0
    rows = [
        {
            "name": s.name,
            "cached": s.cached,
            "size": s.size,
            "licence": s.licence,
            "description": s.description,
        }
        for s in SOURCES.values()
    ]
    if args.json:
        _print_json(rows)
    for row in rows if not args.json else ():
        state = "ready" if row["cached"] else f"{row['size']}, securefed data get {row['name']}"
        print(f"{row['name']:<14} {row['description']}\n{'':<14} {row['licence']}; {state}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from securefed.doctor import examine

    findings = examine()
    if args.json:
        _print_json([f.__dict__ for f in findings])
    for found in findings if not args.json else ():
        mark = "ok     " if found.ok else "MISSING" if found.needed else "absent "
        print(f"{mark} {found.what}: {found.state}" + ("" if found.ok else f"\n        {found.mend}"))
    return int(any(f.needed and not f.ok for f in findings))


if __name__ == "__main__":
    sys.exit(main())
