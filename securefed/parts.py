"""What one run is made of: the things that stay the same from its first round to its last."""

from __future__ import annotations

from dataclasses import replace

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.ranks import Ranked
from securefed.assembly import Assembly, RunnerBuilder, cohort, make_runner, register, register_unprotected
from securefed.compression import Coding
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.engine.exchange import opened
from securefed.engine.inprocess import Engine, InProcess, Pool
from securefed.engine.liars import Liars
from securefed.errors import BudgetExceeded
from securefed.evaluation import Evaluator
from securefed.mechanisms import plan_noise
from securefed.noising import sending_of, shared_sizes
from securefed.privacy.ledger import Ledger
from securefed.privacy.prospect import warn_of_noise
from securefed.privacy.step_release import StepRelease
from securefed.protect.packed import Packed
from securefed.protect.plain import Plain
from securefed.registry import ALGORITHMS, make, make_aggregator, make_protection
from securefed.root import Root
from securefed.rounds import Rounds


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
        # A copy of the first model, for the few who compare with it or go back to it.
        asked = config.evaluate.alone or (isinstance(self.algorithm, Ranked) and self.algorithm.restarts)
        self.initial = self.model.read(self.model.layout) if asked else None
        joins = isinstance(self.algorithm, Ranked) and self.algorithm.needs_updates
        client_level = config.privacy.unit == "client"
        read = self.rule.needs != "sum" or client_level or joins or config.tracking.keep_views > 0
        if isinstance(protection, Plain) and not read:
            protection = replace(protection, keep_updates=False)  # O(d) memory; nobody needs the rows
        self.sending = sending_of(config)
        if self.sending is not None and isinstance(self.sending.compression, Coding):
            assert isinstance(protection, Plain)  # checked with the job
            protection = Packed(self.sending.compression, config.seed, protection.keep_updates)
        self.protection = opened(protection, run_id, range(len(assembly.shards)), entropy)
        noise = plan_noise(
            config, lambda: shared_sizes(config, self.model), [len(s.train) for s in assembly.shards]
        )
        self.guarantee, self.clip = noise.guarantee, noise.clip
        self.ledger = Ledger.site() if config.private else None
        if self.ledger is not None:
            register(self.ledger, run_id, assembly)
        else:
            with Ledger.site() as ledger:
                register_unprotected(ledger, run_id, assembly)
        self.runner = make_runner(assembly, run_id, entropy, self.guarantee, self.ledger)
        self.evaluator = Evaluator(assembly, self.runner)
        self.mechanism = noise.mechanism(config, len(assembly.shards), self.ledger, run_id)
        self.protection = noise.carried(self.protection, entropy)
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
            sending=self.sending,
        )
        self.liars = Liars.of(config, len(assembly.shards))
        held = assembly.root
        self.root = None if held is None else Root(config, self.model, held, len(assembly.shards))

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

    def warn_of_noise(self) -> None:
        """One line where the job's noise leaves little or nothing to learn; no record is read for it."""
        if self.guarantee is not None:
            records = [len(s.train) for s in self.assembly.shards]
            warn_of_noise(self.config, self.guarantee.noise_multiplier, records)

    def check_budget(self) -> None:
        """Raises where the budget does not allow even the first round.

        Raises:
            BudgetExceeded: no client of the first cohort may train, or the server may not release.
        """
        budget = None if self.guarantee is None else self.guarantee.budget
        if self.guarantee is None or self.ledger is None or budget is None:
            return
        if self.mechanism is not None and not isinstance(self.mechanism, StepRelease):
            self.mechanism.admit()
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
