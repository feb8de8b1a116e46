"""What one run is made of: the things that stay the same from its first round to its last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from securefed.algorithms.fedavg import FedAvg
from securefed.assembly import Assembly, RunnerBuilder, cohort, make_runner, register, register_unprotected
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.engine.exchange import opened
from securefed.engine.inprocess import Engine, InProcess, Pool
from securefed.engine.liars import Liars
from securefed.errors import BudgetExceeded
from securefed.evaluation import Evaluator
from securefed.noising import (
    distributed_design,
    make_guarantee,
    moving_clip,
    noise_shares,
    shared_sizes,
    step_noise,
)
from securefed.privacy.adaptive_clip import ClipCount
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.distributed_release import DistributedRelease, RunWords
from securefed.privacy.ledger import Ledger
from securefed.privacy.moving_clip import MovingClip
from securefed.privacy.server_mechanism import ServerMechanism, server_mechanism
from securefed.privacy.shared_release import SharedRelease
from securefed.privacy.step_noise import StepNoise
from securefed.privacy.step_release import StepRelease
from securefed.protect.grouped import OpenGrouped
from securefed.protect.masking.protection import OpenMasking
from securefed.protect.plain import Plain
from securefed.registry import ALGORITHMS, make, make_aggregator, make_protection
from securefed.rounds import Rounds
from securefed.training.client import Guarantee
from securefed.types import SERVER


class Parts:
    """A run's algorithm, rule, protection with its keys, guarantee, ledger, clients, engine and server.

    The run is known to the site's ledger once they are made.
    """

    def __init__(self, assembly: Assembly, run_id: str, entropy: Entropy) -> None:
        config = assembly.config
        self.config, self.assembly, self.run_id = config, assembly, run_id
        self.entropy, self.model = entropy, assembly.model
        self.algorithm: FedAvg = make("algorithm", config.algorithm, ALGORITHMS)
        self.rule = make_aggregator(config.aggregator)
        protection = make_protection(config.protection)
        if isinstance(protection, Plain) and self.rule.needs == "sum" and config.privacy.unit != "client":
            protection = replace(protection, keep_updates=False)  # O(d) memory; nobody needs the rows
        self.protection = opened(protection, run_id, range(len(assembly.shards)), entropy)
        self.design = distributed_design(config, assembly.shards, self.model)
        self.guarantee = make_guarantee(config, len(assembly.shards), self.design)
        if config.fedsgd and self.guarantee is not None:
            self.guarantee = replace(self.guarantee, steps=self._step_noise(self.guarantee))
        self.clip = self._moving_clip(self.guarantee)
        if self.guarantee is not None and config.privacy.noise == "gaussian" and not config.fedsgd:
            shares = noise_shares(config, len(assembly.shards), self.guarantee.noise_multiplier, self.clip)
            self.guarantee = replace(self.guarantee, shares=shares)
        self.ledger = Ledger.site() if config.private else None
        if self.ledger is not None:
            register(self.ledger, run_id, assembly)
        else:
            with Ledger.site() as ledger:
                register_unprotected(ledger, run_id, assembly)
        self.runner = make_runner(assembly, run_id, entropy, self.guarantee, self.ledger)
        self.evaluator = Evaluator(assembly, self.runner)
        self.mechanism = self._make_mechanism()
        self.engine: Engine = self._make_engine()
        self.identity = {"run": run_id, **assembly.identity}
        self.server = Rounds(
            run_id,
            self.protection,
            self.rule,
            self.mechanism,
            entropy,
            config.seed,
            self.clip,
            ledger=self.ledger,
        )
        self.liars = Liars.of(config, len(assembly.shards))

    def _moving_clip(self, guarantee: Guarantee | None) -> MovingClip | None:
        if guarantee is None:
            return None
        return moving_clip(self.config, len(self.assembly.shards), guarantee.noise_multiplier)

    def _step_noise(self, guarantee: Guarantee) -> StepNoise:
        mechanisms = None if self.design is None else self.design.mechanisms(guarantee.noise_multiplier)
        return step_noise(self.config, self.assembly.shards, guarantee.noise_multiplier, mechanisms)

    def _make_mechanism(self) -> ServerMechanism | DistributedRelease | SharedRelease | StepRelease | None:
        if self.guarantee is None:
            return None
        steps = self.guarantee.steps
        if steps is not None:
            if steps.mechanisms:
                self._carry(steps.mechanisms)
            return StepRelease(steps, shared_sizes(self.config, self.model))
        if self.config.privacy.unit != "client":
            return None
        assert self.ledger is not None
        sigma, budget = self.guarantee.noise_multiplier, self.guarantee.budget
        if self.design is not None:
            mechanisms = self.design.mechanisms(sigma)
            count = self.design.count(sigma)
            self._carry(mechanisms, count)
            return DistributedRelease(
                self.ledger, self.run_id, mechanisms, self.design.sizes, budget, count, self.clip
            )
        if self.guarantee.shares is not None:
            return SharedRelease(self.ledger, self.run_id, sigma, self.guarantee.shares, budget, self.clip)
        return server_mechanism(
            self.config, sigma, budget, self.ledger, self.run_id, len(self.assembly.shards), self.clip
        )

    def _carry(self, mechanisms: Mapping[int, DistributedMechanism], count: ClipCount | None = None) -> None:
        """Lets the masked sums carry these mechanisms' integers."""
        assert isinstance(self.protection, OpenMasking | OpenGrouped)
        self.protection = self.protection.carrying(RunWords(mechanisms, self.entropy, count, self.clip))

    def _make_engine(self) -> Engine:
        workers = self.config.engine.workers
        if workers == 0:
            return InProcess(self.runner)
        own = None if isinstance(self.entropy, SystemEntropy) else self.entropy
        build = RunnerBuilder(self.config, self.run_id, self.guarantee, own)
        return Pool(build, workers, self.config.engine.threads or 1)

    def close(self) -> None:
        """Ends worker processes and the ledger's connection."""
        self.engine.close()
        if self.ledger is not None:
            self.ledger.close()

    def check_budget(self) -> None:
        """Raises where the budget does not allow even the first round.

        Raises:
            BudgetExceeded: no client of the first cohort may train, or the server may not release.
        """
        budget = None if self.guarantee is None else self.guarantee.budget
        if self.guarantee is None or self.ledger is None or budget is None:
            return
        if self.mechanism is not None and not isinstance(self.mechanism, StepRelease):
            self.ledger.admit(run=self.run_id, client=SERVER, event=self.mechanism.event, budget=budget)
            return
        event = self.mechanism.event_of(0) if self.mechanism is not None else self.runner.event()
        refused: BudgetExceeded | None = None
        for client in cohort(self.config, len(self.assembly.shards), 0, self.entropy):
            try:
                self.ledger.admit(run=self.run_id, client=client, event=event, budget=budget)
            except BudgetExceeded as error:
                refused = refused or error
            else:
                return
        if refused is not None:
            raise refused
