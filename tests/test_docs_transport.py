"""The code of `docs/transport.md` and the commands of `docs/fedsgd.md` run as they stand there."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

import securefed as sf
from securefed.cli import main
from securefed.crypto.entropy import SystemEntropy
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian

DOCS = Path(__file__).parents[1] / "docs"
CLIENTS, SIZE, PATIENCE_S = 5, 7, 120.0


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)


@dataclass
class Event:
    """What a transport of one's own tells the server."""

    client: int
    payload: bytes = b""
    gone: bool = False


def test_the_two_halves_of_your_own_transport_play_a_round(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_code, client_code = blocks("transport.md", "python")
    monkeypatch.chdir(tmp_path)
    server = sf.Identity.generate(SystemEntropy())
    clients = {k: sf.Identity.generate(SystemEntropy()) for k in range(CLIENTS)}
    roster = sf.Roster(server.public, {k: identity.public for k, identity in clients.items()})
    server.save(tmp_path / "identity.json")
    roster.save(tmp_path / "roster.json")
    to_server: Queue[Event] = Queue()
    to_client: defaultdict[int, Queue[bytes]] = defaultdict(Queue)
    for k in clients:
        to_client[k] = Queue()

    def play_client(me: int) -> Any:
        scope: dict[str, Any] = {
            "sf": sf,
            "me": me,
            "size": SIZE,
            "identity": clients[me],
            "roster": roster,
            "next_message": lambda: to_client[me].get(timeout=PATIENCE_S),
            "carry": lambda payloads: [to_server.put(Event(me, payload)) for payload in payloads],
            "train": lambda model, terms: np.full(SIZE, me / 4, np.float32),
        }
        exec(compile(client_code, "docs/transport.md", "exec"), scope)
        return scope["session"]

    scope: dict[str, Any] = {
        "sf": sf,
        "size": SIZE,
        "round": 0,
        "model": np.zeros(SIZE),
        "connected_clients": list(clients),
        "deadline": PATIENCE_S,
        "next_event": lambda deadline: to_server.get(timeout=deadline),
        "carry": lambda messages: [to_client[m.receiver].put(m.payload) for m in messages],
    }
    with ThreadPoolExecutor(CLIENTS) as pool:
        playing = [pool.submit(play_client, k) for k in clients]
        exec(compile(server_code, "docs/transport.md", "exec"), scope)
        sessions = [future.result(timeout=PATIENCE_S) for future in playing]
    assert all(session.closed for session in sessions)
    np.testing.assert_allclose(scope["model"], np.mean([k / 4 for k in clients]), atol=1e-3)
    terms = scope["session"].terms
    spent = epsilon_of([SampledGaussian(terms.noise_multiplier, 1.0, terms.rounds)], terms.delta)
    assert spent <= terms.epsilon, "the page's own terms claim no less than they spend"


@pytest.mark.parametrize(
    "line", [x.split("#")[0].strip() for b in blocks("fedsgd.md", "bash") for x in b.splitlines()]
)
def test_the_commands_of_the_page_on_fedsgd_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(DOCS.parent / "configs")
    program, *words = shlex.split(line)
    assert program == "securefed"
    assert main([*words, "rounds=2", "evaluate.baselines=false"]) == 0
