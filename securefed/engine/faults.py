"""A network that misbehaves on a schedule: drops, delays, duplicates, reorderings, garbled bytes.

It carries the bytes of any protection's sessions, as `exchange` does over a faithful network, and goes
on where a client gives up: that client is then one more who has dropped out. A schedule is data, so a
failure can be played again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from securefed.crypto.entropy import Entropy
from securefed.engine.exchange import MAX_STEPS, helpers_of, opened
from securefed.errors import ProtocolError
from securefed.types import (
    SERVER,
    ClientSession,
    Collected,
    HelperSession,
    Message,
    Output,
    Protection,
    RoundParameters,
    Update,
)


@dataclass(frozen=True)
class Schedule:
    """What goes wrong. Messages are numbered from 0 in the order in which they are sent.

    Attributes:
        vanish: client -> how many of its own messages it sends before it is gone for good.
        lose: numbers of messages that never arrive. twice: that arrive two times.
        delay: number -> how many steps late; the server has gone on by then.
        garble: number -> (position, byte xor), both taken modulo what fits; never leaves it as it was.
        cut: number -> share of its bytes that arrive, in [0, 1).
        pick: which of so many waiting messages arrives next; first come first served by default.
    """

    vanish: Mapping[int, int] = field(default_factory=dict)
    lose: frozenset[int] = frozenset()
    twice: frozenset[int] = frozenset()
    delay: Mapping[int, int] = field(default_factory=dict)
    garble: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    cut: Mapping[int, float] = field(default_factory=dict)
    pick: Callable[[int], int] = lambda waiting: 0

    def carry(self, message: Message, number: int) -> Iterable[Message]:
        """What of a message arrives, in time or late."""
        if number in self.lose:
            return ()
        payload = message.payload
        if number in self.garble and payload:
            position, flip = self.garble[number]
            changed = bytearray(payload)
            changed[position % len(payload)] ^= flip % 255 + 1
            payload = bytes(changed)
        if number in self.cut:
            payload = payload[: int(self.cut[number] * len(payload))]
        arriving = replace(message, payload=payload)
        return (arriving, arriving) if number in self.twice else (arriving,)


@dataclass(frozen=True)
class Transcript:
    """How a round over a bad network went.

    Attributes:
        result: what the server decoded, None where there is no result.
        abort: the server's reason for having none.
        gave_up: client -> why its session ended in an abort.
        refused: what clients did not take as the server's, in order: (client, reason).
        sent: every message as it was sent, in order.
    """

    result: Collected | None
    abort: str | None
    gave_up: Mapping[int, str]
    refused: Sequence[tuple[int, str]]
    sent: Sequence[Message] = field(repr=False)


def steps_of(protection: Protection) -> tuple[str, ...]:
    """The names of a client's messages, in order; a protection of one message has the step "submit"."""
    names: tuple[str, ...] = getattr(protection, "steps", ("submit",))
    return names


def exchange_with_faults(
    protection: Protection,
    parameters: RoundParameters,
    updates: Mapping[int, Update],
    entropy: Entropy,
    schedule: Schedule,
) -> Transcript:
    """Plays one round over the schedule's network to its result or its abort.

    Args:
        updates: client -> update; a client that is missing here never answers.

    Raises:
        ProtocolError: the sessions do not end.
    """
    protection = opened(protection, parameters.run, parameters.clients, entropy)
    clients = {k: protection.client(parameters, k, entropy) for k in parameters.clients if k in updates}
    helpers = helpers_of(protection, parameters, entropy)
    return _Round(protection, parameters, clients, helpers, schedule).play(updates)


class _Round:
    """One round under way."""

    def __init__(
        self,
        protection: Protection,
        parameters: RoundParameters,
        clients: Mapping[int, ClientSession],
        helpers: Mapping[int, HelperSession],
        schedule: Schedule,
    ) -> None:
        self.server = protection.server(parameters)
        self.name, self.clients, self.schedule = protection.name, clients, schedule
        self.helpers = helpers
        self.waiting: list[Message] = []
        self.late: list[tuple[int, Message]] = []
        self.sent: list[Message] = []
        self.said: Counter[int] = Counter()
        self.up: Counter[int] = Counter()
        self.down: Counter[int] = Counter()
        self.gave_up: dict[int, str] = {}
        self.refused: list[tuple[int, str]] = []
        self.step = 0

    def play(self, updates: Mapping[int, Update]) -> Transcript:
        output = self.post(self.server.start())
        for helper in self.helpers.values():
            self.post(helper.start())
        for k, session in self.clients.items():
            self.post(session.start())
            self.post(session.submit(updates[k]))
        for _ in range(MAX_STEPS):
            while self.waiting and output.result is None and output.abort is None:
                message = self.waiting.pop(self.schedule.pick(len(self.waiting)))
                if message.receiver == SERVER:
                    output = self.post(self.server.receive(message.sender, message.payload))
                elif message.receiver in self.helpers:
                    self.post(self.helpers[message.receiver].receive(message.sender, message.payload))
                else:
                    self.hear(message)
            if output.result is not None or output.abort is not None:
                return self.transcript(output)
            self.step += 1
            output = self.post(self.server.advance())
            self.waiting += [m for due, m in self.late if due <= self.step]
            self.late = [(due, m) for due, m in self.late if due > self.step]
        raise ProtocolError(f"{self.name} did not end after {MAX_STEPS} steps")

    def hear(self, message: Message) -> None:
        """A client's turn; whatever it throws at its caller is its own affair."""
        client = message.receiver
        if client not in self.clients or client in self.gave_up or self.gone(client):
            return
        self.down[client] += len(message.payload)
        try:
            output = self.clients[client].receive(message.payload)
        except ProtocolError as error:
            self.refused.append((client, str(error)))
            return
        self.post(output)
        if output.abort is not None:
            self.gave_up[client] = output.abort

    def gone(self, client: int) -> bool:
        return self.said[client] >= self.schedule.vanish.get(client, self.said[client] + 1)

    def post(self, output: Output) -> Output:
        for message in output.send:
            if message.sender != SERVER:
                if self.gone(message.sender):
                    continue
                self.said[message.sender] += 1
                self.up[message.sender] += len(message.payload)
            number = len(self.sent)
            self.sent.append(message)
            arriving = self.schedule.carry(message, number)
            delay = self.schedule.delay.get(number, 0)
            if delay > 0:
                self.late += [(self.step + delay, m) for m in arriving]
            else:
                self.waiting += arriving
        return output

    def transcript(self, output: Output) -> Transcript:
        result = output.result
        if result is not None:
            result = replace(result, bytes_up=dict(self.up), bytes_down=dict(self.down))
        return Transcript(result, output.abort, self.gave_up, self.refused, self.sent)
