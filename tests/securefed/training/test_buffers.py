"""Running statistics of a net of somebody's own: under DP they pass from no client to another, and past no clip."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from securefed.assembly import assemble
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.distillation import Distillation
from securefed.errors import PrivacyError
from securefed.federation import run
from securefed.training.buffers import buffers_put_back
from securefed.training.client import ClientJob

JOB: dict[str, Any] = {
    "rounds": 1,
    "weights": "equal",
    "data": {"name": "digits", "clients": 3, "partition": "iid", "limit": 300},
    "train": {"steps": 2, "learning_rate": 0.1},
    "evaluate": {"baselines": False, "every": 0, "clients": False},
    "engine": {"threads": 1},
    "tracking": {"report": False},
}
CLIENT = {"privacy.unit": "client", "privacy.noise_multiplier": 1.0, "privacy.delta": 0.01}
EXAMPLE = {"privacy.unit": "example", "privacy.noise_multiplier": 1.0, "privacy.delta": 1e-4}


class Batched(nn.Sequential):
    """Keeps running means of what it has read."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, classes))


class Instanced(nn.Sequential):
    """The same, record by record, which Opacus lets through."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(64, classes))


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("stateful_nets")
    for net in (Batched, Instanced):
        setattr(module, net.__name__, net)
    monkeypatch.setitem(sys.modules, "stateful_nets", module)


def own(name: str, **more: Any) -> dict[str, Any]:
    return {**JOB, "model": {"name": f"stateful_nets:{name}", "adapter": "full"}, **more}


def test_buffers_end_as_they_began_also_where_training_fails() -> None:
    net = nn.BatchNorm1d(4)
    with buffers_put_back(net, refuse=False):
        net(torch.randn(8, 4) + 5)
        assert net.running_mean is not None
        assert net.running_mean.any()

    def fails() -> None:
        with buffers_put_back(net, refuse=True):
            net(torch.randn(8, 4) + 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not net.running_mean.any()
    with pytest.raises(PrivacyError, match="running_mean"), buffers_put_back(net, refuse=True):
        net(torch.randn(8, 4))
    with buffers_put_back(nn.Linear(2, 2), refuse=True):
        pass


@pytest.mark.parametrize("noise", ["central", "local"])
def test_what_one_client_answers_does_not_depend_on_another_clients_records(
    noise: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one client would move two tables, and the sum by two clips under the noise of one."""
    from securefed.crypto.entropy import Stream

    monkeypatch.setattr(Stream, "normal", lambda self, n: np.zeros(n))
    job = own("Batched", algorithm="distill", distill={"records": 40})
    config, told = load_config(job, {**CLIENT, "privacy.noise": noise}), []
    for before in ([], [0, 2]):  # clients that are asked first
        player = Distillation(assemble(config), tmp_path / "a", f"after {before}", SystemEntropy())
        try:
            mine = player.runner.learner(1)
            for client in (*before, 1):
                outcome = player.runner.run_job(ClientJob(client, 0, mine.names, (), mine.start, 1.0))
        finally:
            player.close()
        assert outcome.update is not None
        told.append(outcome.update.vector)
    assert told[0].any()
    np.testing.assert_array_equal(told[0], told[1])


def test_at_example_level_a_buffer_that_records_change_ends_the_run(home: Path, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="running_mean"):
        run(own("Instanced"), EXAMPLE, folder=tmp_path / "a")
    with pytest.raises(PrivacyError, match="running_mean"):
        run(own("Instanced", algorithm="distill", distill={"records": 40}), EXAMPLE, folder=tmp_path / "b")


def test_without_dp_and_at_client_level_such_a_net_trains(home: Path, tmp_path: Path) -> None:
    assert run(own("Batched"), folder=tmp_path / "a").rounds == 1
    assert run(own("Batched"), CLIENT, folder=tmp_path / "b").rounds == 1
