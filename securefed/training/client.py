"""One client's part of a round: reserve the spend, train, settle, hand over the update.

The order is the guarantee: the ledger holds the event before step one, and the finished update is
journaled in the same transaction that settles it, before anybody else sees it. A crash in between
overstates the spend and never understates it; a settled update is sent again byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from securefed.compression.sending import Sending
from securefed.config import Config
from securefed.crypto.entropy import Entropy, Stream
from securefed.data.batch import Encoded
from securefed.data.records import Examples, Shard
from securefed.errors import BudgetExceeded, DivergedError, SuspiciousModelError
from securefed.layout import Layout
from securefed.privacy.budget import Budget
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from securefed.privacy.shared_release import Shares, bounded
from securefed.privacy.step_noise import StepEvent, StepNoise
from securefed.registry import ALGORITHMS, make, make_compression
from securefed.training.buffers import buffers_put_back
from securefed.training.frozen_cache import open_cache
from securefed.training.kept_tokens import encode
from securefed.training.limits import under_policy
from securefed.training.local import DPWork
from securefed.training.phases import Phases
from securefed.training.step import step
from securefed.types import Update, Vector

if TYPE_CHECKING:
    import torch

    from securefed.algorithms.algorithm import Algorithm
    from securefed.models.task_model import TaskModel


@dataclass(frozen=True, slots=True, eq=False)
class ClientJob:
    """What the server asks of one client in one round; everything here is public but `start`.

    Attributes:
        train, share: names trained and names sent (`RoundPlan`).
        start: the client's model, float32 (d,) over the whole layout: global values and, where some
            names stay local, this client's own.
        weight: public weight of its update.
        clip: of a whole update, where it moves from round to round; None where it is the job's.
        keep: names of its local part, of which it keeps new values; None: what it trains and does not share.
        own: its own model beside the global one, float32 (d,); None where it has none (yet).
        scale: in (0, 1], public: what its update is multiplied with once it is bounded (staleness).
        residual: what compression left out of this client's updates, (d,) of `share`; None for nothing.
        memory: what the server's side of a compression carries, public.
        holds: 1 for each coordinate that this client holds, else 0, (d,) of the whole layout; None for all.
        tail: of those, 1 for what it may give up (`algorithms.pruning`); None where ranks stay.
    """

    client: int
    round: int
    train: tuple[str, ...]
    share: tuple[str, ...]
    start: Vector = field(repr=False)
    weight: float
    clip: float | None = None
    keep: tuple[str, ...] | None = None
    own: Vector | None = field(default=None, repr=False)
    scale: float = 1.0
    residual: Vector | None = field(default=None, repr=False)
    memory: Mapping[str, Vector] = field(default_factory=dict, repr=False)
    holds: Vector | None = field(default=None, repr=False)
    tail: Vector | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class ClientOutcome:
    """A client's answer: an update, or a refusal in words.

    Attributes:
        update: over the layout of `share`; None if the client refused.
        local: new values of what it keeps, over the layout of the job's local names.
        resent: the update was journaled before a crash and is sent again unchanged.
        diagnostics: computed on private data; for simulations, never sent by a real client.
        residual: what compression leaves out, kept by the client, (d,) of `share`; None where nothing is kept.
    """

    client: int
    update: Update | None = field(default=None, repr=False)
    local: Vector | None = field(default=None, repr=False)
    refusal: str | None = None
    resent: bool = False
    steps: int = 0
    seconds: float = 0.0
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    residual: Vector | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The DP mechanism of the job, the same in every round: what each event says and what it may spend.

    Attributes:
        steps: of the algorithm fedsgd, how its steps are noised.
        shares: of whole updates, what each client adds before it encrypts; None where nobody does.
    """

    noise_multiplier: float
    budget: Budget | None
    steps: StepNoise | None = None
    shares: Shares | None = None


