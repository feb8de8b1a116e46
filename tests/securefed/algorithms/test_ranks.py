"""Unlike ranks: each way to join them against the formula of its paper, on factors small enough to multiply out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from securefed.algorithms.flexlora import FlexLoRA, truncated
from securefed.algorithms.flora import FedEx, FLoRA
from securefed.algorithms.hetlora import HetLoRA, Slices
from securefed.algorithms.plan import RoundPlan
from securefed.algorithms.ranks import Joined, held, held_share
from securefed.config import ModelConfig
from securefed.config.schema import Config
from securefed.layout import Layout
from securefed.types import Vector

PARTS = {"x.lora_A": "A", "x.lora_B": "B", "x.base": "merged", "head.weight": "head"}
LAYOUT = Layout.of_shapes({"x.lora_A": (4, 6), "x.lora_B": (5, 4), "x.base": (5, 6), "head.weight": (2, 3)})
SENT = tuple(n for n in LAYOUT.names if PARTS[n] != "merged")
SCALE = 0.5
RANKS = {0: 1, 1: 2, 2: 4}
WEIGHTS = {0: 1.0, 1: 2.0, 2: 3.0}


def joined(updates: dict[int, Vector] | None = None, **changes: Any) -> Joined:
    rng = np.random.default_rng(0)
    before = rng.normal(size=LAYOUT.size).astype(np.float32)
    facts: dict[str, Any] = {
        "layout": LAYOUT,
        "part_of": PARTS,
        "plan": RoundPlan("AB", SENT, SENT, 0.0),
        "before": before,
        "initial": rng.normal(size=LAYOUT.size).astype(np.float32),
        "ranks": RANKS,
        "weights": WEIGHTS,
        "updates": trained() if updates is None else updates,
        "scale": SCALE,
    }
    return Joined(**{**facts, **changes})


def trained() -> dict[int, Vector]:
    """Updates over what is sent, zero where a client holds nothing."""
    shared, rng = LAYOUT.select(set(SENT).__contains__), np.random.default_rng(1)
    part_of = {n: PARTS[n] for n in SENT}
    return {
        k: (rng.normal(size=shared.size) * held(shared, part_of, r)).astype(np.float32)
        for k, r in RANKS.items()
    }


def mean_of(one: Joined) -> Vector:
    total = sum(WEIGHTS.values())
    return np.sum([WEIGHTS[k] / total * u for k, u in one.updates.items()], axis=0).astype(np.float32)


def stepped(one: Joined, aggregate: Vector) -> Vector:
    """The plain server step: the aggregate is added."""
    shared = one.shared
    return LAYOUT.scatter(LAYOUT.gather(one.before, shared) + aggregate, shared, one.before)


def matrix(model: Vector, name: str) -> NDArray[np.float64]:
    shape = LAYOUT.shapes[LAYOUT.names.index(name)]
    return model[LAYOUT.slice_of(name)].astype(np.float64).reshape(shape)


def effective(model: Vector) -> NDArray[np.float64]:
    """The weight that the model uses."""
    return matrix(model, "x.base") + SCALE * matrix(model, "x.lora_B") @ matrix(model, "x.lora_A")


def client_product(one: Joined, client: int) -> NDArray[np.float64]:
    """A client's B A, from the definition: its first r rows and columns, as it trained them."""
    shared, r = one.shared, RANKS[client]
    vector = LAYOUT.gather(one.before, shared) + one.updates[client]
    a = vector[shared.slice_of("x.lora_A")].reshape(4, 6)[:r].astype(np.float64)
    b = vector[shared.slice_of("x.lora_B")].reshape(5, 4)[:, :r].astype(np.float64)
    found: NDArray[np.float64] = b @ a
    return found


def exact(one: Joined) -> NDArray[np.float64]:
    total = sum(WEIGHTS.values())
    found: NDArray[np.float64] = np.sum(
        [WEIGHTS[k] / total * client_product(one, k) for k in one.updates], axis=0
    )
    return found


def test_a_client_holds_the_first_rows_of_a_and_columns_of_b_and_all_of_the_rest() -> None:
    mask = held(LAYOUT, PARTS, 2)
    a, b = (matrix(mask, n) for n in ("x.lora_A", "x.lora_B"))
    assert (a[:2] == 1).all()
    assert (a[2:] == 0).all()
    assert (b[:, :2] == 1).all()
    assert (b[:, 2:] == 0).all()
    assert (matrix(mask, "head.weight") == 1).all()
    assert (held(LAYOUT, PARTS, 4) == 1).all()


def test_hetlora_is_the_mean_of_zero_padded_factors() -> None:
    one = joined()
    new = stepped(one, HetLoRA().combine(mean_of(one), one))
    shared, total = one.shared, sum(WEIGHTS.values())
    part_of = {n: PARTS[n] for n in SENT}
    expected = np.sum(
        [
            WEIGHTS[k] / total * held(shared, part_of, RANKS[k]) * (LAYOUT.gather(one.before, shared) + u)
            for k, u in one.updates.items()
        ],
        axis=0,
    )
    np.testing.assert_allclose(LAYOUT.gather(new, shared), expected, atol=1e-5)


