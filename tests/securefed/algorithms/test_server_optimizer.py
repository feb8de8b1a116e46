"""Server optimizers against a scalar transcription of Reddi et al. 2021, Algorithm 2."""

from __future__ import annotations

import math

import numpy as np
import pytest

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import plan_round
from securefed.algorithms.server_optimizer import Moments, rate_at, server_step
from securefed.config import ServerConfig
from securefed.layout import Layout

RATES = {"learning_rate": 0.5, "momentum": 0.8, "beta2": 0.9, "tau": 0.01}


def scalar(name: str, deltas: list[float]) -> float:
    x = m = v = 0.0
    for d in deltas:
        if name == "fedavg":
            x += 0.5 * d
        elif name == "fedavgm":
            m = 0.8 * m + d
            x += 0.5 * m
        else:
            m = 0.8 * m + 0.2 * d
            sign = (v > d * d) - (v < d * d)
            v = 0.9 * v + 0.1 * d * d if name == "fedadam" else v - 0.1 * d * d * sign
            x += 0.5 * m / (math.sqrt(v) + 0.01)
    return x


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_server_step_follows_the_papers_recursion(name: str) -> None:
    deltas = [0.3, -0.1, 0.02, 0.5]
    model, moments = np.zeros(1, np.float32), Moments.zeros(1)
    for d in deltas:
        model, moments = server_step(name, model, np.array([d], np.float32), moments, **RATES)  # type: ignore[arg-type]  # a parametrized Literal
    assert model.dtype == np.float32
    assert model[0] == pytest.approx(scalar(name, deltas), rel=1e-5)


def test_arguments_are_left_as_they_were() -> None:
    model, delta, moments = np.ones(3, np.float32), np.ones(3, np.float32), Moments.zeros(3)
    server_step("fedadam", model, delta, moments, **RATES)
    assert (model == 1).all()
    assert (delta == 1).all()
    assert not moments.first.any()


def test_coordinates_that_were_not_sent_keep_value_and_moments() -> None:
    parts = {"lora_A": "A", "lora_B": "B", "head": "head"}
    layout = Layout.of_shapes(dict.fromkeys(parts, (2,)))
    plan = plan_round("rolora", parts, 0, 4)
    shared = layout.select(set(plan.share).__contains__)
    config = ServerConfig(
        optimizer="fedadam", head_optimizer="fedavg", head_learning_rate=1.0, learning_rate=0.1
    )
    delta = np.ones(shared.size, np.float32)
    model, moments = FedAvg().apply(
        config, layout, parts, plan, np.zeros(6, np.float32), delta, Moments.zeros(6)
    )
    new = layout.unflatten(model)
    assert not new["lora_A"].any()
    assert not moments.first[layout.slice_of("lora_A")].any()
    assert new["head"].tolist() == [1.0, 1.0], "the head follows its own rule"
    assert 0 < new["lora_B"][0] < 0.2


def test_schedules_fall_to_five_percent_and_never_below() -> None:
    for schedule in ("linear", "cosine"):
        config = ServerConfig(schedule=schedule)  # type: ignore[arg-type]  # a Literal in a loop
        rates = [rate_at(config, 2.0, p / 100) for p in range(100)]
        assert rates[0] == 2.0
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] == pytest.approx(0.1)
    assert rate_at(ServerConfig(), 2.0, 0.9) == 2.0


def test_the_heads_rate_falls_by_its_factor_once_an_adapter_trains_too() -> None:
    layout = Layout.of_shapes({"head": (2,), "lora_A": (2,), "lora_B": (2,)})
    parts = {"head": "head", "lora_A": "A", "lora_B": "B"}
    config = ServerConfig(head_optimizer="fedavg", head_learning_rate=2.0, head_joint_factor=0.25)
    moved = []
    for round in (0, 1):
        plan = plan_round("lora", parts, round, 2, head_rounds=1)
        shared = layout.select(set(plan.share).__contains__)
        model, _ = FedAvg(1).apply(
            config,
            layout,
            parts,
            plan,
            np.zeros(6, np.float32),
            np.ones(shared.size, np.float32),
            Moments.zeros(6),
        )
        moved.append(layout.unflatten(model))
    assert moved[0]["head"].tolist() == [2.0, 2.0]
    assert moved[1]["head"].tolist() == [0.5, 0.5]
    assert moved[1]["lora_B"].tolist() == [1.0, 1.0], "the adapter keeps its own rate"
