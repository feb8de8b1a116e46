"""How the aggregate changes the global model: FedAvg, FedAvgM, FedAdam, FedYogi.

Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv 2003.00295v5), Algorithm 2; FedAvgM after
Hsu et al. 2019 (arXiv 1909.06335). The aggregate (new minus old) is the pseudo-gradient, so it is added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from securefed.config import ServerConfig, ServerOptimizerName
from securefed.types import Vector

Moment = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moment of every coordinate of the global model, float32 (d,)."""

    first: Moment
    second: Moment

    @classmethod
    def zeros(cls, size: int) -> Moments:
        return cls(np.zeros(size, np.float32), np.zeros(size, np.float32))


def server_step(
    name: ServerOptimizerName,
    model: Vector,
    delta: Vector,
    moments: Moments,
    *,
    learning_rate: float,
    momentum: float,
    beta2: float,
    tau: float,
) -> tuple[Vector, Moments]:
    """The new model and moments after one aggregate; all arrays float32 (d,), arguments unchanged.

    `tau` is the paper's degree of adaptivity: it bounds the step of a coordinate by learning_rate *
    |m| / tau. The second moment starts at 0 rather than tau^2 (the paper asks for >= tau^2 in its
    proof); tau in the denominator already keeps the first step finite.
    """
    if name == "fedavg":
        return model + np.float32(learning_rate) * delta, moments
    if name == "fedavgm":
        first = np.float32(momentum) * moments.first + delta
        return model + np.float32(learning_rate) * first, replace(moments, first=first)
    first = np.float32(momentum) * moments.first + np.float32(1 - momentum) * delta
    square = delta * delta
    if name == "fedadam":
        second = np.float32(beta2) * moments.second + np.float32(1 - beta2) * square
    else:
        second = moments.second - np.float32(1 - beta2) * square * np.sign(moments.second - square)
    step = np.float32(learning_rate) * first / (np.sqrt(second) + np.float32(tau))
    return (model + step).astype(np.float32), Moments(first, second)


def rate_at(config: ServerConfig, base: float, progress: float) -> float:
    """The server's learning rate at `progress` in [0, 1) of the phase; a linear or cosine fall ends at 5 %."""
    if config.schedule == "linear":
        return base * max(0.05, 1 - progress)
    if config.schedule == "cosine":
        return base * max(0.05, 0.5 * (1 + float(np.cos(np.pi * progress))))
    return base
