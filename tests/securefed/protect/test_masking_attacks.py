"""Attacks on careless versions of the protocol, which succeed, and on ours, which fail.

Each careless version differs from ours in one line, so that a test shows what the line is for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from securefed.crypto.keys import KeyPair
from securefed.crypto.packing import unpack
from securefed.crypto.prg import add_masks
from securefed.crypto.shamir import combine
from securefed.errors import ProtocolError
from securefed.protect.masking import MaskingClient
from securefed.protect.masking.derivation import pair_key, self_key
from securefed.protect.masking.messages import Kind, Step, decode_opened
from securefed.protect.masking.playing import Playing
from securefed.protect.masking.topology import points
from securefed.types import Update
from tests.securefed.protect.cast import LEVELS, D, Play, by_receiver, parse, update

VICTIM = 1


def vector_in(play: Play, keys: list[tuple[bytes, int]]) -> np.ndarray:
    """What is left of the victim's masked vector when these masks are taken off, in units of the range."""
    e = parse(play.said[Step.MASK, VICTIM])
    words = unpack(e.attachment, D + play.p.tail, play.p.bits).copy()
    add_masks(words, keys, bits=play.p.bits)
    return words[:D].view(np.int32) / LEVELS


def opened_secret(play: Play, owner: int, kind: Kind) -> bytes | None:
    """The owner's secret from the shares the server was sent, None if they are not enough."""
    places = points(play.server._topology.holders(owner))
    shares = {
        places[holder]: share
        for (step, holder), payload in play.said.items()
        if step is Step.UNMASK
        for who, what, share in decode_opened(parse(payload).body)
        if who == owner and what == kind
    }
    return (
        combine(dict(list(shares.items())[: play.p.threshold]), play.p.threshold)
        if len(shares) >= play.p.threshold
        else None
    )


def pairwise(play: Play, seed: bytes) -> list[tuple[bytes, int]]:
    """The victim's pairwise masks of a round, to be taken off, if this is the seed of its mask key."""
    pair, adverts = KeyPair.from_seed(seed), play.server._adverts
    keys = []
    for j in play.server._topology.holders(VICTIM):
        if j != VICTIM and j in play.server._dealings:
            low, high = sorted(((VICTIM, pair.public), (j, adverts[j].mask)))
            key = pair_key(pair.exchange(adverts[j].mask), play.p.context, low, high)
            keys.append((key, -1 if j > VICTIM else 1))
    return keys


# ---------------------------------------------------------------- a mask key that outlives its round


class ReusesMaskKey(Playing):
    """Careless in one thing: its mask key is that of its first round, for ever."""

    kept: dict[int, bytes] = {}  # noqa: RUF012  # a test's memory

    def fresh_mask_key(self) -> KeyPair:
        fresh = super().fresh_mask_key()
        return KeyPair.from_seed(self.kept.setdefault(self._me, fresh.seed))


class CarelessClient(MaskingClient):
    playing = ReusesMaskKey


def cross_round(client_type: type[MaskingClient]) -> np.ndarray:
    """Round 3: all survive, the server is sent the victim's self-mask shares. Round 4: the victim is
    declared dead after it shared, the server is sent its mask-key shares. Both honest rounds."""
    ReusesMaskKey.kept.clear()
    first = Play(round=3, client_type=client_type)
    first.finish(first.up_to(Step.ADVERTISE))
    second = Play(round=4, client_type=client_type, parties=first.parties)
    second.finish(second.up_to(Step.AGREE, gone={VICTIM: Step.MASK}))
    own = opened_secret(first, VICTIM, Kind.SELF)
    key = opened_secret(second, VICTIM, Kind.KEY)
    assert own is not None
    assert key is not None
    return vector_in(first, [(self_key(own, first.p.context, VICTIM), -1), *pairwise(first, key)])


def test_a_reused_mask_key_lets_the_server_unmask_an_earlier_round() -> None:
    np.testing.assert_array_equal(cross_round(CarelessClient), update(VICTIM).vector)


def test_fresh_mask_keys_leave_the_earlier_round_masked() -> None:
    found = cross_round(MaskingClient)
    assert (found != update(VICTIM).vector).sum() >= D - 1  # each coordinate matches by chance 2^-32


# ------------------------------------------------------- a vector that comes after its owner's funeral


class NoSelfMask(Playing):
    """Careless in one thing: only pairwise masks."""

    def _mask_keys(self) -> list[tuple[bytes, int]]:
        return super()._mask_keys()[1:]


