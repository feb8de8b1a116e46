"""From what a protection revealed to the round's aggregate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.aggregation import Mean, aggregate
from securefed.errors import ProtocolError
from securefed.types import Collected, Reveals, RoundContext, Vector


@dataclass(frozen=True)
class FirstRow:
    """A rule that must see single updates and counts its rounds in its state."""

    @property
    def needs(self) -> Reveals:
        return "updates"

    def __call__(self, updates: torch.Tensor) -> torch.Tensor:
        return updates[0]

    def step(self, updates: torch.Tensor, context: RoundContext, state: Any) -> tuple[torch.Tensor, Any]:
        return self(updates), (state or 0) + 1


def collected(rows: Mapping[int, Any], weights: Mapping[int, float], reveal: bool = True) -> Collected:
    vectors: dict[int, Vector] = {k: np.asarray(v, np.float32) for k, v in rows.items()}
    total = sum((weights[k] * v.astype(np.float64) for k, v in vectors.items()), np.zeros(2))
    return Collected(tuple(sorted(vectors)), total, sum(weights.values()), vectors if reveal else None)


def context(weights: Mapping[int, float]) -> RoundContext:
    clients = tuple(sorted(weights))
    return RoundContext(3, clients, tuple(weights[k] for k in clients), "layout")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32), st.floats(0.01, 1000)),
        min_size=1,
        max_size=6,
    )
)
def test_the_mean_of_a_sum_equals_the_weighted_mean_of_the_rows(
    rows: list[tuple[float, float, float]],
) -> None:
    weights = {k: w for k, (_, _, w) in enumerate(rows)}
    held = collected({k: (a, b) for k, (a, b, _) in enumerate(rows)}, weights)
    vector, state = aggregate(Mean(), held, context(weights), None)
    assert vector.dtype == np.float32
    assert state is None
    oracle = np.average([r[:2] for r in rows], axis=0, weights=[r[2] for r in rows])
    np.testing.assert_allclose(vector, oracle, rtol=1e-5, atol=1e-5)
    by_rows, _ = Mean().step(torch.tensor([r[:2] for r in rows], dtype=torch.float64), context(weights), None)
    np.testing.assert_allclose(by_rows, oracle, rtol=1e-9, atol=1e-9)


def test_the_mean_needs_no_single_update() -> None:
    vector, _ = aggregate(Mean(), collected({0: (2, 4)}, {0: 2.0}, reveal=False), context({0: 2.0}), None)
    assert vector.tolist() == [2.0, 4.0]


def test_a_rule_that_must_see_updates_gets_the_survivors_in_ascending_order() -> None:
    weights = {7: 1.0, 2: 1.0}
    vector, state = aggregate(FirstRow(), collected({7: (7, 7), 2: (2, 2)}, weights), context(weights), 4)
    assert vector.tolist() == [2.0, 2.0]
    assert vector.dtype == np.float32
    assert state == 5


def test_a_rule_that_must_see_updates_refuses_a_bare_sum() -> None:
    with pytest.raises(ProtocolError, match="must see updates"):
        aggregate(FirstRow(), collected({0: (1, 1)}, {0: 1.0}, reveal=False), context({0: 1.0}), None)


def test_a_round_that_nobody_survived_is_refused_not_divided_by_zero() -> None:
    for held in (collected({}, {}), collected({0: (1, 1)}, {0: 0.0})):
        with pytest.raises(ProtocolError, match="round 3: no client's update survived"):
            aggregate(Mean(), held, context({0: 0.0}), None)
