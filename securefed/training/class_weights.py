"""What a record's loss is multiplied with by its label, for clients whose classes are uneven.

Public constants bound nothing away: each record's weighted gradient is clipped after the weight, so the sensitivity
of a step stays the clip. Weights from a client's own counts depend on all its records together, so they are for
jobs without example-level DP (`config.uneven`); under client-level DP the whole client is hidden, counts and all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from securefed.data.batch import Batch, Encoded

if TYPE_CHECKING:
    from securefed.config import TrainConfig
    from securefed.models.task_model import TaskModel


@dataclass(frozen=True)
class WeightedLosses:
    """A model's losses by record, weighted.

    Attributes:
        smoothing: of the labels. weights: float32 (k,), one for each class; None weighs all alike.
    """

    model: TaskModel
    smoothing: float = 0.0
    weights: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: TaskModel, data: Encoded, config: TrainConfig) -> WeightedLosses:
        """As the job says; "balanced" gives each class that the client holds the same weight in sum, n / classes held."""
        named = config.class_weights
        if named == "none" or model.measures_centre:
            return cls(model, config.label_smoothing)
        if not isinstance(named, str):
            weights = torch.tensor(named, dtype=torch.float32)
        else:
            assert data.labels is not None
            counts = torch.bincount(torch.from_numpy(data.labels), minlength=model.classes).float()
            weights = counts.sum() / (counts.clamp(min=1) * (counts > 0).sum())
        return cls(model, config.label_smoothing, weights.to(model.device))

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(what is trained on, the losses without weights), both float32 (b,)."""
        losses = self.model.losses(batch, self.smoothing)
        if self.weights is None:
            return losses, losses
        assert batch.labels is not None
        return losses * self.weights[batch.labels.to(losses.device)], losses
