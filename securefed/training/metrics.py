"""What a model scores on labelled records: predictions once, scores over any union of them.

On private data these are simulation diagnostics: no guarantee covers them, so a real client never sends
them and nothing may be stopped or tuned by them under DP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from securefed.data.batch import Encoded
from securefed.errors import DataError
from securefed.training.feed import Feed
from securefed.training.frozen_cache import FrozenCache

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


@dataclass(frozen=True, slots=True)
class Metrics:
    """Scores over `n` records; what does not apply to the task is None.

    Attributes:
        loss: mean cross-entropy in nats, per record; per predicted token for language models.
        balanced_accuracy: mean recall over the classes that occur.
        f1: of class 1, two classes only; 0 where precision and recall are both 0.
        perplexity: exp of the loss per token, language models only.
    """

    n: int
    loss: float
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    perplexity: float | None = None

    def values(self) -> dict[str, float]:
        """The scores that apply, by name (without n)."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n"}
        return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """One entry per record: loss (mean over its predictions), how many predictions, class and label.

    `predicted` and `labels` are empty for language models.
    """

    losses: NDArray[np.float64] = field(repr=False)
    counts: NDArray[np.int64] = field(repr=False)
    predicted: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)

    def joined(self, others: Sequence[Predictions]) -> Predictions:
        """These records and those of the others."""
        parts = (self, *others)
        return Predictions(
            np.concatenate([p.losses for p in parts]),
            np.concatenate([p.counts for p in parts]),
            np.concatenate([p.predicted for p in parts]),
            np.concatenate([p.labels for p in parts]),
        )

    def score(self, classes: int) -> Metrics:
        """The scores over all of them. Raises DataError where there is nothing to predict."""
        total = int(self.counts.sum())
        if total == 0:
            raise DataError(
                "no record to predict (or none of two tokens); raise data.test_fraction or use longer texts"
            )
        loss = float((self.losses * self.counts).sum() / total)
        if not len(self.labels):
            return Metrics(len(self.losses), loss, perplexity=math.exp(min(loss, 700.0)))
        right = self.predicted == self.labels
        recalls = [float(right[self.labels == k].mean()) for k in range(classes) if (self.labels == k).any()]
        f1 = None
        if classes == 2:
            hits = int((right & (self.labels == 1)).sum())
            named = int((self.predicted == 1).sum()) + int((self.labels == 1).sum())
            f1 = 2 * hits / named if named else 0.0
        return Metrics(len(self.losses), loss, float(right.mean()), float(np.mean(recalls)), f1)


@torch.no_grad()
def predict(
    model: TaskModel,
    data: Encoded,
    *,
    physical_tokens: int,
    physical_batch: int,
    cache: FrozenCache | None = None,
) -> Predictions:
    """The model's predictions, in the records' order; dropout off, its mode left as it was.

    Args:
        cache: hidden states of frozen layers, if they may be kept in memory.
    """
    training = model.module.training
    model.module.eval()
    classify = model.task == "classification"
    losses, counts = np.zeros(len(data)), np.ones(len(data), np.int64)
    predicted = np.zeros(len(data) if classify else 0, np.int64)
    try:
        heads = [name for name, part in model.part_of.items() if part == "head"]
        bounds = {"physical_tokens": physical_tokens, "physical_batch": physical_batch}
        states = None if cache is None else cache.states(model, data, heads, **bounds)
        feed = Feed(data, model.device, states)
        for rows in feed.pieces(np.arange(len(data)), physical_tokens, physical_batch):
            batch = feed.batch(rows)
            if classify:
                logits = model.logits(batch).float()
                assert batch.labels is not None
                losses[rows] = (
                    F.cross_entropy(logits, batch.labels.to(logits.device), reduction="none").cpu().numpy()
                )
                predicted[rows] = logits.argmax(-1).cpu().numpy()
            else:
                losses[rows] = model.losses(batch).cpu().numpy()
                counts[rows] = model.counts(batch).cpu().numpy()
    finally:
        model.module.train(training)
    labels = data.labels if classify and data.labels is not None else np.zeros(0, np.int64)
    return Predictions(losses, counts, predicted, labels)


def evaluate(
    model: TaskModel,
    data: Encoded,
    *,
    physical_tokens: int,
    physical_batch: int,
    classes: int,
    cache: FrozenCache | None = None,
) -> Metrics:
    """`predict`, scored."""
    found = predict(model, data, physical_tokens=physical_tokens, physical_batch=physical_batch, cache=cache)
    return found.score(classes)
