"""`securefed data list | get | states`: the named data sets, bringing one into the cache, and what models said of records."""

from __future__ import annotations

import argparse

from securefed.errors import DataError

NAME = "data"
SUMMARY = "list the named data sets, fetch one, or see the frozen states kept on disk"
EXAMPLE = "securefed data get sentiment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with which data set."""
    parser.add_argument("action", choices=("list", "get", "states"))
    parser.add_argument("name", nargs="?", help="the data set to get")
    parser.add_argument("--force", action="store_true", help="fetch it again, whatever is cached")
    parser.add_argument("--clear", action="store_true", help="with states: delete them and their key")


def play(args: argparse.Namespace) -> int:
    """One of the three actions."""
    if args.action != "get" and args.name is not None:
        raise DataError(
            f"securefed data {args.action} takes no name; did you mean securefed data get {args.name}?"
        )
    if args.action == "states":
        return _states(args)
    if args.clear:
        raise DataError("--clear deletes frozen states; did you mean securefed data states --clear?")
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


def _states(args: argparse.Namespace) -> int:
    """What lies in the folder of frozen states, after clearing it where that was asked."""
    from securefed.commands.output import say, say_json
    from securefed.paths import states_dir, states_key_path
    from securefed.training.state_folder import drop, is_sealed, stored_files

    folder = states_dir()
    dropped = 0
    if args.clear:
        dropped = drop(folder)
        states_key_path().unlink(
            missing_ok=True
        )  # a copy of an encrypted file elsewhere is noise from now on
    files = stored_files(folder)
    sealed, size = sum(map(is_sealed, files)), sum(path.stat().st_size for path in files)
    if args.json:
        say_json(
            {
                "folder": str(folder),
                "files": len(files),
                "encrypted": sealed,
                "bytes": size,
                "dropped": dropped,
            }
        )
        return 0
    if args.clear:
        say(f"{dropped} files deleted" + (f", {len(files)} are in use and stay" if files else ""))
    else:
        say(f"{len(files)} files of frozen states, {sealed} of them encrypted, {size / 2**20:.1f} MiB")
        say(f"in {folder}; securefed data states --clear deletes them")
    return 0
