"""The client's look at a model: an imprint is caught, honest weights pass, and what it saves from is shown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from securefed.assembly import assemble, make_runner
from securefed.config import ModelConfig, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.errors import SuspiciousModelError
from securefed.federation import run
from securefed.models import load_model
from securefed.models.inspection import Findings, inspect_model, most_alike
from securefed.models.task_model import TaskModel
from securefed.training.client import ClientJob, ClientRunner
from securefed.types import Vector

HIDDEN = 256
JOB: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "digits", "clients": 20, "partition": "iid"},
    "model": {"name": "mlp", "adapter": "full", "hidden": HIDDEN},
    "train": {"steps": 1, "learning_rate": 0.1, "batch_size": 100},
    "evaluate": {"baselines": False, "clients": False},
    "engine": {"threads": 1},
}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def imprint(model: TaskModel, images: np.ndarray[Any, Any], noise: float = 0.0) -> Vector:
    """Robbing the Fed's layer: every neuron measures brightness, biases open one after another."""
    side = images[0].size
    brightness = images.reshape(len(images), -1).mean(1)
    bins = np.quantile(brightness, np.linspace(0, 1, HIDDEN, endpoint=False))
    rows = torch.full((HIDDEN, side), 1 / side)
    weights = {
        "hidden.weight": rows + noise / side * gaussian(*rows.shape),
        "hidden.bias": -torch.from_numpy(bins).float(),
        "output.weight": (0.1 * gaussian(10, 1, seed=1))
        .expand(10, HIDDEN)
        .clone(),  # all neurons count alike
        "output.bias": torch.zeros(10),
    }
    return model.layout.flatten(weights)


def client(**train: Any) -> tuple[ClientRunner, TaskModel, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One client's runner, its model, its images and everyone's (the server knows the distribution)."""
    assembly = assemble(load_config({**JOB, "train": {**JOB["train"], **train}}))
    own, all_ = assembly.shards[0].train.images, assembly.dataset.test.images
    assert own is not None
    assert all_ is not None
    return make_runner(assembly, "run", SystemEntropy(), None, None), assembly.model, own, all_


def job(model: TaskModel, start: Vector) -> ClientJob:
    return ClientJob(0, 0, model.layout.names, model.layout.names, start, 1.0)


def extracted(update: Vector, model: TaskModel) -> torch.Tensor:
    """What the server reads from one update: differences of neighbouring neurons' gradients, as images."""
    parts = model.layout.unflatten(update)
    w, b = parts["hidden.weight"].double(), parts["hidden.bias"].double()
    rows, weights = w[:-1] - w[1:], b[:-1] - b[1:]
    kept = weights.abs() > 1e-7
    return rows[kept] / weights[kept, None]


def recovered(found: torch.Tensor, images: np.ndarray[Any, Any]) -> float:
    """Share of the records that the server holds to within a hundredth in every pixel (a grey level is six)."""
    truth = torch.from_numpy(images.reshape(len(images), -1)).double()
    return float((torch.cdist(truth, found, p=math.inf).min(1).values < 1e-2).float().mean())


def test_without_the_check_a_malicious_server_reads_records_from_one_update(home: Path) -> None:
    runner, model, own, all_ = client()
    outcome = runner.run_job(job(model, imprint(model, all_)))
    assert outcome.update is not None
    assert recovered(extracted(outcome.update.vector, model), own) > 0.3
    honest = runner.run_job(job(model, honest_start(model)))
    assert honest.update is not None
    assert recovered(extracted(honest.update.vector, model), own) < 0.05


def honest_start(model: TaskModel) -> Vector:
    """A fresh net of the same shape, as an honest server would send it."""
    fresh = load_model(model.config, classes=10, image_shape=(1, 8, 8))
    return fresh.read(fresh.layout)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_with_the_check_the_client_refuses_before_it_trains(home: Path, noise: float) -> None:
    runner, model, _, all_ = client(inspect_model=True)
    with pytest.raises(SuspiciousModelError, match=r"client 0, round 0: .*hidden\.weight: repeated rows"):
        runner.run_job(job(model, imprint(model, all_, noise)))
    assert runner.run_job(job(model, honest_start(model))).update is not None


def test_an_honest_job_is_played_with_the_check_on(home: Path, tmp_path: Path) -> None:
    job = {"train.inspect_model": True, "rounds": 30, "train.learning_rate": 0.5, "evaluate.every": 0}
    assert run(JOB, job, folder=tmp_path / "out").metrics["accuracy"] > 0.7


# ------------------------------------------------------------------------------------ tensor by tensor


def kinds(findings: Findings) -> set[str]:
    return {f.kind for f in findings.found}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(
    "shape", [(64, 256), (256, 64), (10, 784), (32, 3, 3, 3), (8, 384), (384, 8), (2, 384)]
)
def test_drawn_weights_of_any_shape_pass(shape: tuple[int, ...], scale: float) -> None:
    assert not inspect_model({"w": scale * gaussian(*shape), "b": torch.zeros(shape[0])}).suspicious


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_rows_alike_are_found_whatever_their_scale_and_sign(share: float, noise: float) -> None:
    w = gaussian(128, 200)
    count = int(share * 128)
    w[:count] = gaussian(count, 1, seed=2) * (gaussian(1, 200, seed=3) + noise * gaussian(count, 200, seed=4))
    assert "repeated rows" in kinds(inspect_model({"w": w}))
    assert most_alike(w) >= count * 0.9


def test_columns_alike_are_found() -> None:
    assert "repeated columns" in kinds(inspect_model({"w": gaussian(64, 1).expand(64, 100)}))


def test_an_imprint_in_a_convolution_is_found() -> None:
    assert "repeated rows" in kinds(inspect_model({"w": gaussian(1, 16, 3, 3).expand(32, 16, 3, 3)}))


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(64, 64), "zeroed"),
        (torch.eye(64), "zeroed"),  # hands its input through
        (torch.full((64, 64), 0.1), "constant"),
        (1e4 * torch.ones(4), "scale"),
        (torch.tensor([1.0, math.nan]), "not finite"),
        (torch.tensor([1.0, math.inf]), "not finite"),
    ],
)
def test_parts_that_no_training_leaves_behind_are_found(tensor: torch.Tensor, kind: str) -> None:
    assert kind in kinds(inspect_model({"w": tensor}))


