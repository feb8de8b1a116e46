"""A whole cohort of sessions in one process, and a network between them that can lose, repeat and change bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from securefed.crypto.identity import Identity, Roster
from securefed.errors import ProtocolError
from securefed.privacy.policy import Policy
from securefed.protect.masking import Masking
from securefed.sessions import ClientSession, Reply, ServerSession, Terms
from securefed.types import Joinable, Message, Output
from tests.entropy import SeededEntropy

N, D = 6, 5
TERMS = Terms("masking", rounds=10, min_cohort=4, noise_multiplier=1.0, epsilon=3.0, delta=1e-5)


def make_roster(n: int = N) -> tuple[Identity, dict[int, Identity], Roster]:
    entropy = SeededEntropy(11)
    server = Identity.generate(entropy)
    clients = {k: Identity.from_seed(bytes([k + 1]) * 32) for k in range(n)}
    return server, clients, Roster(server.public, {k: i.public for k, i in clients.items()})


@dataclass
class Cast:
    """Server and clients of one run; `lose`, `change` and `train` say what goes wrong and what is sent."""

    protection: Joinable = field(default_factory=Masking)
    terms: Terms = TERMS
    n: int = N
    policies: Mapping[int, Policy] = field(default_factory=dict)
    ledgers: Mapping[int, Any] = field(default_factory=dict)
    lose: Callable[[Message], bool] = lambda message: False
    replies: list[tuple[int, Reply]] = field(default_factory=list)
    secret_weights: bool = False
    lossy: bool = False

    def __post_init__(self) -> None:
        server, identities, roster = make_roster(self.n)
        self.identities, self.roster = identities, roster
        self.server = ServerSession(
            "run",
            D,
            identity=server,
            roster=roster,
            terms=self.terms,
            protection=self.protection,
            secret_weights=self.secret_weights,
            entropy=SeededEntropy(1),
        )
        self.clients = {k: self.client(k) for k in range(self.n)}

    def client(self, k: int, **changes: Any) -> ClientSession:
        given: dict[str, Any] = {
            "identity": self.identities[k],
            "roster": self.roster,
            "protection": self.protection,
            "policy": self.policies.get(k, Policy()),
            "ledger": self.ledgers.get(k),
            "entropy": SeededEntropy(100 + k),
        }
        return ClientSession(k, D, **{**given, **changes})

    def update(self, k: int, round: int) -> Any:
        return np.full(D, (k + 1) / 8 + round, np.float32)

    def play(
        self, round: int, model: Any = None, *, clients: Any = None, gone: Mapping[int, str] | None = None
    ) -> Output:
        """One round to its end; `gone` maps a client to the step in which its connection breaks."""
        model = np.zeros(D, np.float32) if model is None else model
        gone = gone or {}
        broken: set[int] = set()
        queue: deque[Message] = deque()
        output = self.server.begin(round, model, range(self.n) if clients is None else clients)
        for _ in range(2000):
            queue.extend(output.send)
            if output.result is not None or output.abort is not None:
                self.flush(queue, broken)
                return output
            leaving = {k for k, step in gone.items() if step == self.server.step} - broken
            if leaving:
                broken |= leaving
                output = Output()
                for k in sorted(leaving):
                    more = self.server.lost(k)
                    output = Output((*output.send, *more.send), more.result, more.abort)
                continue
            if not queue:
                output = self.server.advance()
                continue
            output = self.deliver(queue.popleft(), queue, broken)
        raise AssertionError("the round did not end")

    def deliver(self, message: Message, queue: deque[Message], broken: set[int]) -> Output:
        k = message.receiver
        if self.lose(message):
            return Output()
        if k == -1:
            return (
                self.server.receive(message.sender, message.payload)
                if message.sender not in broken
                else Output()
            )
        if k in broken:
            return Output()
        try:
            reply = self.clients[k].receive(message.payload)
        except ProtocolError:
            assert self.lossy, "nothing was lost, yet a message does not fit"
            return Output()  # what came before it was lost; a client goes on listening
        self.replies.append((k, reply))
        send = list(reply.send)
        if reply.work is not None:
            weight = float(k + 1) if self.secret_weights else 1.0
            send += self.clients[k].submit(self.update(k, reply.work.round), weight).send
        queue.extend(Message(k, -1, payload) for payload in send)
        return Output()

    def flush(self, queue: deque[Message], broken: set[int]) -> None:
        while queue:
            message = queue.popleft()
            if message.receiver != -1:
                self.deliver(message, queue, broken)

    def expected(self, survivors: Any, round: int) -> Any:
        return np.sum([self.update(k, round) for k in survivors], axis=0)
