"""What every protection promises: the plain sum of whoever is listed as a survivor, or no sum at all.

A protection's own tests inherit the suite and say how exact it is:

    from tests.contracts.test_protection import ProtectionContract

    class TestMasking(ProtectionContract):
        tolerance = 1e-4
        def protection(self): return Masking(...)

The bytes are carried here by a loop of the suite's own, so that the engine's loop is not its own judge.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import helpers_of
from securefed.errors import ProtocolError
from securefed.layout import Layout, vector_digest
from securefed.protect.ckks import CKKS, OpenCKKS
from securefed.protect.grouped import Grouped
from securefed.protect.masking import Masking
from securefed.protect.plain import Plain
from securefed.registry import PROTECTIONS
from securefed.types import SERVER, Collected, Message, Output, Protection, Reveals, RoundParameters, Update

D = 6
MAX_ADVANCES = 32
Carrier = Callable[[Message, int], Iterable[Message]]
"""What the network makes of a message and its running number: itself, nothing, two of it, other bytes."""


def faithful(message: Message, number: int) -> Iterable[Message]:
    return (message,)


@dataclass
class Round:
    """One round over a network that may misbehave; ends in a result or in the reason why there is none."""

    protection: Protection
    parameters: RoundParameters
    updates: dict[int, Update]
    carrier: Carrier = faithful
    pick: Callable[[int], int] = lambda waiting: 0
    carried: list[Message] = field(default_factory=list)

    def play(self) -> Collected | str:
        try:
            return self._play()
        except ProtocolError as error:
            return str(error)

    def _play(self) -> Collected | str:
        server = self.protection.server(self.parameters)
        entropy = SystemEntropy()
        clients = {k: self.protection.client(self.parameters, k, entropy) for k in self.updates}
        helpers = helpers_of(self.protection, self.parameters, entropy)
        self._waiting: list[Message] = []
        output = self._post(server.start())
        for k, client in clients.items():
            self._post(client.start())
            self._post(client.submit(self.updates[k]))
        for _ in range(MAX_ADVANCES):
            while self._waiting and output.result is None and output.abort is None:
                message = self._waiting.pop(self.pick(len(self._waiting)))
                if message.receiver == SERVER:
                    output = self._post(server.receive(message.sender, message.payload))
                elif message.receiver in helpers:
                    self._post(helpers[message.receiver].receive(message.sender, message.payload))
                elif message.receiver in clients:
                    heard = self._post(clients[message.receiver].receive(message.payload))
                    if heard.abort is not None:
                        return heard.abort
            if output.abort is not None:
                return output.abort
            if output.result is not None:
                return output.result
            output = self._post(server.advance())
        raise AssertionError(f"no end after {MAX_ADVANCES} advances")

    def _post(self, output: Output) -> Output:
        for message in output.send:
            self.carried.append(message)
            self._waiting.extend(self.carrier(message, len(self.carried) - 1))
        return output


class ProtectionContract:
    """Inherit, and say which protection, how exact its sum is, and with how many clients it works."""

    n = 5
    tolerance = 0.0
    """Largest error of a coordinate of the sum."""

    def protection(self) -> Protection:
        raise AssertionError("a suite that inherits the contract says which protection it is about")

    # ------------------------------------------------------------------------------------- helpers

    def parameters(self, round: int = 3, run: str = "run") -> RoundParameters:
        layout = Layout.of_shapes({"w": (D,)})
        return RoundParameters(
            run, round, tuple(range(self.n)), D, layout.digest, vector_digest(np.zeros(D, np.float32))
        )

    def updates(self, seed: int = 0, round: int = 3) -> dict[int, Update]:
        rng = np.random.default_rng(seed)
        return {
            k: Update(k, round, rng.uniform(-1, 1, D).astype(np.float32), float(rng.integers(1, 50)))
            for k in range(self.n)
        }

    def assert_true_sum(self, outcome: Collected | str, updates: dict[int, Update]) -> None:
        """The one thing that never bends: the total is the sum over the listed survivors, or there is none."""
        if isinstance(outcome, str):
            assert outcome  # an abort says why
            return
        assert set(outcome.survivors) <= set(updates)
        assert list(outcome.survivors) == sorted(set(outcome.survivors))
        expected = np.zeros(D)
        for k in outcome.survivors:
            expected += updates[k].weight * updates[k].vector.astype(np.float64)
        np.testing.assert_allclose(outcome.total, expected, rtol=1e-12, atol=self.tolerance + 1e-12)
        assert outcome.weight == pytest.approx(sum(updates[k].weight for k in outcome.survivors))

    # --------------------------------------------------------------------------------------- sums

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**31))
    def test_the_total_is_the_plain_sum(self, seed: int) -> None:
        updates = self.updates(seed)
        outcome = Round(self.protection(), self.parameters(), updates).play()
        assert isinstance(outcome, Collected), outcome
        assert outcome.survivors == tuple(range(self.n))
        assert outcome.refused == {}
        self.assert_true_sum(outcome, updates)

    @settings(max_examples=15, deadline=None)
    @given(order=st.randoms(use_true_random=False))
    def test_the_order_of_arrival_does_not_matter(self, order: typing.Any) -> None:
        updates = self.updates()
        outcome = Round(self.protection(), self.parameters(), updates, pick=order.randrange).play()
        assert isinstance(outcome, Collected), outcome
        assert outcome.survivors == tuple(range(self.n))
        self.assert_true_sum(outcome, updates)

    @settings(max_examples=15, deadline=None)
    @given(gone=st.sets(st.integers(0, 4)))
    def test_clients_that_never_answer_are_left_out_or_the_round_aborts(self, gone: set[int]) -> None:
        updates = {k: u for k, u in self.updates().items() if k not in gone}
        outcome = Round(self.protection(), self.parameters(), updates).play()
        self.assert_true_sum(outcome, updates)

    # ---------------------------------------------------------------------------- a hostile network

    @settings(max_examples=40, deadline=None)
    @given(which=st.integers(0, 200), position=st.integers(0, 5000), bit=st.integers(0, 7))
    def test_a_flipped_bit_never_gives_a_wrong_sum(self, which: int, position: int, bit: int) -> None:
        updates = self.updates()
        count = self._messages(updates)

        def flip(message: Message, number: int) -> Iterable[Message]:
            if number != which % count or not message.payload:
                return (message,)
            payload = bytearray(message.payload)
            payload[position % len(payload)] ^= 1 << bit
            return (replace(message, payload=bytes(payload)),)

        self.assert_true_sum(Round(self.protection(), self.parameters(), updates, flip).play(), updates)

    @settings(max_examples=20, deadline=None)
    @given(which=st.integers(0, 200), keep=st.floats(0, 1))
    def test_a_message_cut_short_never_gives_a_wrong_sum(self, which: int, keep: float) -> None:
        updates = self.updates()
        count = self._messages(updates)

        def cut(message: Message, number: int) -> Iterable[Message]:
            if number != which % count:
                return (message,)
            return (replace(message, payload=message.payload[: int(keep * len(message.payload))]),)

        self.assert_true_sum(Round(self.protection(), self.parameters(), updates, cut).play(), updates)

    def test_a_message_that_arrives_twice_counts_once(self) -> None:
        updates = self.updates()
        twice = Round(
            self.protection(), self.parameters(), updates, lambda message, number: (message, message)
        )
        self.assert_true_sum(twice.play(), updates)

    def test_a_message_of_an_earlier_round_or_run_never_enters_the_sum(self) -> None:
        for earlier in (self.parameters(round=2), self.parameters(run="other")):
            before = Round(self.protection(), earlier, self.updates(7, earlier.round))
            before.play()
            stale = [m for m in before.carried if m.receiver == SERVER and m.sender == 0]
            updates = self.updates()

            def replay(message: Message, number: int, stale: list[Message] = stale) -> Iterable[Message]:
                fresh = message.receiver == SERVER and message.sender == 0
                return (*(stale if fresh else ()), message)

            self.assert_true_sum(Round(self.protection(), self.parameters(), updates, replay).play(), updates)

    def test_a_client_cannot_speak_for_another(self) -> None:
        updates = self.updates()

        def forge(message: Message, number: int) -> Iterable[Message]:
            return (replace(message, sender=1), message) if message.sender == 0 else (message,)

        self.assert_true_sum(Round(self.protection(), self.parameters(), updates, forge).play(), updates)

    def _messages(self, updates: dict[int, Update]) -> int:
        honest = Round(self.protection(), self.parameters(), updates)
        honest.play()
        return len(honest.carried)

    # ------------------------------------------------------------------------------ hostile clients

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_an_update_that_is_not_finite_never_enters_the_sum(self, bad: float) -> None:
        updates = self.updates()
        updates[1].vector[2] = bad
        outcome = Round(self.protection(), self.parameters(), updates).play()
        if isinstance(outcome, Collected):
            assert 1 not in outcome.survivors
            assert 1 in outcome.refused
        self.assert_true_sum(outcome, updates)

    def test_a_client_submits_once_and_only_its_own_update_of_this_round(self) -> None:
        updates = self.updates()
        for wrong in (
            updates[1],
            replace(updates[0], round=4),
            replace(updates[0], vector=np.zeros(D + 1, np.float32)),
        ):
            client = self.protection().client(self.parameters(), 0, SystemEntropy())
            client.start()
            with pytest.raises(ProtocolError):
                client.submit(wrong)
        client = self.protection().client(self.parameters(), 0, SystemEntropy())
        client.start()
        client.submit(updates[0])
        with pytest.raises(ProtocolError):
            client.submit(updates[0])

    def test_the_input_is_left_as_it_was(self) -> None:
        updates, before = self.updates(), self.updates()
        Round(self.protection(), self.parameters(), updates).play()
        assert all((updates[k].vector == before[k].vector).all() for k in updates)

    # ------------------------------------------------------------------------------ what it reveals

    def test_the_server_holds_what_the_protection_says_it_reveals(self) -> None:
        protection = self.protection()
        assert isinstance(protection, Protection)
        assert protection.reveals in typing.get_args(Reveals)
        updates = self.updates()
        outcome = Round(protection, self.parameters(), updates).play()
        assert isinstance(outcome, Collected), outcome
        if protection.reveals != "updates":
            assert outcome.updates is None
        if outcome.updates is not None:
            assert all((outcome.updates[k] == updates[k].vector).all() for k in outcome.survivors)

    def test_where_only_sums_are_revealed_no_message_holds_an_update(self) -> None:
        protection, updates = self.protection(), self.updates()
        played = Round(protection, self.parameters(), updates)
        played.play()
        seen = b"".join(m.payload for m in played.carried)
        in_the_clear = [k for k, u in updates.items() if u.vector.astype("<f4").tobytes() in seen]
        assert in_the_clear == (list(updates) if protection.reveals == "updates" else [])

    def test_sessions_and_messages_hide_their_contents_in_a_repr(self) -> None:
        updates = self.updates()
        client = self.protection().client(self.parameters(), 0, SystemEntropy())
        server = self.protection().server(self.parameters())
        sent = [*client.start().send, *client.submit(updates[0]).send]
        server.start()
        for message in sent:
            server.receive(0, message.payload)
        text = repr((client, server, sent))
        numbers = [f"{x:.4f}" for x in updates[0].vector] + [repr(m.payload) for m in sent]
        assert not any(number in text for number in numbers)


class TestPlain(ProtectionContract):
    def protection(self) -> Plain:
        return Plain()


class TestPlainRunningSum(ProtectionContract):
    """The same protection when the server keeps only the running sum."""

    def protection(self) -> Plain:
        return Plain(keep_updates=False)


class TestMasking(ProtectionContract):
    """Secret weights, one ring step of error a client; the identities are those of one run throughout."""

    tolerance = 5 * 50 / (2**31 // 5 - 1)
    opened = Masking(value_range=1.0, max_weight=50.0).open("run", range(5), SystemEntropy())

    def protection(self) -> Protection:
        fresh = {k: replace(party, _rounds={}) for k, party in self.opened.parties.items()}
        return replace(self.opened, parties=fresh)


class TestNarrowMasking(TestMasking):
    """The same with 20-bit words."""

    tolerance = 5 * 50 / (2**19 // 5 - 1)
    opened = Masking(value_range=1.0, max_weight=50.0, bits=20).open("run", range(5), SystemEntropy())


class TestGrouped(ProtectionContract):
    """Two groups of three, fixed throughout; a group in which anybody fails gives no sum."""

    n = 6
    tolerance = 6 * 50 / (2**31 // 3 - 1)
    opened = Grouped(size=3, value_range=1.0, max_weight=50.0).open("run", range(6), SystemEntropy())

    def protection(self) -> Protection:
        masking = self.opened.masking
        fresh = {k: replace(party, _rounds={}) for k, party in masking.parties.items()}
        return replace(self.opened, masking=replace(masking, parties=fresh))


class TestGroupedWithDrops(TestGrouped):
    """The same where masking's floors decide who must survive: groups of six lose members."""

    n = 12
    tolerance = 12 * 50 / (2**31 // 6 - 1)
    opened = Grouped(size=6, value_range=1.0, max_weight=50.0, whole_groups=False).open(
        "run", range(12), SystemEntropy()
    )


class TestCkks(ProtectionContract):
    """Secret weights; keys are those of one run throughout, so that only the first round hands them out."""

    tolerance = 1e-4
    config = CKKS(value_range=1.0, max_weight=50.0)

    def protection(self) -> Protection:
        pytest.importorskip("tenseal", reason="the extra ckks is not installed")
        return reused(self.config)


class TestVerifiedCkks(TestCkks):
    """The key holder adds; keys are fresh, so that handing them out is part of every round."""

    config = CKKS(trust="verified", value_range=1.0, max_weight=50.0)

    def protection(self) -> Protection:
        pytest.importorskip("tenseal", reason="the extra ckks is not installed")
        return self.config.open("run", range(5), SystemEntropy())


class TestSharedKeyCkks(TestCkks):
    config = CKKS(trust="shared_key", value_range=1.0, max_weight=50.0)


@functools.cache
def opened_ckks(config: CKKS) -> OpenCKKS:
    return config.open("run", range(5), SystemEntropy())


def reused(config: CKKS) -> OpenCKKS:
    """The same run for each of the suite's rounds; the key holder forgets which of them it has opened."""
    one = opened_ckks(config)
    return replace(one, holder=replace(one.holder, opened=set()))


def test_every_protection_that_a_job_can_name_has_its_contract() -> None:
    assert {suite.__name__ for suite in ProtectionContract.__subclasses__()} >= {
        f"Test{n.title()}" for n in PROTECTIONS
    }


def test_a_protection_that_adds_wrongly_is_caught() -> None:
    """The suite itself: a server that loses a client but lists it must not pass."""
    suite = TestPlain()
    updates = suite.updates()
    outcome = Round(Plain(), suite.parameters(), updates).play()
    assert isinstance(outcome, Collected)
    lost = replace(outcome, total=outcome.total - updates[2].weight * updates[2].vector.astype(np.float64))
    with pytest.raises(AssertionError):
        suite.assert_true_sum(lost, updates)
    suite.assert_true_sum(
        replace(lost, survivors=(0, 1, 3, 4), weight=outcome.weight - updates[2].weight), updates
    )
