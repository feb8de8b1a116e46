"""Drives the sans-IO sessions of one round in this process: carries bytes, counts them, ends the steps.

The same bytes that travel here travel over a network; only who carries them differs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from securefed.crypto.entropy import Entropy
from securefed.errors import ProtocolError
from securefed.types import (
    SERVER,
    Assisted,
    ClientSession,
    Collected,
    HelperSession,
    Message,
    Output,
    PerRun,
    Protection,
    RoundParameters,
    Update,
)

MAX_STEPS = 32
"""No protocol here has more than five steps; more `advance` calls mean a session that cannot end."""


def exchange(
    protection: Protection, parameters: RoundParameters, updates: Mapping[int, Update], entropy: Entropy
) -> Collected:
    """What the server holds after the cohort's updates have gone through the protection.

    Args:
        updates: client -> update; a client of the cohort that is missing here has dropped out before
            the round began and never answers.

    Raises:
        ProtocolError: the protocol aborted (the reason is named), or its sessions do not end.
    """
    protection = opened(protection, parameters.run, parameters.clients, entropy)
    server = protection.server(parameters)
    clients = {k: protection.client(parameters, k, entropy) for k in parameters.clients if k in updates}
    helpers = helpers_of(protection, parameters, entropy)
    up: Counter[int] = Counter()
    down: Counter[int] = Counter()
    queue: deque[Message] = deque()
    output = server.start()

    def carry() -> None:
        """Delivers until nothing is under way, or the server has its result or gives up."""
        nonlocal output
        while queue and output.result is None and output.abort is None:
            message = queue.popleft()
            if message.receiver == SERVER:
                up[message.sender] += len(message.payload)
                output = server.receive(message.sender, message.payload)
                queue.extend(output.send)
            elif message.receiver in helpers:
                up[message.sender] += len(message.payload)
                queue.extend(helpers[message.receiver].receive(message.sender, message.payload).send)
            else:
                down[message.receiver] += len(message.payload)
                queue.extend(_deliver(clients, message).send)

    queue.extend(output.send)
    for helper in helpers.values():
        queue.extend(helper.start().send)
    for k, session in clients.items():
        queue.extend(session.start().send)
        queue.extend(session.submit(updates[k]).send)
        if all(message.receiver == SERVER for message in queue):
            carry()  # an update at a time: a cohort's messages together would leave the processor's cache
    for _ in range(MAX_STEPS):
        carry()
        if output.abort is not None:
            raise ProtocolError(f"round {parameters.round} aborted by {protection.name}: {output.abort}")
        if output.result is not None:
            return replace(output.result, bytes_up=dict(up), bytes_down=dict(down))
        output = server.advance()
        queue.extend(output.send)
    raise ProtocolError(f"round {parameters.round}: {protection.name} did not end after {MAX_STEPS} steps")


def opened(protection: Protection, run: str, clients: Sequence[int], entropy: Entropy) -> Protection:
    """The protection ready for this run: with keys where it needs some, else itself.

    Open once a run, so that identities outlive its rounds; `exchange` opens for one round what is not.
    """
    return protection.open(run, clients, entropy) if isinstance(protection, PerRun) else protection


def helpers_of(
    protection: Protection, parameters: RoundParameters, entropy: Entropy
) -> Mapping[int, HelperSession]:
    """Party id -> session of those who are neither client nor server; empty for most protections."""
    return protection.helpers(parameters, entropy) if isinstance(protection, Assisted) else {}


def _deliver(clients: Mapping[int, ClientSession], message: Message) -> Output:
    session = clients.get(message.receiver)
    if session is None:
        return Output()  # a client that has dropped out hears nothing
    output = session.receive(message.payload)
    if output.abort is not None:
        raise ProtocolError(f"client {message.receiver} aborted: {output.abort}")
    return output