class UnmaskedClient(MaskingClient):
    playing = NoSelfMask


def late_vector(client_type: type[MaskingClient]) -> np.ndarray:
    """The server holds the victim's vector back, declares it dead, is sent its mask key, then opens it."""
    play = Play(client_type=client_type)
    shown = play.up_to(Step.MASK)
    for k, payload in shown.items():
        said = play.clients[k].receive(payload).send[0].payload
        play.said[Step.MASK, k] = said
        if k != VICTIM:
            play.server.receive(k, said)
    play.finish(by_receiver(play.server.advance()))
    key = opened_secret(play, VICTIM, Kind.KEY)
    assert key is not None
    assert opened_secret(play, VICTIM, Kind.SELF) is None
    return vector_in(play, pairwise(play, key))


def test_without_its_self_mask_a_late_vector_lies_open() -> None:
    np.testing.assert_array_equal(late_vector(UnmaskedClient), update(VICTIM).vector)


def test_with_its_self_mask_a_late_vector_stays_closed() -> None:
    assert (late_vector(MaskingClient) != update(VICTIM).vector).sum() >= D - 1


# --------------------------------------------------------------------- a client that opens both shares


class OpensBoth(Playing):
    """Careless in one thing: it does not end, and answers a second question for shares."""

    def wipe(self) -> None:
        return


class TalkativeClient(MaskingClient):
    playing = OpensBoth

    def _end(self) -> None:
        self._awaited, self._heard = Step.AGREE, {}


def ask_twice(client_type: type[MaskingClient]) -> bool:
    """After an honest round the server says that the victim had died, and asks for the other shares."""
    play = Play(client_type=client_type)
    play.finish(play.up_to(Step.ADVERTISE))
    survivors = sorted(k for k in play.server._digests if k != VICTIM)
    play.server.ended, play.server.step = None, Step.AGREE
    from securefed.protect.masking.messages import Quorum, encode_ids

    listed = play.server._broadcast(
        encode_ids(survivors, [play.server._digests[k] for k in survivors]), dict.fromkeys(survivors, ())
    )
    signatures = {}
    try:
        for k, payload in by_receiver(listed).items():
            signatures[k] = parse(play.clients[k].receive(payload).send[0].payload).signature
        play.server.step = Step.UNMASK
        asked = play.server._broadcast(Quorum(signatures, {}).encode(), dict.fromkeys(survivors, ()))
        for k, payload in by_receiver(asked).items():
            play.said[Step.UNMASK, k] = play.clients[k].receive(payload).send[0].payload
    except (ProtocolError, IndexError):
        return False
    return opened_secret(play, VICTIM, Kind.KEY) is not None


def test_a_client_that_answers_twice_gives_both_secrets_away() -> None:
    assert ask_twice(TalkativeClient)


def test_our_client_ends_with_its_one_answer() -> None:
    assert not ask_twice(MaskingClient)


# ------------------------------------------------------------------------------- what a masked vector shows


def low_bits(make: Callable[[int], np.ndarray], rounds: int = 40) -> float:
    """Share of ones among the lowest bits of a client's masked words over several rounds."""
    ones = []
    for round in range(rounds):
        play = Play(3, round=round)
        client = play.client_type(play.base, play.parties.parties[VICTIM], play.config.policy, play.entropy)  # type: ignore[union-attr]
        client.submit(Update(VICTIM, round, make(round)))
        play.clients[VICTIM] = client
        play.up_to(Step.AGREE)
        e = parse(play.said[Step.MASK, VICTIM])
        ones.append(unpack(e.attachment, D + play.p.tail, 32)[:D] & 1)
    return float(np.mean(ones))


def test_the_masked_words_of_zero_and_of_the_largest_vector_look_alike() -> None:
    """320 fair bits each: a share outside 1/2 +- 0.17 has probability below 1e-8."""
    for value in (0.0, 1.0):
        assert abs(low_bits(lambda round, value=value: np.full(D, value, np.float32)) - 0.5) < 0.17  # type: ignore[misc]


def test_after_unmasking_a_client_holds_no_share() -> None:
    play = Play()
    shown = play.up_to(Step.UNMASK)
    playing = play.clients[0]._play
    assert playing is not None
    shares = [share for pair in playing._held.values() for share in pair.values()]
    assert len(shares) == 12
    assert any(any(share) for share in shares)
    play.answer(0, shown[0])
    assert not any(any(share) for share in shares)
    assert playing._held == {}
    assert not any(playing._seed)
