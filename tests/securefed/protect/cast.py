"""The cast for plays about masking: honest parties, and the tools of those who are not.

A malicious server holds the server's identity, so it can sign anything in its own name; a malicious
client likewise. What they cannot do is sign for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.layout import vector_digest
from securefed.protect.masking import Masking, MaskingClient, MaskingParameters, MaskingServer, OpenMasking
from securefed.protect.masking.messages import (
    Envelope,
    Header,
    Step,
    open_envelope,
    seal_envelope,
    signed_bytes,
)
from securefed.types import SERVER, Collected, Output, RoundParameters, Update

D = 8
LEVELS = 1 << 20
CONFIG = Masking(value_range=1.0, max_weight=1.0, levels=LEVELS)
"""On its grid a coordinate is a multiple of 2^-20, so every sum is exact in float64."""
SPARSE = Masking(
    value_range=1.0, levels=LEVELS, k=4, threshold=3, quorum=7, min_survivors=5, below_table=True
)
"""A graph of degree four over a small cohort: below the table, for tests of the sparse case only."""


def base(n: int, round: int = 3, run: str = "run", model: float = 0.0, d: int = D) -> RoundParameters:
    digest = vector_digest(np.full(d, model, np.float32))
    return RoundParameters(
        run, round, tuple(range(n)), d, vector_digest(np.ones(d, np.float32)), digest, (1.0,) * n
    )


def update(client: int, round: int = 3, d: int = D) -> Update:
    """A vector on the grid, different for each client, with both signs and the ends of the range."""
    rng = np.random.default_rng([client, round])
    vector = (rng.integers(-LEVELS, LEVELS + 1, d) / LEVELS).astype(np.float32)
    vector[:2] = 1.0, -1.0
    return Update(client, round, vector)


def exact_sum(clients: Iterable[int], round: int = 3, d: int = D) -> np.ndarray:
    return np.sum([update(k, round, d).vector.astype(np.float64) for k in clients], axis=0)


@dataclass
class Play:
    """One round, a step at a time: `open` gives the server's messages of a step, `close` ends it."""

    n: int = 6
    config: Masking = CONFIG
    round: int = 3
    parties: OpenMasking | None = None
    entropy: Entropy = field(default_factory=SystemEntropy)
    client_type: type[MaskingClient] = MaskingClient
    server: MaskingServer = field(init=False)
    clients: dict[int, MaskingClient] = field(init=False)
    said: dict[tuple[Step, int], bytes] = field(default_factory=dict)
    """(step, client) -> what it sent."""

    def __post_init__(self) -> None:
        if self.parties is None:
            self.parties = self.config.open("run", range(self.n), self.entropy)
        self.base = base(self.n, self.round)
        self.server = self.parties.server(self.base)
        self.clients = {k: self.make_client(k) for k in range(self.n)}

    def make_client(self, k: int, of: RoundParameters | None = None) -> MaskingClient:
        assert self.parties is not None
        client = self.client_type(of or self.base, self.parties.parties[k], self.config.policy, self.entropy)
        client.submit(update(k, self.round))
        return client

    @property
    def p(self) -> MaskingParameters:
        return self.server.parameters

    def up_to(self, step: Step, gone: Mapping[int, Step] | None = None) -> dict[int, bytes]:
        """Plays honestly until the server has spoken in `step`; its messages, by receiver.

        Args:
            gone: client -> the step before which it vanishes.
        """
        messages = by_receiver(self.server.start())
        for now in Step:
            if now is step:
                return messages
            output = Output()
            for k, payload in messages.items():
                if (gone or {}).get(k, Step.LEAVE) > now:
                    output = self.answer(k, payload) or output
            if not output.send and output.result is None and output.abort is None:
                output = self.server.advance()
            assert output.abort is None, output.abort
            messages = by_receiver(output)
        raise AssertionError("there is no such step")

    def answer(self, k: int, payload: bytes) -> Output | None:
        """The client's turn, and the server's answer to it; None while the server waits."""
        said = self.clients[k].receive(payload)
        assert said.abort is None, said.abort
        output = None
        for message in said.send:
            self.said[open_envelope(message.payload).step, k] = message.payload
            output = self.server.receive(k, message.payload)
        return output if output and (output.send or output.result or output.abort) else None

    def close(self, messages: Mapping[int, bytes]) -> Output:
        """Everybody answers honestly; the server's next word."""
        output: Output | None = None
        for k, payload in messages.items():
            output = self.answer(k, payload) or output
        return output or self.server.advance()

    def finish(self, messages: Mapping[int, bytes]) -> Collected | str:
        """Plays on honestly from these messages to the end."""
        output = self.close(messages)
        while output.result is None and output.abort is None:
            output = self.close(by_receiver(output))
        return output.result if output.result is not None else str(output.abort)

    # ------------------------------------------------------------------------------ the liar's tools

    def lie(
        self,
        payload: bytes,
        who: int = SERVER,
        *,
        body: bytes | None = None,
        attachment: bytes | None = None,
        header: Callable[[Header], Header] = lambda h: h,
        key: bytes | None = None,
    ) -> bytes:
        """The message with parts replaced, signed (and tagged) anew by its own sender."""
        assert self.parties is not None
        e = open_envelope(payload)
        new_header, new_body = header(e.header), e.body if body is None else body
        head = new_header.encode()
        signature = self.parties.parties[who].identity.sign(signed_bytes(head, new_body))
        extra = bytes(e.attachment) if attachment is None else attachment
        if who != SERVER and key is None and Step.ADVERTISE < e.step < Step.LEAVE:
            key = self.server._tags(who)[e.step]
        return seal_envelope(head, new_body, signature, (extra,), key)

    def abort_of(self, k: int, payload: bytes) -> str:
        """Why the client ends its session when it hears this; fails if it goes on."""
        output = self.clients[k].receive(payload)
        assert output.abort is not None, f"client {k} went on"
        assert [open_envelope(m.payload).step for m in output.send] in ([], [Step.LEAVE])
        return output.abort


def by_receiver(output: Output) -> dict[int, bytes]:
    return {m.receiver: m.payload for m in output.send}


def parse(payload: bytes) -> Envelope:
    return open_envelope(payload)


def reworded(p: MaskingParameters, **changes: object) -> MaskingParameters:
    return replace(p, **changes)  # type: ignore[arg-type]  # tests name the fields


def flip(payload: bytes, at: int) -> bytes:
    changed = bytearray(payload)
    changed[at] ^= 1
    return bytes(changed)
