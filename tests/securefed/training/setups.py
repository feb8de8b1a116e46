"""Small models with real shapes, for the tests of local training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import ModelConfig, TrainConfig
from securefed.data.batch import Encoded
from securefed.data.records import Examples
from securefed.models import TaskModel, load_model
from securefed.training import frozen_cache
from tests.securefed.models import tiny

IMAGES = ModelConfig(name="logistic", adapter="full")


def images(n: int = 40, seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    return Encoded(images=rng.random((n, 1, 4, 4), dtype=np.float32), labels=rng.integers(0, 3, n))


def logistic() -> TaskModel:
    return load_model(IMAGES, classes=3, image_shape=(1, 4, 4))


def bert(folder: Path, **changes: Any) -> TaskModel:
    config = ModelConfig(**{"name": str(tiny.tiny_bert(folder)), "rank": 2, **changes})
    return load_model(config, classes=2, unit="example", max_length=16)


def llama(folder: Path, **changes: Any) -> TaskModel:
    """A language model of three layers, all but the top one frozen."""
    path = tiny.tiny_llama(folder, layers=3)
    config = ModelConfig(**{"name": str(path), "task": "causal-lm", "rank": 2, "layers": 1, **changes})
    return load_model(config, unit="example", max_length=16)


def texts(model: TaskModel, n: int = 12) -> Encoded:
    return model.encode(tiny.examples(n), 16)


def train(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 1, "learning_rate": 0.5, "physical_tokens": 64, **changes})


def stirred(model: TaskModel, seed: int = 3) -> np.ndarray:
    """Random values for every trainable tensor, so that no B is zero."""
    rng = np.random.default_rng(seed)
    values: np.ndarray = rng.normal(0, 0.2, model.layout.size).astype(np.float32)
    return values


def sentences(n: int) -> Examples:
    return tiny.examples(n)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The stage of each pass through frozen layers that is really computed, as it goes on."""
    compute, found = frozen_cache._compute, []

    def watched(model: Any, feed: Any, stage: int, *rest: Any) -> Any:
        found.append(stage)
        return compute(model, feed, stage, *rest)

    monkeypatch.setattr(frozen_cache, "_compute", watched)
    return found
