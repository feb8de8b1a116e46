"""`securefed epsilon`: what a run has spent and what that means, from the site's ledger."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securefed.errors import PrivacyError

if TYPE_CHECKING:
    from securefed.privacy.view import RunView

NAME = "epsilon"
SUMMARY = "print what a run has spent and what that means"
EXAMPLE = "securefed epsilon runs/quickstart-20261121-101500 --delta 1e-6"
DELTA = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run, and how to ask."""
    parser.add_argument("run", help="a result folder, or the run's id")
    parser.add_argument("--delta", type=float, help=f"default: the job's, {DELTA:g} for an id")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="also write this site's whole ledger as JSON, for an auditor",
    )
    parser.add_argument("--client", type=int, metavar="K", help="say also what client K has spent")
    parser.add_argument(
        "--accountant", choices=("pld", "prv", "rdp"), help="default: the job's, pld for an id"
    )


def play(args: argparse.Namespace) -> int:
    """The whole statement, and one client's line where it was asked for."""
    from securefed.commands.output import say, say_json
    from securefed.privacy.ledger import Ledger

    run, delta, jobs = _asked(args)
    if not 0 < delta < 1:
        raise PrivacyError(f"--delta must lie strictly between 0 and 1, got {delta:g}")
    with Ledger.site() as ledger:
        view = ledger.run_view(run)
        _known(ledger, args.run, run)
        if args.export is not None:
            ledger.check()
            ledger.export(args.export)
        accountant = args.accountant or _valid(jobs, view)
        statement = view.statement(delta, accountant)
        one = (
            None if args.client is None else _client(view, args.client, statement.clients, delta, accountant)
        )
    if args.json:
        tree = _tree(statement.to_json())
        say_json(tree if one is None else {**tree, "client": one})
        return 0
    say(statement.text())
    if one is not None:
        say(f"  client {one['client']} alone: epsilon = {one['epsilon']:.4g} at delta = {delta:g}")
    return 0


def _tree(text: str) -> dict[str, Any]:
    import json

    tree: dict[str, Any] = json.loads(text)
    return tree


def _asked(args: argparse.Namespace) -> tuple[str, float, Any]:
    """Run id, delta (the folder's job's where nothing else was said) and the job's accountant, if any."""
    folder = Path(args.run)
    if not folder.is_dir():
        if len(folder.parts) > 1:
            raise PrivacyError(f"no folder {folder}; give a result folder, or the run's id")
        return args.run, DELTA if args.delta is None else args.delta, None

    from securefed.config import load_config
    from securefed.errors import CheckpointError
    from securefed.tracking.files import read_json

    stored = read_json(folder / "run.json")
    if not isinstance(stored, dict) or "run" not in stored:
        raise CheckpointError(f"{folder} is not the folder of a run; give the one that securefed run printed")
    if "delta" in stored:  # a run of `federate` or `make_private`, which has no job file
        if stored.get("unit") == "none":
            raise PrivacyError(f"{folder} was not private: no epsilon holds")
        kept = stored["delta"]
        if isinstance(kept, bool) or not isinstance(kept, int | float):
            raise CheckpointError(f"{folder / 'run.json'} is damaged: its delta is no number; give --delta")
        delta = float(kept) if args.delta is None else args.delta
        return str(stored["run"]), delta, stored.get("accountant")
    privacy = load_config(folder / "config.toml").privacy
    if privacy.unit == "none":
        raise PrivacyError(
            f"{folder} was not private: nothing bounds what its updates tell, so no epsilon holds"
        )
    delta = privacy.delta if args.delta is None else args.delta
    return str(stored["run"]), delta, privacy.accountant


def _valid(accountant: Any, view: RunView) -> Any:
    """The job's accountant; none, so that the tightest that is valid answers, where it does not cover the job's noise."""
    from securefed.privacy.events import covers

    return accountant if accountant and covers(accountant, view.events()) else None


def _known(ledger: Any, name: str, run: str) -> None:
    """Raises PrivacyError unless this site's ledger has the run."""
    try:
        ledger.unit(run)
    except PrivacyError as error:
        if "knows no run" not in str(error):
            raise
        stored = f"; {name}/privacy.json has what was known at its end" if Path(name).is_dir() else ""
        raise PrivacyError(
            f"this site's ledger knows no run {run}: ask where it ran, or set SECUREFED_HOME to its ledger{stored}"
        ) from None


def _client(view: RunView, client: int, clients: int, delta: float, accountant: Any) -> dict[str, Any]:
    """One client's own spending.

    Raises:
        PrivacyError: a client that has spent nothing in this run; zero would read like a guarantee.
    """
    from securefed.types import SERVER

    met_all = view.unit == "client" and 0 <= client < clients and view.events(client=SERVER)
    if client == SERVER or (not view.events(client=client) and not met_all):
        raise PrivacyError(
            f"client {client} has spent nothing in run {view.run}; clients are numbered from 0"
        )
    return {"client": client, "epsilon": view.epsilon(delta, client=client, accountant=accountant)}
