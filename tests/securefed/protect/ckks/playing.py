"""Rounds of CKKS in the hands of a test: every message can be seen, changed or held back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from securefed.crypto.entropy import SystemEntropy
from securefed.layout import Layout, vector_digest
from securefed.protect.ckks import CKKS, KEY_HOLDER, CKKSClient, CKKSKeyHolder, CKKSServer, OpenCKKS
from securefed.types import SERVER, Collected, Message, Output, RoundParameters, Update

D = 10
Change = Callable[[Message], Iterable[Message]]


def parameters(n: int = 4, round: int = 0, run: str = "run", d: int = D, **more: object) -> RoundParameters:
    layout = Layout.of_shapes({"w": (d,)})
    base = RoundParameters(
        run,
        round,
        tuple(range(n)),
        d,
        layout.digest,
        vector_digest(np.zeros(d, np.float32)),
        weights=(1.0,) * n,
    )
    return replace(base, **more)  # type: ignore[arg-type]  # a test names its own fields


def updates(n: int = 4, round: int = 0, d: int = D, seed: int = 0) -> dict[int, Update]:
    rng = np.random.default_rng(seed)
    return {k: Update(k, round, rng.uniform(-1, 1, d).astype(np.float32)) for k in range(n)}


def opened(n: int = 4, run: str = "run", **options: object) -> OpenCKKS:
    return CKKS(**{"value_range": 1.0, **options}).open(run, range(n), SystemEntropy())  # type: ignore[arg-type]  # fields by name


@dataclass
class Played:
    """A round: its sessions, every message in the order in which it was sent, and its end."""

    protection: OpenCKKS
    base: RoundParameters
    change: Change = lambda message: (message,)
    sent: list[Message] = field(default_factory=list)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        entropy = SystemEntropy()
        self.server: CKKSServer = self.protection.server(self.base)
        self.holder: CKKSKeyHolder = self.protection.helpers(self.base, entropy)[KEY_HOLDER]
        self.clients: dict[int, CKKSClient] = {
            k: self.protection.client(self.base, k, entropy) for k in self.base.clients
        }
        self._queue: deque[Message] = deque()

    def play(self, given: dict[int, Update]) -> Played:
        self._post(self.server.start())
        for k in given:
            self._post(self.clients[k].start())
            self._post(self.clients[k].submit(given[k]))
        for _ in range(4):
            while self._queue and not self.ended:
                self._carry(self._queue.popleft())
            if self.ended:
                break
            self._post(self.server.advance())
        return self

    def _carry(self, message: Message) -> None:
        if message.receiver == SERVER:
            self._post(self.server.receive(message.sender, message.payload))
        elif message.receiver == KEY_HOLDER:
            self._queue.extend(self._changed(self.holder.receive(message.sender, message.payload)))
        elif message.receiver in self.clients:
            self._queue.extend(self._changed(self.clients[message.receiver].receive(message.payload)))

    def _post(self, output: Output) -> None:
        self._queue.extend(self._changed(output))
        if output.result is not None or output.abort is not None:
            self.output = output

    def _changed(self, output: Output) -> list[Message]:
        self.sent += output.send
        return [changed for message in output.send for changed in self.change(message)]

    @property
    def ended(self) -> bool:
        return self.output.result is not None or self.output.abort is not None

    @property
    def result(self) -> Collected:
        assert self.output.result is not None, self.output.abort
        return self.output.result

    @property
    def abort(self) -> str:
        assert self.output.abort is not None
        return self.output.abort


def true_sum(given: dict[int, Update], clients: Iterable[int]) -> np.ndarray:
    return np.sum([given[k].weight * given[k].vector.astype(np.float64) for k in clients], axis=0)
