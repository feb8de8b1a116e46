"""Any allowed set of drops, any order, any garbling: the exact ring sum, or an abort that says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.faults import Schedule, exchange_with_faults
from securefed.protect.masking import Masking, OpenMasking
from tests.securefed.protect.cast import CONFIG, LEVELS, SPARSE, D, base, exact_sum, update

N = 8
OPEN = CONFIG.open("run", range(N), SystemEntropy())
OPEN_SPARSE = SPARSE.open("run", range(12), SystemEntropy())
STEPS = 5


def fresh(opened: OpenMasking) -> OpenMasking:
    """The same identities with no memory of rounds, so that one example can follow another."""
    return replace(opened, parties={k: replace(p, _rounds={}) for k, p in opened.parties.items()})


def play(opened: OpenMasking, n: int, schedule: Schedule):  # type: ignore[no-untyped-def]  # a Transcript
    updates = {k: update(k) for k in range(n)}
    return exchange_with_faults(fresh(opened), base(n), updates, SystemEntropy(), schedule)


def assert_exact_or_named(transcript: Any) -> None:
    if transcript.result is None:
        assert transcript.abort
        return
    np.testing.assert_array_equal(transcript.result.total, exact_sum(transcript.result.survivors))
    assert transcript.result.weight == len(transcript.result.survivors)


FLOOR = max(
    CONFIG.parameters(base(N)).threshold,
    CONFIG.parameters(base(N)).quorum,
    CONFIG.parameters(base(N)).min_survivors,
)
drops = st.dictionaries(st.integers(0, N - 1), st.integers(0, STEPS - 1), max_size=N - FLOOR)


@settings(max_examples=60)
@given(vanish=drops, order=st.randoms(use_true_random=False))
def test_any_drops_down_to_the_floor_in_any_step_and_any_order_give_the_exact_sum(
    vanish: dict[int, int], order: Any
) -> None:
    """Complete graph. Whoever vanishes before `agree` is out, whoever vanishes later is in."""
    transcript = play(OPEN, N, Schedule(vanish=vanish, pick=order.randrange))
    assert transcript.result is not None, transcript.abort
    gone = {k for k, step in vanish.items() if step < 3}
    assert transcript.result.survivors == tuple(k for k in range(N) if k not in gone)
    assert transcript.result.dropped.keys() == vanish.keys()
    assert_exact_or_named(transcript)


@settings(max_examples=30)
@given(vanish=st.dictionaries(st.integers(0, N - 1), st.integers(0, STEPS), min_size=N - FLOOR + 1))
def test_below_the_floor_there_is_an_abort_that_says_what_was_missing(vanish: dict[int, int]) -> None:
    transcript = play(OPEN, N, Schedule(vanish=vanish))
    alive = N - sum(step < STEPS for step in vanish.values())
    if alive < FLOOR:
        assert transcript.result is None
        assert any(word in transcript.abort for word in ("min_survivors", "quorum", "threshold"))
    assert_exact_or_named(transcript)


numbers = st.integers(0, 12 * 12)
faults = st.fixed_dictionaries(
    {
        "vanish": st.dictionaries(st.integers(0, 11), st.integers(0, STEPS), max_size=3),
        "lose": st.frozensets(numbers, max_size=3),
        "twice": st.frozensets(numbers, max_size=6),
        "delay": st.dictionaries(numbers, st.integers(1, 4), max_size=3),
        "garble": st.dictionaries(numbers, st.tuples(st.integers(0, 10**5), st.integers(0, 255)), max_size=4),
        "cut": st.dictionaries(numbers, st.floats(0, 0.999), max_size=2),
    }
)


@settings(max_examples=50)
@given(what=faults, order=st.randoms(use_true_random=False))
@pytest.mark.parametrize(("opened", "n"), [(OPEN, N), (OPEN_SPARSE, 12)], ids=["complete", "sparse"])
def test_a_hostile_network_never_gives_a_wrong_sum(
    opened: OpenMasking, n: int, what: dict[str, Any], order: Any
) -> None:
    assert_exact_or_named(play(opened, n, Schedule(**what, pick=order.randrange)))


@pytest.mark.parametrize("bits", [16, 20, 24, 31, 32])
def test_every_width_of_the_ring_is_exact_on_its_grid(bits: int) -> None:
    n = 5
    config = Masking(value_range=1.0, bits=bits, levels=1 << (bits - 5))
    rng = np.random.default_rng(bits)
    updates = {
        k: replace(update(k), vector=(rng.integers(-(2**11), 2**11, D) / 2**11).astype(np.float32))
        for k in range(n)
    }
    transcript = exchange_with_faults(
        config, base(n), updates, SystemEntropy(), Schedule(vanish={1: 2, 2: 3})
    )
    assert transcript.result is not None, transcript.abort
    expected = np.sum([updates[k].vector.astype(np.float64) for k in (0, 2, 3, 4)], axis=0)
    np.testing.assert_array_equal(transcript.result.total, expected)


def test_a_broken_driver_of_this_property_is_noticed() -> None:
    """The judge itself: a sum that misses a listed client does not pass."""
    transcript = play(OPEN, N, Schedule())
    assert transcript.result is not None
    wrong = replace(transcript.result, total=transcript.result.total - 1 / LEVELS)
    with pytest.raises(AssertionError):
        assert_exact_or_named(replace(transcript, result=wrong))


def test_a_round_of_sixty_on_a_sparse_graph_survives_a_tenth_dropping_at_every_step() -> None:
    config = Masking(value_range=1.0, levels=LEVELS)
    p = config.parameters(base(60))
    assert p.k < 59
    vanish = {7: 0, 13: 1, 21: 2, 33: 3, 45: 4, 58: 2}
    updates = {k: update(k) for k in range(60)}
    transcript = exchange_with_faults(config, base(60), updates, SystemEntropy(), Schedule(vanish=vanish))
    assert transcript.result is not None, transcript.abort
    assert_exact_or_named(transcript)
    assert len(transcript.result.survivors) == 56
