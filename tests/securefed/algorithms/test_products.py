"""Products in place of factors: what each client sends, and that a sum of it joins as single updates do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from securefed.algorithms.flexlora import FlexLoRA, approximated, truncated
from securefed.algorithms.flora import FLoRA
from securefed.algorithms.plan import RoundPlan
from securefed.algorithms.products import ByProducts, products_in
from securefed.algorithms.ranks import Joined, held
from securefed.algorithms.server_optimizer import Moments
from securefed.config import Config, ServerConfig
from securefed.layout import Layout
from securefed.training.client import ClientJob
from securefed.types import Vector
from tests.securefed.algorithms.test_ranks import LAYOUT, PARTS, RANKS, SENT, WEIGHTS, joined, stepped

PRODUCTS = RoundPlan("AB", SENT, ("head.weight", "x.base"), 0.0)


@dataclass
class Trained:
    """A client whose training ends at a vector that is known."""

    end: Vector
    layout: Layout = LAYOUT

    def __call__(self, start: Vector, names: object, **_: object) -> Vector:
        return self.end


def sent(one: Joined, way: ByProducts) -> dict[int, Vector]:
    """What each client sends, by the algorithm itself, for the same local training as in `one`."""
    found, share = {}, LAYOUT.part(PRODUCTS.share)
    for k, update in one.updates.items():
        start = one.before * held(LAYOUT, PARTS, RANKS[k])
        end = LAYOUT.scatter(LAYOUT.gather(start, one.shared) + update, one.shared, start)
        job = ClientJob(k, 0, PRODUCTS.train, PRODUCTS.share, start, WEIGHTS[k])
        worked = way.work(Trained(end), job).vector
        found[k] = LAYOUT.gather(worked, share) - LAYOUT.gather(start, share)
    return found


def played(one: Joined, way: ByProducts) -> tuple[Vector, Moments]:
    """The next model from the mean of what the clients send, and nothing else of them."""
    total = sum(WEIGHTS.values())
    mean = np.sum([WEIGHTS[k] / total * u for k, u in sent(one, way).items()], axis=0).astype(np.float32)
    hidden = replace(one, plan=PRODUCTS, updates={})
    model, moments = way.apply(
        ServerConfig(),
        LAYOUT,
        PARTS,
        PRODUCTS,
        one.before,
        way.combine(mean, hidden),
        Moments.zeros(LAYOUT.size),
    )
    return way.join(model, hidden), moments


def in_the_clear(one: Joined, way: ByProducts) -> Vector:
    total = sum(WEIGHTS.values())
    mean = np.sum([WEIGHTS[k] / total * u for k, u in one.updates.items()], axis=0).astype(np.float32)
    return way.join(stepped(one, mean), one)


@pytest.mark.parametrize("way", [FlexLoRA, FLoRA])
def test_a_mean_of_products_joins_as_single_updates_do(way: type[ByProducts]) -> None:
    one = joined()
    found, _ = played(one, way(products=True))
    np.testing.assert_allclose(found, in_the_clear(one, way()), atol=1e-4)


def test_a_sum_of_factors_in_its_place_would_be_noticed() -> None:
    """The product of mean factors is not the mean of products: joining it so ends elsewhere."""
    one = joined()
    found, _ = played(one, FlexLoRA(products=True))
    shares, parts = one.shares(), {k: one.factors(k, "x") for k in RANKS}
    b, a = np.zeros((5, 4)), np.zeros((4, 6))
    for k, (mine_b, mine_a) in parts.items():
        b[:, : RANKS[k]] += shares[k] * mine_b
        a[: RANKS[k]] += shares[k] * mine_a
    wrong = approximated(b @ a, 4)
    assert np.abs(_product(found) - wrong[0] @ wrong[1]).max() > 0.1


def test_who_changes_nothing_sends_nothing_and_moves_nothing() -> None:
    one = joined(
        {k: np.zeros(LAYOUT.part(SENT).size, np.float32) for k in RANKS}, ranks=dict.fromkeys(RANKS, 4)
    )
    for k in RANKS:
        job = ClientJob(k, 0, PRODUCTS.train, PRODUCTS.share, one.before, 1.0)
        worked = FlexLoRA(products=True).work(Trained(one.before), job)
        np.testing.assert_array_equal(worked.vector, one.before)
    found = FlexLoRA(products=True).join(one.before, replace(one, plan=PRODUCTS, updates={}))
    b, a = (one.before[LAYOUT.slice_of(n)].astype(np.float64) for n in ("x.lora_B", "x.lora_A"))
    np.testing.assert_allclose(_product(found), b.reshape(5, 4) @ a.reshape(4, 6), atol=1e-5)


def test_the_servers_optimizer_steps_on_the_head_and_leaves_products_what_they_are() -> None:
    one = joined()
    shared = LAYOUT.part(PRODUCTS.share)
    mean = np.ones(shared.size, np.float32)
    model, moments = FlexLoRA(products=True).apply(
        ServerConfig(optimizer="fedadam", learning_rate=0.5),
        LAYOUT,
        PARTS,
        PRODUCTS,
        one.before,
        mean,
        Moments.zeros(LAYOUT.size),
    )
    base = LAYOUT.slice_of("x.base")
    np.testing.assert_array_equal(model[base], one.before[base] + 1)
    assert not moments.first[base].any()
    assert moments.first[LAYOUT.slice_of("head.weight")].all()


def test_factors_are_trained_and_products_sent_once_the_adapter_trains() -> None:
    job = Config(rounds=3)
    way = FlexLoRA(head_rounds=1, products=True)
    config = replace(job, model=replace(job.model, adapter="lora"))
    assert way.plan(config, PARTS, 0).share == ("head.weight",)
    plan = way.plan(config, PARTS, 1)
    assert set(plan.train) == set(SENT)
    assert set(plan.share) == {"head.weight", "x.base"}
    assert products_in(plan.share) == ("x",)
    assert set(FlexLoRA().plan(config, PARTS, 1).share) == set(SENT)


def test_a_head_alone_is_sent_as_by_fedavg() -> None:
    one, head = joined(), RoundPlan("head", ("head.weight",), ("head.weight",), 0.0)
    job = ClientJob(0, 0, head.train, head.share, one.before, 1.0)
    end = one.before + 1
    np.testing.assert_array_equal(FlexLoRA(products=True).work(Trained(end), job).vector, end)
    model, _ = FLoRA(products=True).apply(
        ServerConfig(), LAYOUT, PARTS, head, one.before, np.ones(6, np.float32), Moments.zeros(LAYOUT.size)
    )
    changed = np.flatnonzero(model != one.before)
    assert set(changed) == set(range(LAYOUT.size)[LAYOUT.slice_of("head.weight")])


def test_a_whole_matrix_and_its_thin_factors_have_one_approximation() -> None:
    rng = np.random.default_rng(3)
    b, a = rng.normal(size=(7, 3)), rng.normal(size=(3, 9))
    for rank in (1, 3, 5):
        for mine, other in zip(approximated(b @ a, rank), truncated(b, a, rank), strict=True):
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine[..., :1], other[..., :1], atol=1e-6)
        np.testing.assert_allclose(
            np.matmul(*approximated(b @ a, rank)), np.matmul(*truncated(b, a, rank)), atol=1e-6
        )


def _product(model: Vector) -> NDArray[np.float64]:
    b, a = (model[LAYOUT.slice_of(n)].astype(np.float64) for n in ("x.lora_B", "x.lora_A"))
    found: NDArray[np.float64] = b.reshape(5, 4) @ a.reshape(4, 6)
    return found