def test_a_fresh_factor_b_may_be_zero_and_no_other_matrix() -> None:
    zero = torch.zeros(384, 8)
    assert not inspect_model({"layer.lora_B.default.weight": zero}).suspicious
    assert not inspect_model({"head": zero}, may_be_zero=["head"]).suspicious
    assert inspect_model({"layer.lora_A.default.weight": zero}).suspicious
    half = zero.clone()
    half[:100] = gaussian(100, 8)
    assert inspect_model({"layer.lora_B.default.weight": half}).suspicious  # not fresh, and mostly zero


def test_what_was_not_compared_is_named() -> None:
    assert inspect_model({"vocabulary": gaussian(9000, 4)}).unseen == ("vocabulary",)


def test_a_refusal_names_tensor_value_and_bound() -> None:
    assert str(inspect_model({"w": torch.zeros(64, 64)})) == "w: zeroed (1, bound 0.5)"


# ------------------------------------------------------------------------------------- honest models


@pytest.mark.model("minilm")
@pytest.mark.parametrize("adapter", ["full", "rolora", "lora"])
def test_minilm_passes_with_and_without_a_fresh_adapter(adapter: Any) -> None:
    model = load_model(ModelConfig(name="minilm", adapter=adapter), classes=2)
    fresh = [n for n, part in model.part_of.items() if part in ("B", "head")]
    assert not inspect_model(dict(model.module.named_parameters()), may_be_zero=fresh).suspicious
    sent = {n: p.detach() for n, p in model.parameters.items()}
    assert not inspect_model(sent, may_be_zero=fresh).suspicious


@pytest.mark.slow
@pytest.mark.model("smollm2")
def test_smollm2_passes() -> None:
    model = load_model(ModelConfig(name="smollm2", task="causal-lm", adapter="lora"))
    assert not inspect_model(dict(model.module.named_parameters())).suspicious
