"""The two phases of the adapter tangent: what each round trains, and what becomes of the first head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from securefed.algorithms.anchoring import anchored
from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import plan_round
from securefed.algorithms.server_optimizer import Moments
from securefed.config import load_config
from securefed.errors import ConfigError
from securefed.layout import Layout

PARTS = {
    "anchor.centre": "anchor",
    "anchor.weight": "anchor",
    "centre.weight": "centre",
    "head.bias": "head",
    "head.weight": "head",
}
UNCENTRED = {n: p for n, p in PARTS.items() if p != "centre"} | {"anchor.centre": "anchor"}


def tensors(classes: int, centre: bool = True) -> dict[str, torch.Tensor]:
    """A head on five pooled numbers and four of tangents."""
    rng = np.random.default_rng(classes)
    shapes: dict[str, tuple[int, ...]] = {
        "anchor.centre": (5,),
        "anchor.weight": (1 if classes == 2 else classes, 5),
        "head.bias": (classes,),
        "head.weight": (classes, 9),
    }
    if centre:
        shapes["centre.weight"] = (9, 1)
    return {n: torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for n, s in shapes.items()}


def test_the_head_trains_twice_each_time_after_a_centre() -> None:
    plans = [plan_round("tangent", PARTS, r, 7, head_rounds=2) for r in range(7)]
    assert [p.phase for p in plans] == ["centre", "head", "head", "centre", "tangent", "tangent", "tangent"]
    assert [p.anchors for p in plans] == [False, False, True, False, False, False, False]
    assert [round(p.progress, 3) for p in plans[4:]] == [0, 0.333, 0.667]
    assert all(p.train == p.share for p in plans)
    assert not any(PARTS[n] == "anchor" for p in plans for n in p.train)


def test_without_a_centre_the_head_trains_twice() -> None:
    plans = [plan_round("tangent", UNCENTRED, r, 5, head_rounds=2) for r in range(5)]
    assert [p.phase for p in plans] == ["head", "head", "tangent", "tangent", "tangent"]
    assert [p.anchors for p in plans] == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("rounds", "head_rounds", "words"),
    [(5, 0, "set algorithm.head_rounds to at least 1"), (5, 3, "leaves none of rounds=5 for the tangents")],
)
def test_head_rounds_that_leave_nothing_are_refused(rounds: int, head_rounds: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_round("tangent", PARTS, 1, rounds, head_rounds)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_on_pooled_states_becomes_the_anchor_and_begins_again_at_zero(classes: int) -> None:
    before = tensors(classes)
    layout = Layout.of(before)
    after = layout.unflatten(anchored(layout, layout.flatten(before)))
    head = before["head.weight"][:, :5]
    torch.testing.assert_close(after["anchor.weight"], head[1:] - head[:1] if classes == 2 else head)
    torch.testing.assert_close(after["anchor.centre"], before["centre.weight"][:5, 0])
    assert not any(after[n].any() for n in ("head.weight", "head.bias", "centre.weight"))


def test_a_model_without_centre_is_anchored_all_the_same() -> None:
    before = tensors(2, centre=False)
    layout = Layout.of(before)
    after = layout.unflatten(anchored(layout, layout.flatten(before)))
    torch.testing.assert_close(after["anchor.centre"], before["anchor.centre"])  # zero in a model
    assert after["anchor.weight"].any()


def test_the_server_anchors_after_the_last_round_of_the_first_head_and_forgets_its_moments() -> None:
    model = tensors(2)
    layout = Layout.of(model)
    config = load_config(
        {"rounds": 7},
        {
            "algorithm.head_rounds": 2,
            "model.adapter": "tangent",
            "model.head_centre": True,
            "train.steps": 1,
            "server.optimizer": "fedavgm",
        },
    )
    algorithm, vector, moments = FedAvg(head_rounds=2), layout.flatten(model), Moments.zeros(layout.size)
    for round in (1, 2):
        plan = algorithm.plan(config, PARTS, round)
        size = layout.part(plan.share).size
        vector, moments = algorithm.apply(
            config.server, layout, PARTS, plan, vector, np.ones(size, np.float32), moments
        )
        assert bool(moments.first.any()) == (round == 1)
    after = layout.unflatten(vector)
    own = model["head.weight"][:, :5]
    torch.testing.assert_close(after["anchor.weight"], own[1:] - own[:1])  # both rows moved alike
    assert not after["head.weight"].any()
