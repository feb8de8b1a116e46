"""Local optimizers and their schedules: fresh in every round, so a client keeps no state between rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from securefed.config import Schedule, TrainConfig

if TYPE_CHECKING:
    from securefed.training.local import LocalWork


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    part_of: Mapping[str, str],
    config: TrainConfig,
    work: LocalWork,
    clip: float | None = None,
) -> torch.optim.Optimizer:
    """SGD or AdamW over these tensors, the head at its own rate if the job gives one.

    AdamW's weight decay is decoupled: it shrinks the weights and never enters a noised gradient.
    """
    scale = _own_rate(config, work.client) * work.rate
    head = config.learning_rate if config.head_learning_rate is None else config.head_learning_rate
    groups = []
    for is_head, rate in ((False, config.learning_rate), (True, head)):
        members = [p for name, p in parameters.items() if (part_of[name] == "head") == is_head]
        if members:
            groups.append({"params": members, "lr": rate * scale})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def centre_optimizer(parameters: Mapping[str, nn.Parameter], clip: float | None) -> torch.optim.Optimizer:
    """For a head's centre, which is measured, not descended to: one plain step from zero gives the mean.

    At zero every record's gradient has length one (its features have), so a clip below one meets all
    records alike and the rate undoes it.
    """
    return torch.optim.SGD(parameters.values(), lr=1 / min(1.0, clip or 1.0))


def _own_rate(config: TrainConfig, client: int) -> float:
    """A client's override, as a factor on every rate of the job."""
    own = config.client_learning_rate.get(str(client))
    return 1.0 if own is None else own / config.learning_rate


def rate_factor(schedule: Schedule, step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate in step 0 <= step < steps of a round: warm-up, then the schedule."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0
