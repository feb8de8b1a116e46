"""The exchange drives any sans-IO protocol to its end, and no further."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.engine.exchange import exchange
from securefed.errors import ProtocolError
from securefed.types import SERVER, Collected, Message, Output, Reveals, RoundParameters, Update

PARAMETERS = RoundParameters("r", 0, (0, 1, 2), 2, "0" * 64, "0" * 64)


def updates(*clients: int) -> dict[int, Update]:
    return {k: Update(k, 0, np.full(2, k + 1.0, np.float32)) for k in clients}


@dataclass
class TwoStepClient:
    """Says hello, waits for the server's go, then sends its vector."""

    client: int
    vector: np.ndarray = field(default_factory=lambda: np.zeros(2, np.float32))

    def start(self) -> Output:
        return Output(send=(Message(self.client, SERVER, b"hello"),))

    def submit(self, update: Update) -> Output:
        self.vector = update.vector
        return Output()

    def receive(self, payload: bytes) -> Output:
        if payload == b"stop":
            return Output(abort="the server lied")
        return Output(send=(Message(self.client, SERVER, self.vector.tobytes()),))


@dataclass
class TwoStepServer:
    go: bytes
    heard: list[int] = field(default_factory=list)
    total: np.ndarray = field(default_factory=lambda: np.zeros(2))
    step: int = 0

    def start(self) -> Output:
        return Output()

    def receive(self, sender: int, payload: bytes) -> Output:
        if self.step == 0:
            self.heard.append(sender)
        else:
            self.total += np.frombuffer(payload, np.float32)
        return Output()

    def advance(self) -> Output:
        self.step += 1
        if self.step == 1:
            return Output(send=tuple(Message(SERVER, k, self.go) for k in self.heard))
        if self.go == b"never":
            return Output()
        return Output(result=Collected(tuple(self.heard), self.total, float(len(self.heard))))


@dataclass(frozen=True)
class TwoStep:
    go: bytes = b"go"

    @property
    def name(self) -> str:
        return "two-step"

    @property
    def reveals(self) -> Reveals:
        return "sum"

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> TwoStepClient:
        return TwoStepClient(client)

    def server(self, parameters: RoundParameters) -> TwoStepServer:
        return TwoStepServer(self.go)


def test_a_protocol_of_two_steps_ends_with_its_sum_and_counted_bytes() -> None:
    result = exchange(TwoStep(), PARAMETERS, updates(0, 2), SystemEntropy())
    assert result.survivors == (0, 2)
    np.testing.assert_array_equal(result.total, [4.0, 4.0])
    assert result.bytes_up == {0: 13, 2: 13}
    assert result.bytes_down == {0: 2, 2: 2}


def test_an_abort_of_a_client_ends_the_round_with_its_reason() -> None:
    with pytest.raises(ProtocolError, match="client 0 aborted: the server lied"):
        exchange(TwoStep(b"stop"), PARAMETERS, updates(0), SystemEntropy())


def test_a_protocol_that_never_ends_is_stopped() -> None:
    with pytest.raises(ProtocolError, match="did not end"):
        exchange(TwoStep(b"never"), PARAMETERS, updates(0), SystemEntropy())
