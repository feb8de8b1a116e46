"""Small captured updates for the audit's tests: a hand-written loop on noise that a net must learn by heart."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

RECIPE = {"optimizer": "sgd", "steps": 60, "learning_rate": 0.5, "batch_size": 20}


@dataclass(frozen=True, eq=False)
class Scene:
    """A model, the states around its training, records, and which were trained on."""

    model: nn.Module
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    x: torch.Tensor
    y: torch.Tensor
    member: np.ndarray[Any, np.dtype[np.bool_]]

    def given(self, **more: Any) -> dict[str, Any]:
        """Arguments of an audit of this scene."""
        return {
            "base": self.model,
            "recipe": RECIPE,
            "candidates": (self.x, self.y),
            "is_member": self.member,
            "shadows": 0,
            **more,
        }


def net(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 4))


def train(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 60, rate: float = 0.5, batch: int = 20
) -> dict[str, torch.Tensor]:
    """What a plain loop leaves behind; the model given stays as it is."""
    trained = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(trained.parameters(), rate)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=generator)[:batch]
        optimizer.zero_grad()
        F.cross_entropy(trained(x[rows]), y[rows]).backward()
        optimizer.step()
    return {k: v.clone() for k, v in trained.state_dict().items()}


def noise(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Records without any pattern: what is learned of them is learned by heart."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 32, generator=generator), torch.randint(0, 4, (n,), generator=generator)


@functools.cache
def memorized(members: int = 40, others: int = 200, steps: int = 400) -> Scene:
    """Members learned by heart, with non-members of the same distribution."""
    x, y = noise(members + others, 0)
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = train(model, x[:members], y[:members], steps)
    return Scene(model, before, after, x, y, np.arange(members + others) < members)


@functools.cache
def unrelated(members: int = 40, others: int = 200) -> Scene:
    """Trained on records that are not among the candidates: whatever is found is a false alarm."""
    x, y = noise(members + others, 0)
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = train(model, *noise(members, 99), steps=400)
    return Scene(model, before, after, x, y, np.arange(members + others) < members)
