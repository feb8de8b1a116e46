"""One client's round as an algorithm plays it: phase after phase of local training under the job's one mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from securefed.config import Config
from securefed.crypto.entropy import Entropy
from securefed.data.batch import Encoded
from securefed.layout import Layout
from securefed.training.frozen_cache import FrozenCache
from securefed.training.local import DPWork, LocalWork, train_locally
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


@dataclass
class Phases:
    """What `securefed.algorithms.work.Training` asks for; every call trains, and under DP noises, its own steps.

    Attributes:
        checked: sets of names whose per-sample gradients have been checked in this process; grows.
        holds: 1 for each coordinate that this client holds, else 0; None for all.
        taken: steps so far in this round, empty batches included.
        diagnostics: of the first phase, from private data; for simulations, never sent.
    """

    model: TaskModel
    data: Encoded
    client: int
    round: int
    config: Config
    dp: DPWork | None
    entropy: Entropy
    cache: FrozenCache | None
    checked: set[tuple[str, ...]]
    holds: Vector | None = None
    taken: int = 0
    diagnostics: dict[str, float] = field(default_factory=dict)
    _phase: int = 0

    @property
    def layout(self) -> Layout:
        """Of the whole model."""
        return self.model.layout

    def __call__(
        self,
        start: Vector,
        names: Sequence[str],
        *,
        steps: int = 0,
        towards: Vector | None = None,
        mu: float | None = None,
        rate: float = 1.0,
    ) -> Vector:
        """The model after this phase, float32 (d,); see `Training`."""
        train, work = (
            self.config.train,
            LocalWork(self.client, self.round, tuple(names), self._phase, towards, self.holds, rate),
        )
        if steps:
            train = replace(train, steps=steps, epochs=0)
        if mu is not None:
            train = replace(train, proximal_mu=mu)
        result = train_locally(
            self.model,
            self.data,
            start,
            work,
            train,
            dp=self.dp,
            entropy=self.entropy,
            seed=self.config.seed,
            cache=self.cache,
            check=self.dp is not None and work.train not in self.checked,
            known=work.train in self.checked,
        )
        self.checked.add(work.train)  # reached only when the check passed
        self.taken += result.steps
        if self._phase == 0:
            self.diagnostics = dict(result.diagnostics)
        self._phase += 1
        return result.vector
