"""Personal algorithms in the order of their papers: what is trained from what, what leaves, what stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from securefed.algorithms.ditto import Ditto
from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.fedper import FedPer, private_head
from securefed.algorithms.fedprox import FedProx
from securefed.algorithms.fedrep import FedRep
from securefed.algorithms.finetune import FineTune
from securefed.config import load_config
from securefed.errors import ConfigError
from securefed.training.client import ClientJob
from securefed.types import Vector

PARTS = {"l.lora_A": "A", "l.lora_B": "B", "head.weight": "head", "centre.weight": "centre"}
W, V = np.zeros(3, np.float32), np.ones(3, np.float32)


@dataclass
class Recorder:
    """Stands for local training: notes what was asked for and adds one to every coordinate."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self,
        start: Vector,
        names: Sequence[str],
        *,
        steps: int = 0,
        towards: Vector | None = None,
        mu: float | None = None,
        rate: float = 1.0,
    ) -> Vector:
        self.calls.append(
            {
                "start": start,
                "names": tuple(names),
                "steps": steps,
                "towards": towards,
                "mu": mu,
                "rate": rate,
            }
        )
        return (start + 1).astype(np.float32)


def job(**fields: Any) -> ClientJob:
    given = {"train": ("b", "h"), "share": ("b",), "start": W, "weight": 1.0, "keep": ("h",), **fields}
    return ClientJob(0, 0, **given)


def config(**overrides: Any) -> Any:
    return load_config({"rounds": 6, "train": {"steps": 3}, **overrides})


def test_ditto_sends_what_fedavg_sends_and_keeps_a_model_drawn_to_the_global_one() -> None:
    train = Recorder()
    ditto = Ditto(strength=0.5, personal_steps=7)
    worked = ditto.work(train, job(share=("b", "h"), keep=("b", "h"), own=V))
    assert [c["names"] for c in train.calls] == [("b", "h"), ("b", "h")]
    assert train.calls[0]["start"] is W
    assert train.calls[0]["mu"] is None
    second = train.calls[1]
    assert (second["start"] is V, second["towards"] is W, second["mu"], second["steps"]) == (
        True,
        True,
        0.5,
        7,
    )
    assert (worked.vector.tolist(), worked.own is not None) == ((W + 1).tolist(), True)
    assert worked.own is not None
    assert worked.own.tolist() == (V + 1).tolist()
    alone = Recorder()
    FedAvg().work(alone, job(share=("b", "h")))
    assert alone.calls == train.calls[:1]  # the personal model leaves the global one untouched


def test_dittos_personal_model_begins_at_the_first_global_model_it_meets() -> None:
    train = Recorder()
    Ditto().work(train, job(share=("b", "h"), keep=("b", "h")))
    assert train.calls[1]["start"] is W


def test_ditto_has_a_personal_value_of_everything_but_a_centre() -> None:
    assert Ditto().local_names(config(), PARTS) == ("head.weight", "l.lora_A", "l.lora_B")
    assert not Ditto().keeps(FedAvg().plan(config(), PARTS, 0))  # the centre's round


def test_fedper_trains_the_head_with_the_rest_and_never_sends_it() -> None:
    body = {n: p for n, p in PARTS.items() if p != "centre"}
    for round in range(6):
        plan = FedPer().plan(config(), body, round)
        assert "head.weight" in plan.train
        assert "head.weight" not in plan.share
        assert plan.share == FedAvg().plan(config(), body, round).share[1:]
    assert FedPer().local_names(config(), body) == ("head.weight",)


def test_fedper_with_fedsa_keeps_head_and_b() -> None:
    found = FedPer().local_names(config(model={"adapter": "fedsa"}), PARTS)
    assert found == ("head.weight", "l.lora_B")


def test_fedrep_trains_the_head_first_then_the_body_for_that_head() -> None:
    train = Recorder()
    worked = FedRep(head_steps=5).work(train, job())
    assert [(c["names"], c["steps"]) for c in train.calls] == [(("h",), 5), (("b",), 0)]
    assert train.calls[1]["start"].tolist() == (W + 1).tolist()
    assert worked.vector.tolist() == (W + 2).tolist()
    assert worked.own is None


def test_finetune_shares_nothing_at_the_end_and_goes_on_from_its_own_model() -> None:
    tune, six = FineTune(tune_rounds=2, tune_rate=0.25), config()
    body = {n: p for n, p in PARTS.items() if p != "centre"}
    assert [tune.plan(six, body, r).phase for r in range(6)] == ["B", "A", "B", "A", "local", "local"]
    plan = tune.plan(six, body, 4)
    assert plan.share == ()
    assert plan.train == ("head.weight", "l.lora_A", "l.lora_B")
    assert (tune.cohort(six, 3, 3), tune.cohort(six, 3, 4)) == (None, (0, 1, 2))
    train = Recorder()
    tune.work(train, job(share=(), own=V))
    tune.work(train, job(share=()))
    tune.work(train, job(share=("b",), own=V))
    assert [c["start"] is V for c in train.calls] == [True, False, False]
    assert [c["rate"] for c in train.calls] == [0.25, 0.25, 1.0]  # the federation's own rounds are not slowed


def test_fedprox_draws_to_the_model_it_was_sent() -> None:
    train = Recorder()
    FedProx(mu=0.3).work(train, job())
    assert (train.calls[0]["towards"] is W, train.calls[0]["mu"]) == (True, 0.3)


@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [
        (FedAvg(), 3),
        (FedPer(), 3),
        (FedRep(), 6),
        (FedRep(head_steps=1), 4),
        (Ditto(), 6),
        (Ditto(personal_steps=4), 7),
        (FineTune(), 3),
    ],
)
def test_every_local_step_counts(algorithm: FedAvg, steps: int) -> None:
    assert algorithm.steps(config()) == steps


def test_the_private_head_of_a_net_without_one_is_its_last_layer() -> None:
    net = dict.fromkeys(("1.weight", "1.bias", "3.weight", "3.bias"), "base")
    assert private_head(net) == {"3.weight", "3.bias"}
    assert private_head(net, 2) == set(net)
    with pytest.raises(ConfigError, match="is all head"):
        FedPer(layers=2).local_names(config(), net)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"algorithm": {"name": "ditto", "strength": -1.0}}, "strength must be 0"),
        ({"algorithm": {"name": "ditto", "personal_steps": -1}}, "personal_steps must be 0"),
        ({"algorithm": "ditto", "train.proximal_mu": 0.1}, "set algorithm.strength"),
        ({"algorithm": {"name": "fedper", "layers": 0}}, "layers must be at least 1"),
        ({"algorithm": {"name": "fedper", "head_rounds": 1}}, "leave it out"),
        ({"algorithm": {"name": "fedrep", "head_steps": -1}}, "head_steps must be 0"),
        ({"algorithm": {"name": "finetune", "tune_rounds": 0}}, "tune_rounds must be at least 1"),
        ({"algorithm": {"name": "finetune", "tune_rounds": 6}}, "lower it"),
        ({"algorithm": {"name": "finetune", "tune_rate": 0.0}}, "tune_rate must be above 0"),
        ({"algorithm": {"name": "fedprox", "mu": -1.0}}, "mu must be 0"),
        ({"algorithm": "fedprox", "train.proximal_mu": 0.1}, "give one of them"),
        ({"algorithm": "fedprox", "train.steps": 1}, "raise train.steps"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"rounds": 6, "train": {"steps": 3}}, overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
