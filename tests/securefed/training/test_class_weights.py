"""Weighted losses: public constants under any privacy, a client's own counts only where they are covered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from securefed.config import TrainConfig, load_config
from securefed.data.batch import Batch, Encoded
from securefed.errors import ConfigError
from securefed.training.class_weights import WeightedLosses

PRIVATE = {"privacy.epsilon": 3.0, "train.steps": 2}


class Fixed:
    """A model whose losses are 1, 2, 3, ... whatever the records."""

    classes, measures_centre, device = 3, False, torch.device("cpu")

    def losses(self, batch: Batch, smoothing: float) -> torch.Tensor:
        assert batch.labels is not None
        return torch.arange(1.0, len(batch.labels) + 1)


def losses(labels: list[int], weights: Any) -> list[float]:
    data = Encoded(images=np.zeros((len(labels), 1, 1, 1), np.float32), labels=np.array(labels))
    found = WeightedLosses.of(Fixed(), data, TrainConfig(class_weights=weights))  # type: ignore[arg-type]  # a stand-in
    trained, plain = found(Batch(labels=torch.tensor(labels)))
    assert plain.tolist() == [float(i + 1) for i in range(len(labels))]
    return trained.tolist()


def test_a_records_loss_is_multiplied_with_its_classs_constant() -> None:
    assert losses([0, 2, 1], (1.0, 10.0, 0.5)) == [1.0, 1.0, 30.0]
    assert losses([0, 2, 1], "none") == [1.0, 2.0, 3.0]


def test_balanced_gives_every_class_that_a_client_holds_the_same_weight_in_sum() -> None:
    found = losses([0, 0, 0, 1], "balanced")  # n / (classes held x count): 4/6 and 4/2
    assert found == pytest.approx([2 / 3, 4 / 3, 2.0, 8.0])


def test_counts_of_private_labels_are_refused_under_example_level_dp_only() -> None:
    asked = {"train.class_weights": "balanced"}
    with pytest.raises(ConfigError, match=r"give public constants, train\.class_weights = \[1\.0, 3\.0\]"):
        load_config({}, {**PRIVATE, **asked, "privacy.unit": "example"})
    load_config({}, {**PRIVATE, **asked, "privacy.unit": "client"})
    load_config({}, {"train.epochs": 1, **asked})
    load_config({}, {**PRIVATE, "privacy.unit": "example", "train.class_weights": [1.0, 3.0]})


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -2.0], [1.0]])
def test_a_weight_that_is_not_above_zero_is_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="one number above 0 for each class"):
        load_config({}, {"train.epochs": 1, "train.class_weights": weights})


def test_a_task_without_labels_has_no_weights() -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        load_config({}, {"train.epochs": 1, "model.task": "causal-lm", "train.class_weights": "balanced"})
