"""What is trained and sent in each round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from securefed.algorithms.plan import local_names, plan_round
from securefed.errors import ConfigError

PARTS = {"l.lora_A": "A", "l.lora_B": "B", "head.weight": "head"}


def test_rolora_alternates_the_factors_and_always_trains_the_head() -> None:
    phases = [plan_round("rolora", PARTS, r, 6, head_rounds=2) for r in range(6)]
    assert [p.phase for p in phases] == ["head", "head", "B", "A", "B", "A"]
    assert all("head.weight" in p.train for p in phases)
    assert all(p.train == p.share for p in phases)
    assert not any({"l.lora_A", "l.lora_B"} <= set(p.train) for p in phases), (
        "both factors at once is not exact"
    )


def test_average_of_an_alternating_round_is_exact_and_naive_averaging_is_not() -> None:
    rng = np.random.default_rng(0)
    a, bs = rng.standard_normal((2, 5)), rng.standard_normal((4, 3, 2))
    np.testing.assert_allclose(bs.mean(0) @ a, np.mean([b @ a for b in bs], 0))  # A shared: exact
    moved = a + rng.standard_normal((4, 2, 5))
    naive, exact = bs.mean(0) @ moved.mean(0), np.mean([b @ m for b, m in zip(bs, moved, strict=True)], 0)
    assert np.linalg.norm(naive - exact) > 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize("steps", [1, 2])
def test_averaging_both_factors_is_the_pooled_step_after_one_local_step_and_only_then(steps: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5)), rng.standard_normal((3, 2))
    clients = [(rng.standard_normal((5, 8)), rng.standard_normal((3, 8))) for _ in range(4)]

    def descend(x: Any, y: Any) -> tuple[Any, Any]:
        """Steps of size 0.01 on the mean over records of half the squared error of B A x."""
        new_a, new_b = a, b
        for _ in range(steps):
            error = (new_b @ new_a @ x - y) / x.shape[1]
            new_a, new_b = new_a - 0.01 * new_b.T @ error @ x.T, new_b - 0.01 * error @ (new_a @ x).T
        return new_a, new_b

    local = [descend(x, y) for x, y in clients]
    mean_a, mean_b = (np.mean([pair[i] for pair in local], 0) for i in (0, 1))
    pooled_a, pooled_b = descend(*(np.concatenate([c[i] for c in clients], 1) for i in (0, 1)))
    gap = max(np.abs(mean_a - pooled_a).max(), np.abs(mean_b - pooled_b).max())
    assert gap < 1e-12 if steps == 1 else gap > 1e-5


def test_ffa_never_trains_a() -> None:
    assert all("l.lora_A" not in plan_round("ffa", PARTS, r, 4).train for r in range(4))


def test_fedsa_trains_both_and_sends_a() -> None:
    plan = plan_round("fedsa", PARTS, 0, 4)
    assert set(plan.train) == set(PARTS)
    assert set(plan.share) == {"l.lora_A", "head.weight"}
    assert local_names("fedsa", PARTS) == ("l.lora_B",)
    assert local_names("rolora", PARTS) == ()


def test_full_trains_everything() -> None:
    assert plan_round("full", {"w": "base", "b": "base"}, 0, 1).train == ("b", "w")


def test_head_rounds_need_a_head_and_leave_rounds_for_the_adapter() -> None:
    with pytest.raises(ConfigError, match="needs a model with a head"):
        plan_round("rolora", {"l.lora_A": "A", "l.lora_B": "B"}, 0, 4, head_rounds=1)
    with pytest.raises(ConfigError, match="leaves none"):
        plan_round("rolora", PARTS, 0, 4, head_rounds=4)
    assert plan_round("head", PARTS, 3, 4, head_rounds=4).phase == "head"


def test_progress_restarts_with_the_phase() -> None:
    assert plan_round("rolora", PARTS, 1, 6, 2).progress == 0.5
    assert plan_round("rolora", PARTS, 2, 6, 2).progress == 0.0
