"""A client's process: its own folder, ledger and policy; one `sf.ClientSession`; nothing leaves but masked sums.

    python examples/sockets/client.py FOLDER PORT

`--hold R` trains for ever in round R, so that somebody can kill it in the middle and see the others go on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from frames import read_frame, write_frame
from keys import peer_key, tls
from learn import SIZE, Learner

import securefed as sf
from securefed.privacy.policy import load_policy
from securefed.sessions import Reply, Work


def train(learner: Learner, work: Work, folder: Path, hold: int) -> Any:
    """The update of one round; kept in this client's own folder too, for whoever checks the sum."""
    if work.round == hold:
        threading.Event().wait()
    update = learner.update(work.model, work.round, work.terms)
    np.save(folder / f"sent-{work.round:04d}.npy", update)
    return update


def tell(reply: Reply) -> None:
    """What a person at this site should know."""
    if reply.refused is not None:
        print(f"refused: {reply.refused.reason}", flush=True)
    if reply.abort is not None:
        print(f"left the round: {reply.abort}", flush=True)
    for client, why in (reply.work.suspects if reply.work else {}).items():
        print(f"suspect: client {client}: {why}", flush=True)


async def main(args: argparse.Namespace) -> None:
    folder: Path = args.folder
    os.environ["SECUREFED_HOME"] = str(folder)  # this client is a site of its own
    identity, roster = sf.Identity.load(folder / "identity.json"), sf.Roster.load(folder / "roster.json")
    me = next((k for k, key in roster.clients.items() if key == identity.public), None)
    if me is None:
        me, roster = 0, sf.Roster(roster.server, {0: identity.public})  # tries all the same
    ledger = sf.Ledger.site()
    learner = Learner(folder, ledger, f"sockets {roster.digest.hex()[:16]}")
    session = sf.ClientSession(
        me,
        SIZE,
        identity=identity,
        roster=roster,
        protection=sf.Masking(value_range=8.0),
        policy=load_policy(folder / "policy.toml"),
        ledger=ledger,
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", args.port, ssl=tls(folder, server=False))
    if peer_key(writer.get_extra_info("ssl_object")) != roster.server:
        raise SystemExit("the server's certificate is not over the roster's key")
    pending: asyncio.Task[None] | None = None
    while not session.closed:
        try:
            reply = session.receive(await read_frame(reader))
        except sf.ProtocolError as error:
            print(f"ignored: {error}", flush=True)
            continue
        tell(reply)
        for payload in reply.send:
            write_frame(writer, payload)
        if reply.work is not None:
            pending = asyncio.create_task(work_on(session, learner, reply.work, folder, args.hold, writer))
        await writer.drain()
    if pending is not None:
        await pending
    writer.close()
    print(f"done: epsilon {ledger.epsilon(1e-3):.2f} at delta 0.001 spent here", flush=True)


async def work_on(
    session: sf.ClientSession,
    learner: Learner,
    work: Work,
    folder: Path,
    hold: int,
    writer: asyncio.StreamWriter,
) -> None:
    """Trains beside the loop, so that the protocol's messages are answered meanwhile."""
    try:
        update = await asyncio.to_thread(train, learner, work, folder, hold)
    except (
        sf.BudgetExceeded
    ) as error:  # the terms claimed less than they spend; the round goes on without this client
        print(f"spent: {error}", flush=True)
        return
    try:
        reply = session.submit(update)
    except sf.ProtocolError as error:  # too late: the round has ended without this client
        print(f"late: {error}", flush=True)
        return
    for payload in reply.send:
        write_frame(writer, payload)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--hold", type=int, default=-1, metavar="R", help="train for ever in round R")
    try:
        asyncio.run(main(parser.parse_args()))
    except (OSError, asyncio.IncompleteReadError) as error:
        raise SystemExit(f"connection to the server lost: {type(error).__name__}") from None
