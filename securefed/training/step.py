"""A client's part of one step of the federation's DP-SGD: sample in secret, clip each record's gradient, add up.

Abadi et al. 2016 (arXiv 1607.00133), algorithm 1, up to its sum. The noise that a client adds is
`StepNoise.part`'s, or the integers' of a masked sum, which takes the clipped gradients row by row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.config import TrainConfig
from securefed.crypto.entropy import Entropy
from securefed.data.batch import Encoded
from securefed.errors import ModelError
from securefed.privacy.step_noise import StepNoise
from securefed.training.class_weights import WeightedLosses
from securefed.training.dp_work import (
    GRAD_SAMPLE,
    Seen,
    backward,
    clipped_rows,
    clipped_sum,
    draw,
    refuse_dropout,
)
from securefed.training.feed import Feed
from securefed.training.frozen_cache import FrozenCache
from securefed.training.self_check import check_gradients
from securefed.types import Update, Vector
from securefed.undisturbed import undisturbed

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel
    from securefed.training.client import ClientJob
    from securefed.training.ghost import GhostGradients


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """One client's part of a step.

    Attributes:
        update: new minus old at learning rate 1, with its share of the noise where that is a real number, and
            the records' gradients as rows where the noise is in integers; not yet safe to show to anybody.
        diagnostics: from private data; for simulations, never sent.
    """

    update: Update = field(repr=False)
    diagnostics: dict[str, float]
    seconds: float


def step(
    model: TaskModel,
    data: Encoded,
    job: ClientJob,
    config: TrainConfig,
    noise: StepNoise,
    entropy: Entropy,
    *,
    mode: str = "hooks",
    cache: FrozenCache | None = None,
    check: bool = False,
    known: bool = False,
) -> StepResult:
    """The client's part of the step at `job.start`.

    Args:
        cache: hidden states of frozen layers, if they may be kept in memory.
        check: compare per-sample gradients with autograd first.
        known: this model has trained these tensors under DP before, so its modules are not looked through again.

    Raises:
        SelfCheckError: `check` found gradients that are not the records' own.
        ModelError: a model whose records cannot be told apart. PrivacyError: a model with dropout.
    """
    with undisturbed():
        from securefed.training.dp import per_sample_gradients
    began = time.perf_counter()
    model.write(job.start, model.layout)
    model.set_trainable(job.train)
    model.begin_round(job.round)
    model.module.train()
    refuse_dropout(model.module)
    states = None
    if cache is not None:
        bounds = {"physical_tokens": config.physical_tokens, "physical_batch": config.physical_batch}
        states = cache.states(model, data, job.train, **bounds)
    feed = Feed(data, model.device, states)
    layout = model.layout.select(set(job.share).__contains__)
    work = _Step(model, feed, {n: model.parameters[n] for n in layout.names}, config, noise)
    if mode == "ghost" and noise.mechanisms:
        raise ModelError(
            'noise in integers needs each record\'s own row, which ghost clipping never writes; set privacy.grad_sample_mode = "hooks"'
        )
    with per_sample_gradients(model.module, mode, known=known) as work.ghost:
        if check:
            check_gradients(model, feed, work.parameters, config.label_smoothing, work.ghost)
        drawn = draw(entropy.stream("sampling", job.client, job.round), len(feed), noise.sample_rate)
        stream = entropy.stream("noise share", job.client, job.round)
        if noise.mechanisms:
            rows = work.rows(drawn) * np.float32(-1 / noise.expected)
            vector: Vector = rows.sum(0, dtype=np.float64).astype(np.float32)
            update = Update(job.client, job.round, vector, job.weight, rows=rows)
        else:
            update = Update(job.client, job.round, noise.part(work.total(drawn), stream), job.weight)
        model.module.zero_grad(set_to_none=True)
    return StepResult(update, work.diagnostics(), time.perf_counter() - began)


class _Step:
    """The records of one client in front of the model."""

    def __init__(
        self,
        model: TaskModel,
        feed: Feed,
        parameters: dict[str, nn.Parameter],
        config: TrainConfig,
        noise: StepNoise,
    ) -> None:
        self.model, self.feed, self.parameters = model, feed, parameters
        self.config, self.noise = config, noise
        self.size = sum(p.numel() for p in parameters.values())
        self.seen, self.losses = Seen(), [torch.zeros(0)]
        self.weighted = WeightedLosses.of(model, feed.data, config)
        self.ghost: GhostGradients | None = None

    def total(self, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of the clipped gradients, float64 (d,); zero for an empty batch."""
        found = np.zeros(self.size)
        for piece in self._pieces(drawn):
            self._pass(piece)
            if self.ghost is None:
                found += clipped_sum(self._written(), self.noise.record_norm, self.seen)
            else:
                found += self._products(self.ghost)
        return found

    def rows(self, drawn: NDArray[np.int64]) -> NDArray[np.float32]:
        """The clipped gradients, float32 (b, d); b is 0 for an empty batch."""
        found = [np.zeros((0, self.size), np.float32)]
        for piece in self._pieces(drawn):
            self._pass(piece)
            found.append(clipped_rows(self._written(), self.noise.record_norm, self.seen))
        return np.concatenate(found)

    def _pieces(self, drawn: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return self.feed.pieces(drawn, self.config.physical_tokens, self.config.physical_batch)

    def _pass(self, piece: NDArray[np.int64]) -> None:
        """These records' forward and backward pass."""
        for p in self.parameters.values():
            setattr(p, GRAD_SAMPLE, None)
        losses, plain = self.weighted(self.feed.batch(piece))
        self.losses.append(plain.detach())
        backward(losses, self.ghost)

    def _written(self) -> list[torch.Tensor]:
        return [getattr(p, GRAD_SAMPLE) for p in self.parameters.values()]

    def _products(self, ghost: GhostGradients) -> NDArray[np.float64]:
        sums = {p: torch.zeros_like(p, dtype=torch.float64) for p in self.parameters.values()}
        ghost.clip_into(sums, self.noise.record_norm, self.seen)
        return torch.cat([s.flatten().cpu() for s in sums.values()]).numpy()

    def diagnostics(self) -> dict[str, float]:
        losses = torch.cat(self.losses).double()
        norms = torch.cat(self.seen.norms) if self.seen.norms else torch.zeros(1)
        return {
            "loss": float(losses.sum()) / max(1, len(losses)),
            "clipped_share": float((norms > self.noise.clip).double().mean()),
            "median_gradient_norm": float(norms.median()),
            "empty_batches": float(len(losses) == 0),
            "non_finite_gradients": float(self.seen.dropped),
        }
