"""The server's process: TLS on loopback, one `sf.ServerSession`, deadlines. It learns sums, and it always ends.

    python examples/sockets/server.py FOLDER --rounds 8

FOLDER holds its keys (`keys.py`) and gets `metrics.jsonl`, a sum per round, refusals and ledger heads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
from pathlib import Path

import numpy as np
from frames import read_frame, write_frame
from keys import peer_key, tls
from learn import SIZE, accuracy

import securefed as sf
from securefed.privacy.heads import Witness
from securefed.types import Message, Output


class Hub:
    """Connections by client number, and one queue of what they bring: (client, bytes), or None for gone."""

    def __init__(self, roster: sf.Roster) -> None:
        self._ids = {key: client for client, key in roster.clients.items()}
        self.writers: dict[int, asyncio.StreamWriter] = {}
        self.events: asyncio.Queue[tuple[int, bytes | None]] = asyncio.Queue(
            64
        )  # then TCP makes senders wait

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its certificate to its end."""
        client = self._ids.get(peer_key(writer.get_extra_info("ssl_object")))
        if client is None:
            print("a certificate of our CA, but no key of the roster: turned away", flush=True)
            writer.transport.abort()
            return
        if client in self.writers:
            self.writers[client].transport.abort()  # its newest connection counts
        self.writers[client] = writer
        try:
            await self.events.put((client, b""))
            while True:
                await self.events.put((client, await read_frame(reader)))
        except (OSError, asyncio.IncompleteReadError):
            if self.writers.get(client) is writer:
                del self.writers[client]
                await self.events.put((client, None))
        finally:
            writer.transport.abort()

    def send(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            writer = self.writers.get(message.receiver)
            if writer is not None:
                write_frame(writer, message.payload)


async def gather(hub: Hub, expected: int, deadline_s: float) -> None:
    """Waits until all have come, or the deadline has."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while len(hub.writers) < expected:
                await hub.events.get()


async def play(hub: Hub, session: sf.ServerSession, begun: Output, deadline_s: float, tell: str) -> Output:
    """Carries one round's bytes to its end. The session's steps are few and each has a deadline, so it ends.

    `tell` stands before lines that say whom a step waits for; empty: no such lines.
    """
    loop, told, output = asyncio.get_running_loop(), "", begun
    ends = loop.time() + deadline_s
    while True:
        hub.send(output.send)
        if output.send:
            ends = loop.time() + deadline_s
        if output.result is not None or output.abort is not None:
            return output
        line = f"{tell}: {session.step} waits for {', '.join(map(str, sorted(session.awaited)))}"
        if tell and line != told:
            print(told := line, flush=True)
        try:
            async with asyncio.timeout_at(ends):
                client, payload = await hub.events.get()
        except TimeoutError:
            output = session.advance()
        else:
            output = session.lost(client) if payload is None else session.receive(client, payload)


def note(folder: Path, round: int, session: sf.ServerSession, output: Output, score: float) -> None:
    """One line for people, one in `metrics.jsonl`; refusals with their evidence, and the ledgers' heads."""
    result = output.result
    facts = {
        "round": round,
        "survivors": [] if result is None else list(result.survivors),
        "refused": {} if result is None else dict(result.refused),
        "dropped": {} if result is None else dict(result.dropped),
        "abort": output.abort,
        "accuracy": score,
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    for client, refusal in session.refusals.items():
        (folder / f"refusal-{round:04d}-{client}.bin").write_bytes(refusal.evidence)
        print(f"round {round}: client {client} refused: {refusal.reason}", flush=True)
    (folder / "heads.json").write_text(json.dumps(session.witness.to_json()))
    told = f"sum of {len(result.survivors)} clients" if result is not None else f"aborted, {output.abort}"
    print(f"round {round}: {told}; accuracy {score:.3f}", flush=True)


async def main(args: argparse.Namespace) -> None:
    folder: Path = args.folder
    roster = sf.Roster.load(folder / "roster.json")
    seen = folder / "heads.json"
    session = sf.ServerSession(
        secrets.token_hex(8),
        SIZE,
        identity=sf.Identity.load(folder / "identity.json"),
        roster=roster,
        terms=sf.Terms("masking", args.rounds, args.min_cohort, args.noise, args.epsilon, args.delta),
        protection=sf.Masking(value_range=8.0),
        witness=Witness.from_json(json.loads(seen.read_text())) if seen.exists() else None,
    )
    with np.load(folder / "test.npz") as data:
        images, labels = data["images"], data["labels"]
    model, hub = np.zeros(SIZE, np.float32), Hub(roster)
    # loopback only: a demonstration has no business on a network
    listener = await asyncio.start_server(
        hub.serve, "127.0.0.1", 0, ssl=tls(folder, server=True), ssl_handshake_timeout=args.deadline
    )
    print(f"listening {listener.sockets[0].getsockname()[1]}", flush=True)
    await gather(hub, len(roster.clients), args.deadline)
    for round in range(args.rounds):
        output = await play(
            hub,
            session,
            session.begin(round, model, list(hub.writers)),
            args.deadline,
            f"round {round}" if args.verbose else "",
        )
        if output.result is not None:
            model = (model + output.result.total / output.result.weight).astype(np.float32)
            np.savez(folder / f"round-{round:04d}.npz", total=output.result.total)
        note(folder, round, session, output, accuracy(model, images, labels))
    np.save(folder / "model.npy", model)
    hub.send(session.close(list(hub.writers), model).send)
    listener.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(args.deadline):  # they read the end and hang up
            while hub.writers:
                await hub.events.get()
    for writer in list(hub.writers.values()):
        writer.transport.abort()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--min-cohort", type=int, default=4, help="no round begins with fewer clients")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds that a step may last")
    parser.add_argument("--noise", type=float, default=3.0, help="noise multiplier of each client's step")
    parser.add_argument("--epsilon", type=float, default=4.0)
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--verbose", action="store_true", help="say whom each step waits for")
    asyncio.run(main(parser.parse_args()))
