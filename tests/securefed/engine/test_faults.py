"""The bad network: what its schedule says happens, and nothing else."""

from __future__ import annotations

import numpy as np

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.faults import Schedule, exchange_with_faults, steps_of
from securefed.protect.masking import Masking
from securefed.protect.plain import Plain
from securefed.types import SERVER, Message, Protection, RoundParameters, Update

P = RoundParameters("r", 0, (0, 1, 2, 3), 2, "0" * 64, "0" * 64)


def play(schedule: Schedule, protection: Protection | None = None):  # type: ignore[no-untyped-def]  # a Transcript
    updates = {k: Update(k, 0, np.full(2, k + 1.0, np.float32)) for k in P.clients}
    return exchange_with_faults(protection or Plain(), P, updates, SystemEntropy(), schedule)


def test_a_faithful_network_is_that_of_the_engine() -> None:
    found = play(Schedule()).result
    assert found is not None
    assert found.survivors == (0, 1, 2, 3)
    assert len(found.bytes_up) == 4


def test_lost_vanished_and_late_messages_do_not_count() -> None:
    for schedule in (Schedule(lose=frozenset({1})), Schedule(vanish={1: 0}), Schedule(delay={1: 2})):
        found = play(schedule).result
        assert found is not None
        assert found.survivors == (0, 2, 3)


def test_garbled_and_cut_messages_are_refused() -> None:
    for schedule in (Schedule(garble={1: (100, 0)}), Schedule(cut={1: 0.5})):
        found = play(schedule).result
        assert found is not None
        assert found.survivors == (0, 2, 3)
        assert 1 in found.refused


def test_garbling_always_changes_the_message() -> None:
    message = Message(0, SERVER, bytes(range(50)))
    for flip in range(256):
        (arriving,) = Schedule(garble={0: (7, flip)}).carry(message, 0)
        assert arriving.payload != message.payload


def test_a_message_twice_arrives_twice_and_counts_once() -> None:
    found = play(Schedule(twice=frozenset({1}))).result
    assert found is not None
    assert "duplicate" in found.refused[1]
    assert found.total.tolist() == [10.0, 10.0]


def test_the_order_is_the_schedules() -> None:
    first: list[int] = []
    play(Schedule(pick=lambda waiting: first.append(waiting) or waiting - 1))  # type: ignore[func-returns-value]
    assert first == [4, 3, 2, 1]


def test_a_client_that_gives_up_is_one_more_that_dropped() -> None:
    """Its peer's advertisement is garbled on the way to the server and never counts; another client's
    server message is garbled, which it reports and then waits for ever."""
    transcript = play(Schedule(garble={0: (30, 3)}), Masking(value_range=8.0, max_weight=1.0))
    assert transcript.refused
    assert transcript.refused[0][0] == 0
    assert transcript.result is not None
    assert transcript.result.survivors == (1, 2, 3)
    assert transcript.result.dropped == {0: "advertise"}


def test_a_protection_names_its_steps() -> None:
    assert steps_of(Plain()) == ("submit",)
    assert steps_of(Masking()) == ("advertise", "share", "mask", "agree", "unmask")
    assert len(play(Schedule()).sent) == 4