def test_sparsity_weights_are_the_norms_of_the_products() -> None:
    one = joined()
    new = stepped(one, HetLoRA(weighting="sparsity").combine(mean_of(one), one))
    norms = {k: float(np.linalg.norm(client_product(one, k))) for k in one.updates}
    shared, part_of = one.shared, {n: PARTS[n] for n in SENT}
    expected = np.sum(
        [
            norms[k]
            / sum(norms.values())
            * held(shared, part_of, RANKS[k])
            * (LAYOUT.gather(one.before, shared) + u)
            for k, u in one.updates.items()
        ],
        axis=0,
    )
    np.testing.assert_allclose(LAYOUT.gather(new, shared), expected, atol=1e-5)


def test_slices_are_means_over_those_who_hold_a_coordinate() -> None:
    one = joined()
    found = Slices().combine(mean_of(one), one)
    shared = one.shared
    a = found[shared.slice_of("x.lora_A")].reshape(4, 6)
    rows = {k: u[shared.slice_of("x.lora_A")].reshape(4, 6) for k, u in one.updates.items()}
    np.testing.assert_allclose(a[3], rows[2][3], atol=1e-5)
    np.testing.assert_allclose(a[1], (2 * rows[1][1] + 3 * rows[2][1]) / 5, atol=1e-5)
    head = found[shared.slice_of("head.weight")]
    np.testing.assert_allclose(head, mean_of(one)[shared.slice_of("head.weight")], atol=1e-6)


def test_a_coordinate_that_nobody_holds_keeps_its_value() -> None:
    one = joined({0: trained()[0]}, ranks={0: 1}, weights={0: 1.0})
    found = Slices().combine(one.updates[0], one)
    assert not found[one.shared.slice_of("x.lora_A")].reshape(4, 6)[1:].any()
    assert held_share(one).min() == 0


def test_flora_and_fedex_give_the_exact_mean_of_products_and_plain_averages_do_not() -> None:
    one = joined()
    start = stepped(one, mean_of(one))
    base = matrix(one.before, "x.base")
    np.testing.assert_allclose(effective(FedEx().join(start, one)), base + SCALE * exact(one), atol=1e-4)
    flora = FLoRA().join(start, one)
    np.testing.assert_allclose(matrix(flora, "x.base"), base + SCALE * exact(one), atol=1e-4)
    for name in ("x.lora_A", "x.lora_B"):
        np.testing.assert_array_equal(matrix(flora, name), matrix(one.initial, name))
    averaged = stepped(one, HetLoRA().combine(mean_of(one), one))
    assert np.abs(effective(averaged) - base - SCALE * exact(one)).max() > 0.1


def test_flexlora_is_the_best_approximation_of_its_rank_and_so_is_every_slice() -> None:
    one = joined()
    model = FlexLoRA().join(stepped(one, mean_of(one)), one)
    u, values, vt = np.linalg.svd(exact(one))
    for rank in (1, 2, 4):
        b, a = matrix(model, "x.lora_B")[:, :rank], matrix(model, "x.lora_A")[:rank]
        best = (u[:, :rank] * values[:rank]) @ vt[:rank]
        np.testing.assert_allclose(b @ a, best, atol=1e-4)
    np.testing.assert_array_equal(matrix(model, "x.base"), matrix(one.before, "x.base"))


@pytest.mark.parametrize("inner", [1, 3, 12])
def test_thin_factors_give_the_same_approximation_as_the_whole_product(inner: int) -> None:
    rng = np.random.default_rng(inner)
    b, a = rng.normal(size=(7, inner)), rng.normal(size=(inner, 9))
    found_b, found_a = truncated(b, a, 4)
    assert (found_b.shape, found_a.shape) == ((7, 4), (4, 9))
    u, values, vt = np.linalg.svd(b @ a)
    np.testing.assert_allclose(found_b @ found_a, (u[:, :4] * values[:4]) @ vt[:4], atol=1e-9)


def test_rounds_that_send_no_pair_of_factors_change_no_product() -> None:
    head = tuple(n for n in SENT if PARTS[n] == "head")
    one = joined(
        {0: np.ones(6, np.float32)}, plan=RoundPlan("head", head, head, 0.0), ranks={0: 1}, weights={0: 1.0}
    )
    for way in (FLoRA(), FedEx(), FlexLoRA()):
        np.testing.assert_array_equal(way.join(one.before, one), one.before)


def test_the_servers_own_matrices_are_neither_trained_nor_sent() -> None:
    config = Config(model=ModelConfig(adapter="lora", merged=True))
    plan = FLoRA().plan(config, PARTS, 0)
    assert "x.base" not in plan.train + plan.share
