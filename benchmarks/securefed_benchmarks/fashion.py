"""Fashion-MNIST and a net of one hidden layer, lean enough for hundreds of robustness runs on one core.

All clients of a round train at once: per-client gradients through `torch.func`, the model as one vector (d,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad, vmap
from torch.nn import functional as F

from securefed.config import DataConfig
from securefed.data import load_dataset
from securefed.data.partition import dirichlet
from securefed.data.records import Examples

PIXELS, CLASSES = 784, 10
MEAN, STD = 0.2860, 0.3530
"""Of the training images' pixels."""


@dataclass(frozen=True)
class Net:
    """784 - hidden - 10 with ReLU, as one vector of d numbers."""

    hidden: int = 32

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.hidden, PIXELS), (self.hidden,), (CLASSES, self.hidden), (CLASSES,)

    @property
    def size(self) -> int:
        """d."""
        return sum(int(np.prod(s)) for s in self.shapes)

    def first(self, seed: int) -> torch.Tensor:
        """A drawn model (d,): He's initialization, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        w1 = torch.randn(self.hidden, PIXELS, generator=generator) * (2 / PIXELS) ** 0.5
        w2 = torch.randn(CLASSES, self.hidden, generator=generator) * (1 / self.hidden) ** 0.5
        return torch.cat([w1.flatten(), torch.zeros(self.hidden), w2.flatten(), torch.zeros(CLASSES)])

    def parts(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Weights and biases, in the order of `shapes`."""
        pieces = torch.split(vector, [int(np.prod(s)) for s in self.shapes])
        return [p.reshape(s) for p, s in zip(pieces, self.shapes, strict=True)]

    def logits(self, vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(b, 10) for images (b, 784)."""
        w1, b1, w2, b2 = self.parts(vector)
        return F.linear(F.linear(x, w1, b1).relu(), w2, b2)

    def loss(self, vector: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.logits(vector, x), y)

    def accuracy(self, vector: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
        """Share of right answers."""
        return float((self.logits(vector, x).argmax(1) == y).float().mean())


def gradients(net: Net, vector: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Each client's gradient (h, d) at one model (d,): x (h, b, 784), y (h, b).

    Written out, because it is half of a run's time; a test holds it against `torch.func`.
    """
    w1, b1, w2, b2 = net.parts(vector)
    hidden = F.linear(x, w1, b1)
    active = hidden.relu()
    error = (F.linear(active, w2, b2).softmax(-1) - F.one_hot(y, CLASSES)) / y.shape[1]
    back = (error @ w2) * (hidden > 0)
    layers = (back.transpose(1, 2) @ x, back.sum(1), error.transpose(1, 2) @ active, error.sum(1))
    return torch.cat([layer.reshape(len(x), -1) for layer in layers], 1)


def local_updates(
    net: Net,
    vector: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    epochs: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Each client's update (n, d), new minus old, after local SGD: x (n, m, 784), y (n, m)."""
    step: Callable[..., torch.Tensor] = vmap(grad(net.loss), in_dims=(0, 0, 0))
    n, m = y.shape
    models = vector.expand(n, -1).clone()
    clients = torch.arange(n)[:, None]
    for _ in range(epochs):
        order = torch.rand(n, m, generator=generator).argsort(1)
        for start in range(0, m - batch + 1, batch):
            rows = order[:, start : start + batch]
            models -= rate * step(models, x[clients, rows], y[clients, rows])
    return models - vector


@cache
def data() -> tuple[Examples, Examples]:
    """(train, test) as published."""
    found = load_dataset(DataConfig(name="fashion-mnist"), task="classification")
    return found.train, found.test


@cache
def whole() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """`tensors` of the training and of the test images."""
    train, test = data()
    return tensors(train), tensors(test)


def tensors(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized images (n, 784) and labels (n,)."""
    assert examples.images is not None
    assert examples.labels is not None
    flat = torch.from_numpy(examples.images).reshape(len(examples), -1)
    return (flat - MEAN) / STD, torch.from_numpy(examples.labels)


def split(
    labels: NDArray[np.int64], clients: int, alpha: float, floor: int, seed: int
) -> list[NDArray[np.int64]]:
    """Label-skewed shards, at least `floor` records each."""
    return dirichlet(labels, CLASSES, clients, alpha, floor, np.random.default_rng(seed))
