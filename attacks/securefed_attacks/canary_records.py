"""Records whose gradient is a canary's direction, so that an audit goes through a real training path unchanged.

A linear classifier's gradient is its input times the error. So a record whose features are a canary's direction,
enlarged until its gradient is far above the clip, contributes exactly clip x direction to every step it is in,
whatever the weights have become, while it is not learned; a record of zeros contributes exactly nothing.
The trained path sees nothing but records: no hook, no patched optimizer.

Unit: one record; neighbours: one record blanked out in its place (zero-out), as the coin of a canary does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import TensorDataset

from securefed_attacks.canaries import Assumed, Canaries, DPAudit, one_run_audit

LOUD = 100.0
"""Length of a canary's features; its gradient is about half of that, to be clipped to the norm that is claimed."""

Train = Callable[[nn.Module, TensorDataset], float]
"""Trains the model in place on the records, privately, with the mean of `canary_loss`; gives the epsilon it claims."""


def canary_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean logistic loss of logits (n, 1) and labels (n,) in {0, 1}."""
    return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(-1), labels)


def canary_dataset(canaries: Canaries, blank: float = 0.0) -> TensorDataset:
    """(features float32 (m, d), labels ones (m,)): one record a canary.

    Args:
        blank: the features of one whose coin said out. Zeros have no gradient in a model without bias, whatever
            trains it. Not a number has none in training that drops such records: `make_private` does, and needs it,
            since its step-one check may learn nothing from zeros.
    """
    rows = torch.stack([torch.from_numpy(canaries.contribution(j, LOUD)) for j in range(canaries.m)])
    rows[~torch.from_numpy(canaries.included)] = blank
    return TensorDataset(rows, torch.ones(canaries.m))


def canary_model(d: int) -> nn.Linear:
    """The linear model that the records are made for: d weights, all zero, no bias (a blank would move it)."""
    model = nn.Linear(d, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


@dataclass(frozen=True)
class RecordAudit:
    """An audit of example-level DP training, called with the code that trains.

    Attributes:
        delta: of the claim. confidence: of the bound. assumes: see `one_run_audit`.
    """

    delta: float
    confidence: float = 0.95
    assumes: Assumed = "nothing"

    def __call__(self, train: Train, canaries: Canaries, blank: float = 0.0) -> DPAudit:
        """Trains once on the canaries' records and holds what the weights became against the claim.

        A rate so high that canaries are learned (logits of `LOUD` x weight above 3 or so) costs power, never validity.
        """
        model, data = canary_model(canaries.d), canary_dataset(canaries, blank)
        claimed = train(model, data)
        moved = model.weight.detach().double().flatten().numpy()
        return one_run_audit(
            canaries.scores(moved),
            canaries.included,
            delta=self.delta,
            confidence=self.confidence,
            claimed=claimed,
            assumes=self.assumes,
        )
