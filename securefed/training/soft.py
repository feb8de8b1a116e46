"""Learning from soft labels, and giving them: both on public records, so nothing here is private or counted.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from securefed.config import TrainConfig
from securefed.data.batch import Encoded
from securefed.errors import DivergedError
from securefed.training.feed import Feed
from securefed.training.frozen_cache import FrozenCache
from securefed.training.local import LocalWork
from securefed.training.optimizers import make_optimizer, rate_factor
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


def learn_from(
    model: TaskModel,
    data: Encoded,
    targets: NDArray[np.float32],
    start: Vector,
    config: TrainConfig,
    *,
    steps: int,
    batch_size: int,
    temperature: float,
    work: LocalWork,
    seed: int,
    cache: FrozenCache | None = None,
) -> Vector:
    """The model (d,) after `steps` steps towards the soft labels `targets`, float32 (m, k), from `start`.

    The loss is the cross-entropy with the targets of softmax(logits / temperature), times temperature squared, which keeps
    the size of its gradient (section 2.1). The optimizer, its rates and their schedule are `config`'s; the order of records
    depends on (seed, client, round) only.

    Raises:
        DivergedError: a weight is no longer finite.
    """
    model.write(start, model.layout)
    if steps == 0:
        return start
    model.set_trainable(work.train)
    model.module.train()
    parameters = {n: model.parameters[n] for n in sorted(work.train)}
    optimizer = make_optimizer(parameters, model.part_of, config, work)
    rates = [group["lr"] for group in optimizer.param_groups]
    bounds = {"physical_tokens": config.physical_tokens, "physical_batch": config.physical_batch}
    states = None if cache is None else cache.states(model, data, work.train, **bounds)
    feed, soft = Feed(data, model.device, states), torch.from_numpy(targets).to(model.device)
    generator = np.random.default_rng([seed, 0x50F7, work.client + 1, work.round])
    rows = np.empty(0, np.int64)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(config.schedule, step, steps, config.warmup_steps)
        if not len(rows):
            rows = generator.permutation(len(data))
        taken, rows = rows[:batch_size], rows[batch_size:]
        optimizer.zero_grad(set_to_none=True)
        for piece in feed.pieces(taken, config.physical_tokens, config.physical_batch):
            logits = model.logits(feed.batch(piece)).float() / temperature
            losses = -(soft[torch.from_numpy(piece).to(soft.device)] * F.log_softmax(logits, -1)).sum(-1)
            (losses.sum() * (temperature**2 / len(taken))).backward()
        optimizer.step()
    vector = model.read(model.layout)
    if not np.isfinite(vector).all():
        raise DivergedError(
            f"round {work.round}: learning from soft labels left the finite numbers; lower the learning rate"
        )
    return vector


@torch.no_grad()
def answers(
    model: TaskModel, data: Encoded, config: TrainConfig, cache: FrozenCache | None = None
) -> NDArray[np.float32]:
    """The model's logits, float32 (m, k), in the records' order; dropout off, its mode left as it was."""
    training = model.module.training
    model.module.eval()
    found: NDArray[np.float32] = np.zeros((len(data), model.classes), np.float32)
    bounds = {"physical_tokens": config.physical_tokens, "physical_batch": config.physical_batch}
    heads = [name for name, part in model.part_of.items() if part == "head"]
    try:
        states = None if cache is None else cache.states(model, data, heads, **bounds)
        feed = Feed(data, model.device, states)
        for rows in feed.pieces(np.arange(len(data)), config.physical_tokens, config.physical_batch):
            found[rows] = model.logits(feed.batch(rows)).float().cpu().numpy()
    finally:
        model.module.train(training)
    return found