class ClientRunner:
    """Runs clients one after another over one resident base model.

    Memory: the base model once, every shard's encoded records, and the cached hidden states of frozen
    layers up to `train.cache_mib`; an adapter is swapped in and out per client.

    Args:
        own_records: the shards are not of the data set that the job names, so that its being public says nothing of them.
    """

    def __init__(
        self,
        config: Config,
        model: TaskModel,
        shards: Sequence[Shard],
        *,
        run: str,
        entropy: Entropy,
        ledger: Ledger | None = None,
        guarantee: Guarantee | None = None,
        own_records: bool = False,
    ) -> None:
        self.config, self.model, self.shards, self.run = config, model, shards, run
        self._entropy, self._ledger, self._guarantee = entropy, ledger, guarantee
        noise, budget = (0.0, None) if guarantee is None else (guarantee.noise_multiplier, guarantee.budget)
        allowed = under_policy(
            config, noise, budget, len(shards)
        )  # what the site's owner allows, not the job
        if guarantee is not None:
            self._guarantee = replace(guarantee, budget=allowed)
        self.algorithm: Algorithm = make("algorithm", config.algorithm, ALGORITHMS)
        self._encoded: dict[int, Encoded] = {}
        self._checked: set[tuple[str, ...]] = set()
        named = config.compression
        self._sending = None if named is None else Sending(make_compression(named), config.seed)
        self.cache = open_cache(config, entropy, own_records=own_records)

    def encoded(self, client: int) -> Encoded:
        """The client's training records as the model reads them, encoded once."""
        if client not in self._encoded:
            self._encoded[client] = self.encode(self.shards[client].train)
        return self._encoded[client]

    def encode(self, examples: Examples) -> Encoded:
        """Records as the model reads them, from the site's store where the job may use it."""
        store = None if self.cache is None else self.cache.store
        return encode(self.model, examples, self.config.data.max_length, store)

    def event(self, size: int = 0) -> StepEvent:
        """What one client spends in one round at example level, with an update of `size` coordinates."""
        assert self._guarantee is not None
        if self._guarantee.steps is not None:
            return self._guarantee.steps.event(size)
        p = self.config.privacy
        steps = self.algorithm.steps(self.config)
        return SampledGaussian(self._guarantee.noise_multiplier, p.sample_rate, steps)

    def run_job(self, job: ClientJob) -> ClientOutcome:
        """The client's update for this round, or its refusal where the budget is spent.

        Raises:
            SuspiciousModelError: `train.inspect_model` is on and the model looks made to extract data.
        """
        self._inspect(job)
        if self.config.privacy.unit == "client":
            try:
                return self._trained(job)
            except DivergedError:
                if self.config.distributed:  # who takes part is seen, so it sends zero and its noise
                    zero = np.zeros(self._layouts(job)[1].size, np.float32)
                    return ClientOutcome(job.client, self._bounded(job, self._compressed(job, zero)[0]))
                # Ending the round would tell that this client is in it; left out, it counts as zero.
                return ClientOutcome(job.client, refusal="its training left the finite numbers")
        if self.config.privacy.unit == "none":
            return self._as_sent(job, self._train(job))
        assert self._ledger is not None
        stepping = self._guarantee is not None and self._guarantee.steps is not None
        stored = None if stepping else self._ledger.outbox(self.run, job.client, job.round)
        if stored is not None:
            return self._as_sent(job, self._unpack(stored, job))
        try:
            reservation = self._reserve(self._ledger, job)
        except BudgetExceeded as refusal:
            return ClientOutcome(job.client, refusal=str(refusal))
        if stepping:
            with buffers_put_back(self.model.module, refuse=True):
                outcome = self._step(job)
            self._ledger.settle(reservation, steps_taken=1)  # what was sent is never sent again: see `_step`
            return outcome
        outcome = self._trained(job)
        self._ledger.settle(reservation, steps_taken=outcome.steps, payload=self._pack(outcome))
        return self._as_sent(job, outcome)

    def _reserve(self, ledger: Ledger, job: ClientJob) -> int:
        assert self._guarantee is not None
        return ledger.reserve(
            run=self.run,
            client=job.client,
            round=job.round,
            event=self.event(self._layouts(job)[1].size),
            budget=self._guarantee.budget,
        )

    def _step(self, job: ClientJob) -> ClientOutcome:
        """The client's part of one step of fedsgd, new records and new noise in every attempt.

        The same noise in two sums over different survivors would cancel in their difference and show what it hid.
        """
        assert self._guarantee is not None
        assert self._guarantee.steps is not None
        found = step(
            self.model,
            self.encoded(job.client),
            job,
            self.config.train,
            self._guarantee.steps,
            self._entropy,
            mode=self.config.privacy.grad_sample_mode,
            cache=self.cache,
            check=job.train not in self._checked,
            known=job.train in self._checked,
        )
        self._checked.add(job.train)
        return ClientOutcome(
            job.client, found.update, steps=1, seconds=found.seconds, diagnostics=found.diagnostics
        )

    def _inspect(self, job: ClientJob) -> None:
        """Before anything is spent or trained: the weights that the server sent, and nothing else of the model."""
        if not self.config.train.inspect_model:
            return
        from securefed.models.inspection import inspect_model

        fresh = [n for n, part in self.model.part_of.items() if part in ("B", "head")]
        findings = inspect_model(self._held(job), may_be_zero=fresh)
        if findings.suspicious:
            raise SuspiciousModelError(
                f"client {job.client}, round {job.round}: the global model looks made to extract data ({findings}); "
                "ask the server, or set train.inspect_model = false"
            )

    def charge(self, job: ClientJob, turns: int) -> None:
        """Charges turns whose updates nobody will take: they came too late, and were trained all the same.

        A round that is played again after a crash finds them charged. A client whose budget does not allow one has not
        trained either.
        """
        if self._ledger is None or self.config.privacy.unit != "example":
            return
        for _ in range(self._ledger.unsent(self.run, job.client, job.round), turns):
            try:
                reservation = self._reserve(self._ledger, job)
            except BudgetExceeded:
                return
            self._ledger.settle(reservation, steps_taken=self.algorithm.steps(self.config))

    def _held(self, job: ClientJob) -> dict[str, torch.Tensor]:
        """What this client holds of the model, without the vectors of IA3, which start constant and have no rows."""
        tensors = self.model.layout.unflatten(job.start)
        if job.holds is not None:
            masks = self.model.layout.unflatten(job.holds)
            for name in (n for n, part in self.model.part_of.items() if part in ("A", "B")):
                rows, columns = masks[name].any(1), masks[name].any(0)
                tensors[name] = tensors[name][rows][:, columns]
        return {n: t for n, t in tensors.items() if not (self.model.part_of[n] == "adapter" and len(t) == 1)}

    def _trained(self, job: ClientJob) -> ClientOutcome:
        """One client's private training, of which nothing stays in the resident model's buffers."""
        with buffers_put_back(self._model_of(job).module, refuse=self.config.privacy.unit == "example"):
            return self._train(job)

    def _model_of(self, job: ClientJob) -> TaskModel:
        """The resident model that this client trains."""
        return self.model

    def _train(self, job: ClientJob) -> ClientOutcome:
        start = time.perf_counter()
        c, data = self.config, self.encoded(job.client)
        dp = self.dp_work(len(data))
        phases = Phases(
            self.model,
            data,
            job.client,
            job.round,
            c,
            dp,
            self._entropy,
            self.cache,
            self._checked,
            job.holds,
        )
        worked = self.algorithm.work(phases, job)
        layout, shared, kept = self._layouts(job)
        vector = layout.gather(worked.vector, shared) - layout.gather(job.start, shared)
        residual = None
        if c.privacy.unit == "client":
            sent, residual = self._compressed(job, vector)  # what is sent is what is clipped
            update = self._bounded(job, sent)
        else:
            scaled = vector if job.scale == 1 else np.float32(job.scale) * vector
            update = Update(job.client, job.round, scaled, job.weight, private=c.privacy.unit == "example")
        own = worked.vector if worked.own is None else worked.own
        local = layout.gather(own, kept) if kept.names else None
        seconds = time.perf_counter() - start
        return ClientOutcome(
            job.client, update, local, None, False, phases.taken, seconds, phases.diagnostics, residual
        )

    def _compressed(self, job: ClientJob, vector: Vector) -> tuple[Vector, Vector | None]:
        """(what is sent of an update, what the client keeps of it)."""
        if self._sending is None:
            return vector, None
        return self._sending.sent(vector, job.residual, self._layouts(job)[1], job.round, job.memory)

    def _as_sent(self, job: ClientJob, outcome: ClientOutcome) -> ClientOutcome:
        """The outcome with its update compressed. Under DP the update carries its noise already and is journaled."""
        if self._sending is None or outcome.update is None:
            return outcome
        sent, residual = self._compressed(job, outcome.update.vector)
        return replace(outcome, update=replace(outcome.update, vector=sent), residual=residual)

    def _bounded(self, job: ClientJob, vector: Vector) -> Update:
        """A whole update, clipped, then scaled, with what the job's client-level mechanism asks of the client."""
        clip = self.config.privacy.max_grad_norm if job.clip is None else job.clip
        shares = None if self._guarantee is None else self._guarantee.shares

        def stream() -> Stream:
            return self._entropy.stream("noise share", job.client, job.round)

        vector, bit = bounded(vector, clip, job.clip is not None, shares, stream, job.scale)
        return Update(job.client, job.round, vector, job.weight, bit=bit)

    def dp_work(self, records: int) -> DPWork | None:
        """The mechanism of one client's steps under example-level DP, else None."""
        p = self.config.privacy
        if p.unit != "example":
            return None
        assert self._guarantee is not None
        return DPWork(
            self._guarantee.noise_multiplier,
            p.max_grad_norm,
            p.sample_rate,
            p.sample_rate * records,
            p.grad_sample_mode,
        )

    def _layouts(self, job: ClientJob) -> tuple[Layout, Layout, Layout]:
        layout, keep = self.model.layout, job.keep
        if keep is None:
            keep = tuple(sorted(set(job.train) - set(job.share)))
        return layout, layout.part(job.share), layout.part(keep)

    def _pack(self, outcome: ClientOutcome) -> bytes:
        """The finished, noised update as it is journaled (safetensors; no pickle)."""
        from safetensors.numpy import save

        assert outcome.update is not None
        empty = np.empty(0, np.float32)
        return save(
            {"update": outcome.update.vector, "local": empty if outcome.local is None else outcome.local}
        )

    def _unpack(self, payload: bytes, job: ClientJob) -> ClientOutcome:
        from safetensors.numpy import load

        arrays = load(payload)
        _, shared, kept = self._layouts(job)
        shared.check(arrays["update"])
        local = arrays["local"] if kept.names else None
        update = Update(job.client, job.round, arrays["update"], job.weight, private=True)
        return ClientOutcome(job.client, update, local, resent=True, steps=self.algorithm.steps(self.config))
