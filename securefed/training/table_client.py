"""A client's part of a distillation: digest what the ensemble said, train on its own records, answer on the public ones.

The order of spending is that of `ClientRunner`. What may leave is a table of answers, and the privacy of it is one of three:

- `unit = "example"`: the client's model is trained by DP-SGD, and whatever is computed from it and public records is
  post-processing: its answers spend nothing beyond the steps that the ledger holds.
- `unit = "client"`: the whole table is bounded by a public constant, and noise is added to the sum of tables, by the
  server or by the clients inside a protection.
- `unit = "client"`, `noise = "local"`: the client adds all the noise to its own table and charges itself, so that the rows
  may be shown, and any rule may read them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from securefed.algorithms.distill import Distill
from securefed.config import Config, TrainConfig
from securefed.config.distill import architectures
from securefed.crypto.entropy import Entropy
from securefed.data.batch import Encoded
from securefed.data.records import Examples, Shard
from securefed.errors import BudgetExceeded, DivergedError
from securefed.layout import Layout
from securefed.privacy.client_level import clip_update, noisy_share
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from securefed.privacy.step_noise import StepEvent
from securefed.training.client import ClientJob, ClientOutcome, ClientRunner, Guarantee
from securefed.training.local import LocalWork, train_locally
from securefed.training.soft import answers, learn_from
from securefed.types import Update, Vector

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


@dataclass(frozen=True, eq=False)
class Learner:
    """One architecture: its model, resident, through which its clients' weights pass.

    Attributes:
        start: the weights that its clients begin with, public. public: the public records as it reads them.
        train: the job's settings at this architecture's rate.
    """

    model: TaskModel = field(repr=False)
    start: Vector = field(repr=False)
    public: Encoded = field(repr=False)
    train: TrainConfig

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.model.part_of))


def make_learners(
    config: Config, public: Examples, classes: int, shape: tuple[int, int, int] | None
) -> tuple[Learner, ...]:
    """The job's architectures in their order, each loaded; the student's own where it names none.

    Raises:
        ModelError: a model that cannot be loaded or cannot read the public records.
    """
    from securefed.models import load_model

    found = []
    for settings, rate in architectures(config):
        model = load_model(
            settings,
            classes=classes,
            image_shape=shape,
            unit=config.privacy.unit,
            max_length=config.data.max_length,
        )
        train = (
            config.train
            if rate is None
            else replace(config.train, learning_rate=rate, head_learning_rate=None)
        )
        data = model.encode(public, config.data.max_length)
        found.append(Learner(model, model.read(model.layout), data, train))
    return tuple(found)


class TableRunner(ClientRunner):
    """Runs clients of several architectures; `ClientJob.start` is the client's own model, `local` what it keeps.

    Attributes:
        taught: the soft labels that clients digest before they train, float32 (m, k); None before the first.
    """

    def __init__(
        self,
        config: Config,
        learners: Sequence[Learner],
        shards: Sequence[Shard],
        algorithm: Distill,
        *,
        run: str,
        entropy: Entropy,
        ledger: Ledger | None = None,
        guarantee: Guarantee | None = None,
    ) -> None:
        super().__init__(
            config, learners[0].model, shards, run=run, entropy=entropy, ledger=ledger, guarantee=guarantee
        )
        self.learners, self.tables = tuple(learners), algorithm
        self.taught: NDArray[np.float32] | None = None
        self._self_checked: set[int] = set()

    def learner(self, client: int) -> Learner:
        """The architecture of a client: dealt out in turn."""
        return self.learners[client % len(self.learners)]

    def encoded(self, client: int) -> Encoded:
        """The client's training records as its own model reads them."""
        if client not in self._encoded:
            model = self.learner(client).model
            self._encoded[client] = model.encode(self.shards[client].train, self.config.data.max_length)
        return self._encoded[client]

    def event(self, size: int = 0) -> StepEvent:
        """What one client spends in a round: its steps of DP-SGD, or one whole noised table."""
        if self.config.privacy.noise != "local":
            return super().event(size)
        assert self._guarantee is not None
        return SampledGaussian(self._guarantee.noise_multiplier, 1.0, 1)

    def run_job(self, job: ClientJob) -> ClientOutcome:
        """The client's table, or its refusal where the budget is spent."""
        if self.config.privacy.noise != "local":
            return super().run_job(job)
        assert self._ledger is not None
        stored = self._ledger.outbox(self.run, job.client, job.round)
        if stored is not None:
            return self._unpack(stored, job)
        try:
            reservation = self._reserve(self._ledger, job)
        except BudgetExceeded as refusal:
            return ClientOutcome(job.client, refusal=str(refusal))
        try:
            outcome = self._trained(job)
        except DivergedError:  # who takes part is seen, so it sends noise alone
            zero = np.zeros(self._layouts(job)[1].size, np.float32)
            outcome = ClientOutcome(job.client, self._bounded(job, zero), job.start)
        outcome = replace(outcome, steps=1)
        self._ledger.settle(reservation, steps_taken=1, payload=self._pack(outcome))
        return outcome

    def _model_of(self, job: ClientJob) -> TaskModel:
        return self.learner(job.client).model

    def _train(self, job: ClientJob) -> ClientOutcome:
        began, mine = time.perf_counter(), self.learner(job.client)
        number = job.client % len(self.learners)
        result = train_locally(
            mine.model,
            data := self.encoded(job.client),
            self._digest(job, mine),
            LocalWork(job.client, job.round, mine.names),
            mine.train,
            dp=self.dp_work(len(data)),
            entropy=self._entropy,
            seed=self.config.seed,
            cache=self.cache,
            check=self.config.privacy.unit == "example" and number not in self._self_checked,
        )
        self._self_checked.add(number)  # reached only when the check passed
        table = self.tables.table(self.config, answers(mine.model, mine.public, mine.train, self.cache))
        if self.config.privacy.unit == "client":
            update = self._bounded(job, table)
        else:
            private = self.config.privacy.unit == "example"
            update = Update(job.client, job.round, table, job.weight, private=private)
        seconds = time.perf_counter() - began
        return ClientOutcome(
            job.client, update, result.vector, None, False, result.steps, seconds, result.diagnostics
        )

    def _digest(self, job: ClientJob, mine: Learner) -> Vector:
        """The client's model after it has learned from what everybody was told."""
        if self.taught is None:
            return job.start
        d = self.config.distill
        return learn_from(
            mine.model,
            mine.public,
            self.taught,
            job.start,
            mine.train,
            steps=d.digest_steps,
            batch_size=d.batch_size,
            temperature=self.tables.temperature(self.config),
            work=LocalWork(job.client, job.round, mine.names),
            seed=self.config.seed,
            cache=self.cache,
        )

    def _bounded(self, job: ClientJob, vector: Vector) -> Update:
        if self.config.privacy.noise != "local":
            return super()._bounded(job, vector)
        assert self._guarantee is not None
        stream = self._entropy.stream("table noise", job.client, job.round)
        clipped = clip_update(vector, self.config.privacy.max_grad_norm)
        noised = noisy_share(clipped, self._guarantee.noise_multiplier, 1, stream)
        return Update(job.client, job.round, noised, job.weight, private=True)

    def _layouts(self, job: ClientJob) -> tuple[Layout, Layout, Layout]:
        """Of the client's model, of what it sends, and of what it keeps: its model."""
        model = self.learner(job.client).model
        return model.layout, self.tables.layout(self.config, model.classes), model.layout


def client_scores(runner: TableRunner, local: Mapping[int, Vector], test: Examples) -> dict[int, float]:
    """Client -> accuracy of its own model on these records: a diagnostic of a simulation, sent by nobody."""
    found: dict[int, float] = {}
    encoded: dict[int, Encoded] = {}
    for client, vector in sorted(local.items()):
        mine, number = runner.learner(client), client % len(runner.learners)
        if number not in encoded:
            encoded[number] = mine.model.encode(test, runner.config.data.max_length)
        mine.model.write(vector, mine.model.layout)
        told = answers(mine.model, encoded[number], mine.train, runner.cache).argmax(1)
        assert test.labels is not None
        found[client] = float((told == test.labels).mean())
    return found
