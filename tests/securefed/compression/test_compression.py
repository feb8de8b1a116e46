"""What is sent: linear where it says so, of the size it says, a projection where it says so, exact bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.compression import Coding, Linear, Sending
from securefed.compression.contract import Compression, Occasion
from securefed.compression.count_sketch import CountSketch
from securefed.compression.low_rank import LowRank
from securefed.compression.quantized import Quantized
from securefed.compression.random_k import RandomK
from securefed.compression.top_k import TopK
from securefed.errors import ProtocolError
from securefed.layout import Layout
from securefed.types import Vector

SHARED = Layout.of_shapes({"a": (12, 20), "b": (12,), "c": (30, 5)})
LINEAR: list[Linear] = [
    RandomK(0.2),
    RandomK(0.2, error_feedback=True),
    CountSketch(0.5),
    LowRank(2),
    LowRank(1, warm=False),
]
CODINGS: list[Coding] = [TopK(0.1), TopK(1.0), Quantized(1, 32), Quantized(7, 1), Quantized(127, 1000)]


def draw(seed: int, scale: float = 1.0) -> Vector:
    return (np.random.default_rng(seed).normal(size=SHARED.size) * scale).astype(np.float32)


def occasion(round: int = 0, **memory: Vector) -> Occasion:
    return Occasion(3, round, SHARED, memory)


def after_one_sum(linear: Linear) -> Occasion:
    """The second round, with what the server remembers of the first."""
    first = occasion()
    return Occasion(3, 1, SHARED, linear.receive(linear.project(draw(9), first), first)[1])


@pytest.mark.parametrize("linear", LINEAR, ids=repr)
@pytest.mark.parametrize("second", [False, True])
def test_the_map_of_a_weighted_sum_is_the_sum_of_the_maps(linear: Linear, second: bool) -> None:
    when = after_one_sum(linear) if second else occasion()
    x, y = draw(1), draw(2)
    together = linear.project((2 * x - 3 * y).astype(np.float32), when)
    assert together.shape == (linear.size(SHARED, when.round),)
    apart = 2 * linear.project(x, when) - 3 * linear.project(y, when)
    np.testing.assert_allclose(together, apart, atol=2e-5)
    assert linear.size(SHARED, 0) < SHARED.size


@pytest.mark.parametrize("coding", [TopK(0.1), Quantized(1, 32)], ids=repr)
def test_a_coding_is_not_linear_which_is_why_a_sum_must_not_carry_it(coding: Coding) -> None:
    sending = Sending(coding, 0)
    x, y = draw(1), draw(2)
    together = sending.rounded((x + y).astype(np.float32), SHARED, 0)
    apart = sending.rounded(x, SHARED, 0) + sending.rounded(y, SHARED, 0)
    assert np.abs(together - apart).max() > 0.1


@pytest.mark.parametrize(
    "linear", [RandomK(0.2, error_feedback=True), LowRank(2), LowRank(1, warm=False)], ids=repr
)
@pytest.mark.parametrize("second", [False, True])
def test_a_projection_never_lengthens_and_lifts_back_what_it_kept(linear: Linear, second: bool) -> None:
    when = after_one_sum(linear) if second else occasion()
    x = draw(4)
    sent = linear.project(x, when)
    assert np.linalg.norm(sent) <= np.linalg.norm(x) * (1 + 1e-6)
    back = linear.lift(sent, when)
    np.testing.assert_allclose(linear.project(back, when), sent, atol=1e-5)
    assert float(back @ (x - back)) == pytest.approx(0, abs=1e-3)  # what is left out is orthogonal


def test_a_sketch_can_lengthen_so_the_clip_must_be_on_what_is_sent() -> None:
    sketch = CountSketch(0.5)
    x = draw(4)
    assert np.linalg.norm(sketch.project(x, occasion())) > np.linalg.norm(x)


def test_random_k_without_memory_is_right_on_average() -> None:
    x, linear = draw(1), RandomK(0.25)
    found = np.mean([linear.lift(linear.project(x, occasion(r)), occasion(r)) for r in range(2000)], axis=0)
    assert np.abs(found - x).max() < 6 * np.abs(x).max() * np.sqrt(
        3 / 2000
    )  # six deviations of one coordinate


def test_rounds_send_other_coordinates_and_all_clients_the_same() -> None:
    linear = RandomK(0.2)
    ramp = np.arange(SHARED.size, dtype=np.float32)
    first, again, second = (linear.project(ramp, occasion(r)) for r in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(second)


def test_a_sketch_finds_the_heavy_coordinates_and_its_error_keeps_the_rest() -> None:
    sketch = CountSketch(share=0.5, rows=5, top=3 / SHARED.size)
    x = draw(1, 0.01)
    x[[7, 100, 300]] = [5, -4, 3]
    update, memory = sketch.receive(sketch.project(x, occasion()), occasion())
    assert set(np.flatnonzero(update)) == {7, 100, 300}
    np.testing.assert_allclose(update[[7, 100, 300]], [5, -4, 3], rtol=0.1)
    (error,) = memory.values()
    np.testing.assert_allclose(error, sketch.project((x - update).astype(np.float32), occasion()), atol=1e-4)


def test_the_error_of_a_sketch_that_is_too_small_never_grows_by_what_is_taken_out() -> None:
    sketch = CountSketch(share=0.02, rows=3, top=0.2)
    now = occasion()
    sent = sketch.project(draw(5), now)
    update, memory = sketch.receive(sent, now)
    (error,) = memory.values()
    assert np.linalg.norm(error) <= np.linalg.norm(sent) * (1 + 1e-6)
    assert update.any()


def test_a_warm_basis_finds_a_low_rank_update_that_a_fresh_one_misses() -> None:
    rng = np.random.default_rng(0)
    shared = Layout.of_shapes({"w": (40, 60)})
    target = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 60))).astype(np.float32).ravel()

    def missed(linear: LowRank) -> float:
        memory: dict[str, Vector] = {}
        update = target
        for round in range(4):
            now = Occasion(0, round, shared, memory)
            update, found = linear.receive(linear.project(target, now), now)
            memory = dict(found)
        return float(np.linalg.norm(update - target) / np.linalg.norm(target))

    assert missed(LowRank(2)) < 1e-3 < 0.5 < missed(LowRank(2, warm=False))


# ------------------------------------------------------------------------------------------- codings


@pytest.mark.parametrize("coding", CODINGS, ids=repr)
def test_a_coding_has_the_length_it_says_whatever_the_update(coding: Coding) -> None:
    rng = np.random.default_rng(0)
    for vector in (
        draw(1),
        draw(1, 1e-20),
        np.zeros(SHARED.size, np.float32),
        np.eye(1, SHARED.size, 5, np.float32)[0],
    ):
        payload = coding.encode(vector, rng)
        assert len(payload) == coding.bytes_of(SHARED.size)
        assert np.isfinite(coding.decode(payload, SHARED.size)).all()


@given(st.integers(1, 127), st.integers(1, 70), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_quantized_values_lie_within_one_step(levels: int, bucket: int, d: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=d).astype(np.float32)
    coding = Quantized(levels, bucket)
    back = coding.decode(coding.encode(x, np.random.default_rng(seed)), d)
    scale = np.repeat(np.maximum.reduceat(np.abs(x), np.arange(0, d, bucket)), bucket)[:d]
    assert (np.abs(back - x) <= scale / levels * (1 + 1e-5) + 1e-12).all()


def test_quantized_rounding_is_right_on_average() -> None:
    x, coding, rng = draw(1), Quantized(1, 64), np.random.default_rng(0)
    mean = np.mean([coding.decode(coding.encode(x, rng), SHARED.size) for _ in range(4000)], axis=0)
    assert np.abs(mean - x).max() < 6 * 2 * 3.5 / np.sqrt(4000) / 2  # a step is at most max |x| < 3.5


@given(st.floats(0.01, 1), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_top_k_sends_the_largest_coordinates_and_their_places(share: float, d: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=d).astype(np.float32)
    coding = TopK(share)
    back = coding.decode(coding.encode(x, np.random.default_rng(0)), d)
    k = max(1, round(share * d))
    largest = np.argsort(-np.abs(x))[:k]
    np.testing.assert_allclose(back[largest], x[largest], atol=np.abs(x).max() / 32767)
    assert np.count_nonzero(back) <= k


@pytest.mark.parametrize("coding", CODINGS, ids=repr)
@given(payload=st.binary(max_size=900))
def test_garbled_codes_give_an_error_or_a_finite_update(coding: Coding, payload: bytes) -> None:
    wanted = coding.bytes_of(SHARED.size)
    payload = (payload * (wanted // max(1, len(payload)) + 1))[:wanted] if payload else payload
    try:
        found = coding.decode(payload, SHARED.size)
    except ProtocolError:
        return
    assert found.shape == (SHARED.size,)
    assert np.isfinite(found).all()


# ------------------------------------------------------------------------------------- error feedback


@pytest.mark.parametrize("compression", [TopK(0.1), RandomK(0.1, True), LowRank(1, warm=False)], ids=repr)
def test_what_was_sent_and_what_is_kept_add_up_to_what_was_trained(compression: Compression) -> None:
    sending = Sending(compression, 1)
    kept: Vector | None = None
    trained, delivered = np.zeros(SHARED.size), np.zeros(SHARED.size)
    for round in range(12):
        update = draw(round)
        sent, kept = sending.sent(update, kept, SHARED, round, {})
        trained += update
        delivered += sending.received(sent, SHARED, round, {})[0]
    assert kept is not None
    np.testing.assert_allclose(delivered + kept, trained, atol=1e-4)


@pytest.mark.parametrize("compression", [RandomK(0.1), Quantized(1), CountSketch(0.5)], ids=repr)
def test_compressions_without_memory_keep_nothing(compression: Compression) -> None:
    assert Sending(compression, 1).sent(draw(1), None, SHARED, 0, {})[1] is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomK(0.0), "share"),
        (lambda: TopK(1.5), "share"),
        (lambda: Quantized(0), "levels"),
        (lambda: Quantized(1, 0), "bucket"),
        (lambda: CountSketch(rows=2), "odd"),
        (lambda: CountSketch(top=0), "top"),
        (lambda: LowRank(0), "rank"),
    ],
)
def test_options_out_of_range_are_named(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=words):
        make()
