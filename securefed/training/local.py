"""One client's local training in one round, private or not: a flat model in, a flat model out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.config import TrainConfig
from securefed.crypto.entropy import Entropy
from securefed.data.batch import Encoded
from securefed.errors import DivergedError, ModelError, PrivacyError
from securefed.training.class_weights import WeightedLosses
from securefed.training.dp_work import (
    GRAD_SAMPLE,
    DPWork,
    Seen,
    backward,
    check_mechanism,
    draw,
    empty_step,
    has_dropout,
    refuse_dropout,
)
from securefed.training.feed import Feed
from securefed.training.frozen_cache import FrozenCache
from securefed.training.optimizers import centre_optimizer, make_optimizer, rate_factor
from securefed.training.self_check import check_gradients, check_step, snapshot
from securefed.types import Vector
from securefed.undisturbed import undisturbed

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel
    from securefed.training.dp import KeyedDPOptimizer

__all__ = ["DPWork", "LocalResult", "LocalWork", "train_locally"]


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What one client does in one round; all fields are public.

    Attributes:
        train: names of the tensors trained.
        phase: which of the round's trainings it is; each has batches and noise of its own.
        towards: where the proximal term draws to, float32 (d,) over the whole layout; None: the start.
        holds: 1 for each coordinate of the whole layout that this client holds, else 0; None where it holds all.
        rate: on every learning rate of the job.
    """

    client: int
    round: int
    train: tuple[str, ...]
    phase: int = 0
    towards: Vector | None = field(default=None, repr=False)
    holds: Vector | None = field(default=None, repr=False)
    rate: float = 1.0

    @property
    def labels(self) -> tuple[int, ...]:
        """What keeps its randomness apart from every other training's."""
        return (self.client, self.round, self.phase) if self.phase else (self.client, self.round)


@dataclass(frozen=True, slots=True, eq=False)
class LocalResult:
    """The client's model after its steps.

    Attributes:
        vector: float32 (d,) over the model's whole layout.
        steps: optimizer steps taken, empty batches included. examples: records seen.
        diagnostics: from private data; for simulations, never sent.
    """

    vector: Vector = field(repr=False)
    steps: int
    examples: int
    diagnostics: Mapping[str, float]
    seconds: float


def train_locally(
    model: TaskModel,
    data: Encoded,
    start: Vector,
    work: LocalWork,
    config: TrainConfig,
    *,
    dp: DPWork | None,
    entropy: Entropy | None,
    seed: int,
    cache: FrozenCache | None = None,
    check: bool = False,
    known: bool = False,
) -> LocalResult:
    """The model after this client's local steps from `start`.

    Without DP the order of records depends on (seed, client, round) only. With DP, batches and noise come
    from `entropy` and every record's influence on each step is bounded by `dp.max_grad_norm`: the result
    is a function of `dp` and `config.steps` sampled Gaussian releases.

    Args:
        start: float32 (d,) over `model.layout`. dp: the mechanism, None for no privacy.
        cache: hidden states of frozen layers, if they may be kept in memory.
        check: compare per-sample gradients with autograd and see that the first step changes the model.
        known: this model has trained these tensors under DP before, so its modules are not looked through again.

    Raises:
        SelfCheckError: `check` found that training does not do what its epsilon claims.
        ModelError: a model that cannot be trained so.
        DivergedError: a loss or weight that is no longer finite.
        PrivacyError: a mechanism that bounds nothing, or DP without entropy.
    """
    began = time.perf_counter()
    model.write(start, model.layout)
    model.set_trainable(work.train)
    model.begin_round(work.round)
    model.module.train()
    states = None
    if cache is not None:
        bounds = {"physical_tokens": config.physical_tokens, "physical_batch": config.physical_batch}
        states = cache.states(model, data, work.train, **bounds)
    clip = None if dp is None else dp.max_grad_norm
    steps = _Steps(model, Feed(data, model.device, states), work, config, clip)
    with _seeded_torch(model, seed, work):
        if dp is None:
            steps.play(seed)
        else:
            if entropy is None:
                raise PrivacyError("DP needs entropy: pass SystemEntropy()")
            refuse_dropout(model.module)
            check_mechanism(dp)
            steps.play_private(dp, entropy, check, known)
    vector = model.read(model.layout)
    if not np.isfinite(vector).all():
        raise DivergedError(
            f"client {work.client}, round {work.round}: the model is no longer finite; lower train.learning_rate"
        )
    return LocalResult(vector, steps.taken, steps.examples, steps.diagnostics(), time.perf_counter() - began)


