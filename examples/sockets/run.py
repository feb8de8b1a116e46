"""A server and six clients as processes of their own, over mutual TLS on loopback, with masking and DP.

    python examples/sockets/run.py                # eight rounds
    python examples/sockets/run.py --kill 3       # client 3 is killed in the middle of round 1

Makes keys and certificates on the spot, in a folder that it names. docs/transport.md says what each part does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from keys import make_folders
from learn import deal_digits

HERE = Path(__file__).parent


def start(program: str, *args: str) -> subprocess.Popen[str]:
    """One party's process; its lines come through a pipe."""
    return subprocess.Popen(
        [sys.executable, str(HERE / program), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def prepare(root: Path, clients: int) -> None:
    """Folders with keys, certificates, roster and data."""
    make_folders(root, clients)
    deal_digits(root, clients)


def start_server(root: Path, args: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    """The server and its port, once it listens."""
    server = start("server.py", str(root / "server"), *args)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.startswith("listening "):
        raise SystemExit(line + server.stdout.read())
    return server, line.split()[1]


def main(root: Path, clients: int = 6, kill: int | None = None, server_args: Sequence[str] = ()) -> int:
    """Plays a whole run and gives the server's exit status; `kill` dies in the middle of round 1."""
    prepare(root, clients)
    server, port = start_server(root, ["--verbose", *server_args])
    parties = {
        k: start("client.py", str(root / f"client-{k}"), port, *(["--hold", "1"] if k == kill else []))
        for k in range(clients)
    }
    assert server.stdout is not None
    for line in server.stdout:
        if "waits for" not in line:
            print(line, end="", flush=True)
        elif kill is not None and line.strip() == f"round 1: mask waits for {kill}":
            parties[kill].kill()
            print(f"        client {kill} killed while the others wait for its masked vector", flush=True)
    for client, party in parties.items():
        output, _ = party.communicate()
        print(f"client {client}: {output.strip() or 'nothing more to say'}")
    return server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--kill", type=int, metavar="K", help="kill client K in the middle of round 1")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    where = Path(tempfile.mkdtemp(prefix="securefed-sockets-"))
    print(f"all in {where}")
    raise SystemExit(main(where, given.clients, given.kill, ["--rounds", str(given.rounds)]))
