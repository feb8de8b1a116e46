"""`securefed data list | get`: the named data sets, and bringing one into the cache."""

from __future__ import annotations

import argparse

from securefed.errors import DataError

NAME = "data"
SUMMARY = "list the named data sets, or fetch one"
EXAMPLE = "securefed data get sentiment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with which data set."""
    parser.add_argument("action", choices=("list", "get"))
    parser.add_argument("name", nargs="?", help="the data set to get")
    parser.add_argument("--force", action="store_true", help="fetch it again, whatever is cached")


def play(args: argparse.Namespace) -> int:
    """One of the two actions."""
    if args.action == "list" and args.name is not None:
        raise DataError(f"securefed data list takes no name; did you mean securefed data get {args.name}?")
    return _get(args) if args.action == "get" else _list(args)


def _get(args: argparse.Namespace) -> int:
    from securefed.commands.output import say, say_json
    from securefed.commands.quiet import own_log, stdout_for
    from securefed.data.sources import SOURCES, fetch

    if args.name is None:
        raise DataError(f"securefed data get needs a name: {', '.join(SOURCES)}")
    with own_log(), stdout_for(args.json):
        folder = fetch(args.name, force=args.force)
    if args.json:
        say_json({"name": args.name, "folder": str(folder)})
    else:
        say(f"{args.name} is ready in {folder}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from securefed.commands.output import say, say_json
    from securefed.data.sources import SOURCES

    if args.json:
        keys = ("name", "description", "licence", "size_mib", "command", "cached")
        say_json([{key: getattr(source, key) for key in keys} for source in SOURCES.values()])
        return 0
    for source in SOURCES.values():
        state = "ready" if source.cached else f"{source.size}; securefed data get {source.name}"
        say(f"{source.name:<14} {source.description}")
        say(f"{'':<14} {source.licence}; {state}")
    return 0