class _Steps:
    """The loop's state: what is trained, what was seen."""

    def __init__(
        self, model: TaskModel, feed: Feed, work: LocalWork, config: TrainConfig, clip: float | None
    ) -> None:
        self.model, self.feed, self.work, self.config = model, feed, work, config
        self.parameters: dict[str, nn.Parameter] = {n: model.parameters[n] for n in sorted(work.train)}
        self.anchor = self._anchor()
        self.held = _masks(model, work)
        self.measures = model.measures_centre
        self.optimizer = (
            centre_optimizer(self.parameters, clip)
            if self.measures
            else make_optimizer(self.parameters, model.part_of, config, work)
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.losses = WeightedLosses.of(model, feed.data, config)
        self.taken = self.examples = 0
        self.seen_losses: list[torch.Tensor] = []
        self.seen = Seen()
        self.max_grad_norm: float | None = None

    def _anchor(self) -> dict[str, torch.Tensor]:
        """Where the proximal term draws each tensor to."""
        if not self.config.proximal_mu:
            return {}
        if self.work.towards is None:
            return {n: p.detach().clone() for n, p in self.parameters.items()}
        values = self.model.layout.unflatten(self.work.towards)
        return {n: values[n].to(p.device, p.dtype) for n, p in self.parameters.items()}

    # ----------------------------------------------------------------------------------- without DP

    def play(self, seed: int) -> None:
        """Epochs or steps over shuffled batches; the gradient is the mean over batch x accumulate."""
        c, n = self.config, len(self.feed)
        logical = c.batch_size * c.accumulate
        steps = c.steps or c.epochs * -(-n // logical)
        order = _shuffled(np.random.default_rng([seed, *self.work.labels]), n, logical)
        for step in range(steps):
            self._set_rates(step, steps)
            rows = next(order)
            self.optimizer.zero_grad(set_to_none=True)
            for piece in self._pieces(rows):
                losses, plain = self.losses(self.feed.batch(piece))
                self._note(plain)
                (losses.mean() if len(piece) == len(rows) else losses.sum() / len(rows)).backward()
            self._add_proximal()
            self._hold("grad")
            self.optimizer.step()
            self.taken += 1
            self.examples += len(rows)
        if not math.isfinite(self._total_loss()):
            raise DivergedError(
                f"client {self.work.client}, round {self.work.round}: the loss is no longer finite; lower train.learning_rate"
            )

    def _pieces(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        if self.config.accumulate == 1:
            return self.feed.pieces(rows, self.config.physical_tokens, self.config.physical_batch)
        found = []
        for i in range(0, len(rows), self.config.batch_size):
            part = rows[i : i + self.config.batch_size]
            found += self.feed.pieces(part, self.config.physical_tokens, self.config.physical_batch)
        return found

    # -------------------------------------------------------------------------------------- with DP

    def play_private(self, dp: DPWork, entropy: Entropy, check: bool, known: bool) -> None:
        """Exactly `config.steps` Poisson-sampled, clipped, noised steps."""
        with undisturbed():
            from securefed.training.dp import KeyedDPOptimizer, per_sample_gradients
        self.max_grad_norm = dp.max_grad_norm
        sampling = entropy.stream("sampling", *self.work.labels)
        noise = entropy.stream("noise", *self.work.labels)
        private = KeyedDPOptimizer(self.optimizer, dp, noise, self.seen)
        if dp.mode == "ghost" and self.held:
            raise ModelError(
                'ghost clipping cannot leave out the coordinates that a client does not hold; set privacy.grad_sample_mode = "hooks"'
            )
        with per_sample_gradients(self.model.module, dp.mode, known=known) as private.ghost:
            if check:
                check_gradients(
                    self.model, self.feed, self.parameters, self.config.label_smoothing, private.ghost
                )
            for step in range(self.config.steps):
                self._set_rates(step, self.config.steps)
                rows = draw(sampling, len(self.feed), dp.sample_rate)
                watch: AbstractContextManager[None] = nullcontext()
                if check and step == 0:
                    watch = check_step(
                        self.model,
                        self.feed,
                        self.parameters,
                        snapshot(self.model, self.feed, self.parameters),
                    )
                with watch:
                    self._private_step(private, rows)
                self.taken += 1
                self.examples += len(rows)
            private.zero_grad(set_to_none=True)

    def _private_step(self, private: KeyedDPOptimizer, rows: NDArray[np.int64]) -> None:
        private.zero_grad(set_to_none=True)
        pieces = self.feed.pieces(rows, self.config.physical_tokens, self.config.physical_batch)
        for piece in pieces:
            for p in self.parameters.values():
                setattr(p, GRAD_SAMPLE, None)
            losses, plain = self.losses(self.feed.batch(piece))
            self._note(plain)
            backward(losses, private.ghost)
            self._hold(GRAD_SAMPLE)  # what a client does not hold is no part of its records' norms
            private.clip_and_accumulate()
        if not pieces:
            self.seen.empty += 1
            empty_step(self.parameters)
            private.clip_and_accumulate()
        private.add_noise()
        private.scale_grad()
        self._add_proximal()  # a function of the weights alone, so it needs no noise
        self._hold("grad")  # noise on what it does not hold would be trained on
        private.original_optimizer.step()

    # --------------------------------------------------------------------------------------- shared

    def _set_rates(self, step: int, steps: int) -> None:
        if self.measures or (self.config.schedule == "constant" and self.config.warmup_steps == 0):
            return
        factor = rate_factor(self.config.schedule, step, steps, self.config.warmup_steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _add_proximal(self) -> None:
        """FedProx (Li et al. 2020, arXiv 1812.06127): the gradient of mu/2 |w - w_global|^2."""
        for name, reference in self.anchor.items():
            p = self.parameters[name]
            if p.grad is not None:
                p.grad.add_(p.detach() - reference, alpha=self.config.proximal_mu)

    def _hold(self, attribute: str) -> None:
        """Sets the gradients (or each record's) of coordinates that this client does not hold to zero."""
        for name, mask in self.held.items():
            gradient = getattr(self.parameters[name], attribute, None)
            if gradient is not None:
                gradient.mul_(mask)

    def _note(self, losses: torch.Tensor) -> None:
        self.seen_losses.append(
            losses.detach()
        )  # added up once at the end: a sum a step is time a small net feels

    def _total_loss(self) -> float:
        return float(torch.cat(self.seen_losses).double().sum()) if self.seen_losses else 0.0

    def diagnostics(self) -> dict[str, float]:
        """Mean loss and, under DP, how the clip met the gradients; private, for simulations only."""
        found = {"loss": self._total_loss() / max(1, self.examples)}
        if self.max_grad_norm is not None:
            norms = torch.cat(self.seen.norms) if self.seen.norms else torch.zeros(1)
            found |= {
                "clipped_share": float((norms > self.max_grad_norm).double().mean()),
                "median_gradient_norm": float(norms.median()),
                "empty_batches": float(self.seen.empty),
                "non_finite_gradients": float(self.seen.dropped),
            }
        return found


def _masks(model: TaskModel, work: LocalWork) -> dict[str, torch.Tensor]:
    """Name -> 0 / 1 in its tensor's shape, of the trained tensors that a client holds in part."""
    if work.holds is None:
        return {}
    masks = model.layout.select(set(work.train).__contains__)
    tensors = masks.unflatten(model.layout.gather(work.holds, masks))
    return {n: t.to(model.device) for n, t in tensors.items() if not bool(t.all())}


def _shuffled(generator: np.random.Generator, n: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Batches of `size` over one permutation after another; the last one of each may be smaller."""
    while True:
        order = generator.permutation(n)
        for i in range(0, n, size):
            yield order[i : i + size]


@contextmanager
def _seeded_torch(model: TaskModel, seed: int, work: LocalWork) -> Iterator[None]:
    """Where dropout draws from torch, its draws depend on (seed, client, round) and leave no trace."""
    if not has_dropout(model.module):
        yield
        return
    state = np.random.SeedSequence([seed, *work.labels]).generate_state(1, np.uint64)
    with torch.random.fork_rng():
        torch.manual_seed(int(state[0] >> 1))
        yield
