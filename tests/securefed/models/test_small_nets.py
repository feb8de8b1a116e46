from __future__ import annotations

import numpy as np
import pytest
import torch

from securefed.config import ModelConfig
from securefed.data.batch import collate
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.models import load_model


def net(name: str, **changes: object) -> ModelConfig:
    return ModelConfig(name=name, adapter="full", **changes)  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("logistic", 784 * 10 + 10),
        ("mlp", 784 * 128 + 128 + 128 * 10 + 10),
        ("cnn", 9 * 16 + 16 + 16 * 9 * 32 + 32 + 800 * 10 + 10),
    ],
)
def test_sizes_are_those_of_the_benchmarks(name: str, numbers: int) -> None:
    model = load_model(net(name), classes=10, image_shape=(1, 28, 28))
    assert model.layout.size == numbers
    assert set(model.part_of.values()) == {"base"}
    assert not list(model.module.buffers())  # no batch normalization
    images = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    batch = collate(model.encode(Examples(images=images, labels=np.array([0, 9, 4])), 1), [2, 0])
    assert model.logits(batch).shape == (2, 10)
    assert model.losses(batch).shape == (2,)
    assert model.depth == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 10, 17)])
def test_other_image_shapes_work(shape: tuple[int, int, int]) -> None:
    names = ("mlp", "logistic") if min(shape[1:]) < 10 else ("mlp", "logistic", "cnn")
    for name in names:
        model = load_model(net(name, hidden=4), classes=2, image_shape=shape)
        images = np.zeros((2, *shape), np.float32)
        encoded = model.encode(Examples(images=images, labels=np.array([0, 1])), 1)
        assert torch.isfinite(model.losses(collate(encoded, [0, 1]))).all()


def test_the_seed_alone_decides_the_start() -> None:
    def start(seed: int) -> np.ndarray:  # type: ignore[type-arg]  # float32 (d,)
        model = load_model(net("mlp", seed=seed), classes=3, image_shape=(1, 8, 8))
        return model.read(model.layout)

    first = start(1)
    torch.manual_seed(42)
    assert np.array_equal(first, start(1))
    assert not np.array_equal(first, start(2))


def test_what_a_net_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 10 x 10"):
        load_model(net("cnn"), classes=2, image_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="classifies images"):
        load_model(net("mlp"), classes=2)
    with pytest.raises(ModelError, match='adapter = "full"'):
        load_model(ModelConfig(name="mlp"), classes=2, image_shape=(1, 8, 8))
    model = load_model(net("mlp"), classes=2, image_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="shape"):
        model.encode(Examples(images=np.zeros((1, 1, 9, 9), np.float32), labels=np.array([0])), 1)
    with pytest.raises(ModelError, match="reads images"):
        model.encode(Examples(texts=("a",), labels=np.array([0])), 1)
