"""A round of masking beside a round of Flower's SecAgg+: CPU of a client and of the server, bytes, error.

Flower runs in an environment of its own, in turn with ours on the same machine (`peers/flower_secagg.py`
says how to make it); without one only our side is measured. Each case is warmed up and repeated, in turn, and a side's figure is the
smallest of its repeats, with the range of the ratios beside it. Both sides run in one process, without a
network; a client's key pairs for the run (identity, transport) are made before the clock starts. Ours is
timed in the first round of a run and in the fifth, where part of a client's neighbours and all of the
server's clients have been met: identities and transport keys outlive a round, masks and shares do not. k and
threshold are Flower's, so that both do the same masking; SecureFed's table asks for more (`masking_tables`).

    python -m securefed_benchmarks.masking_vs_flower [--flower /tmp/flower/bin/python] [--bits 32 20] [--cases n:k:d:dropped ...] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.layout import vector_digest
from securefed.protect.masking import Masking
from securefed.types import Message, Output, RoundParameters, Update
from securefed_benchmarks.timing import report

CASES = ("100:20:100000:0", "100:20:100000:10", "100:20:1000000:0", "100:20:1000000:10", "21:20:10000000:0")
PEER = Path(__file__).parents[1] / "peers" / "flower_secagg.py"
SCALE = 0.25  # the value range
DROP_AFTER = 2  # messages a dropped client still sends: its keys and its shares


class Clock:
    """CPU seconds of this process, summed over the calls of one side."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, call: Callable[..., Output], *arguments: Any) -> Output:
        begin = time.process_time()
        output = call(*arguments)
        self.seconds += time.process_time() - begin
        return output


def play(n: int, k: int, d: int, dropped: int, bits: int, rounds: int = 1) -> list[dict[str, Any]]:
    """Rounds of one run of masking, every message carried by hand; the facts of each round."""
    entropy = SystemEntropy()
    config = Masking(
        value_range=SCALE, bits=bits, max_weight=1.0, k=k, threshold=(k + 1) * 2 // 3, below_table=True
    )
    opened = config.open("benchmark", range(n), entropy)
    return [play_round(opened, n, d, dropped, round, entropy) for round in range(rounds)]


def play_round(opened: Any, n: int, d: int, dropped: int, round: int, entropy: Entropy) -> dict[str, Any]:
    """One round; the first of a run also agrees on transport keys and checks who signed them."""
    digest, rng = vector_digest(np.zeros(1, np.float32)), np.random.default_rng(round)
    base = RoundParameters("benchmark", round, tuple(range(n)), d, digest, digest, (1.0,) * n)
    server, client_clock, server_clock = opened.server(base), Clock(), Clock()
    clients, sent, bytes_up = {}, dict.fromkeys(range(n), 0), dict.fromkeys(range(n), 0)
    truth = np.zeros(d)
    for i in range(n):
        vector = rng.normal(0, 0.02, d).astype(np.float32)
        truth += vector if i >= dropped else 0
        clients[i] = opened.client(base, i, entropy)
        client_clock(clients[i].submit, Update(i, round, vector))
    inbox = list(server_clock(server.start).send)
    output = Output()
    while output.result is None and output.abort is None:
        answers = _answers(inbox, clients, client_clock, sent, dropped)
        inbox = []
        for message in answers:
            bytes_up[message.sender] += len(message.payload)
            output = server_clock(server.receive, message.sender, message.payload)
            inbox += output.send
        if not inbox and output.result is None and output.abort is None:
            output = server_clock(server.advance)
            inbox += output.send
    if output.result is None:
        raise SystemExit(f"the round was aborted: {output.abort}")
    survivors = n - dropped
    return {
        "client_s": client_clock.seconds / n,
        "server_s": server_clock.seconds,
        "bytes_up_per_parameter": sum(bytes_up[i] for i in range(dropped, n)) / survivors / d,
        "max_error_of_mean": float(np.abs(output.result.total - truth).max()) / survivors,
        "quantization_step": SCALE / server.parameters.levels,
    }


def _answers(
    inbox: Sequence[Message], clients: dict[int, Any], clock: Clock, sent: dict[int, int], dropped: int
) -> list[Message]:
    """What the clients say to these messages; the first `dropped` of them fall silent before their vector."""
    answers: list[Message] = []
    for message in inbox:
        i = message.receiver
        if i < dropped and sent[i] >= DROP_AFTER:
            continue
        said = clock(clients[i].receive, message.payload).send
        sent[i] += len(said)
        answers += said
    return answers


def flower(python: str, n: int, k: int, d: int, dropped: int) -> dict[str, Any]:
    """The same round by Flower, in its own environment."""
    command = [python, str(PEER), f"{n}:{k + 1}:{d}:{dropped}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(found.stdout.strip().splitlines()[-1])
    result: dict[str, Any] = answer["results"][0]
    return result | {"flwr": answer["flwr"]}


def main() -> None:
    """Prints one JSON line a case: both sides and, of each ring, how many times less ours costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flower", help="a Python that has flwr")
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 20])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for text in options.cases:
        n, k, d, dropped = map(int, text.split(":"))
        play(n, k, min(d, 100_000), dropped, 32)  # the warm-up; Flower's is inside its own script
        peers: list[dict[str, Any]] = []
        ours: dict[tuple[int, str], list[dict[str, Any]]] = {
            (bits, which): [] for bits in options.bits for which in ("first round", "fifth round")
        }
        for _ in range(options.repeats):
            if options.flower:
                peers.append(flower(options.flower, n, k, d, dropped))
            for bits in options.bits:
                first, *_, last = play(n, k, d, dropped, bits, rounds=5)
                ours[bits, "first round"].append(first)
                ours[bits, "fifth round"].append(last)
        facts: dict[str, Any] = {"case": {"n": n, "k": k, "d": d, "dropped": dropped}}
        if peers:
            facts["flower"] = least(peers)
        for (bits, which), repeats in ours.items():
            facts[f"{bits} bits, {which}"] = least(repeats) | ratios(peers, repeats)
        report("masking against Flower's SecAgg+", facts)


def least(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts of the last repeat, with the smallest CPU seconds of all."""
    return repeats[-1] | {key: min(r[key] for r in repeats) for key in ("client_s", "server_s")}


def ratios(peers: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many times cheaper, smallest by smallest; the range is over repeats made one after the other."""
    found: dict[str, Any] = {}
    for side in ("client", "server") if peers else ():
        key = f"{side}_s"
        pairs = [p[key] / o[key] for p, o in zip(peers, ours, strict=True)]
        found[f"{side}_times_cheaper"] = min(p[key] for p in peers) / min(o[key] for o in ours)
        found[f"{side}_times_cheaper_range"] = [min(pairs), max(pairs)]
    return found


if __name__ == "__main__":
    main()
