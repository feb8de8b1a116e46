"""Local fine-tuning after: federated averaging first, then each client goes on by itself from the global model.

The simplest personalization, and hard to beat (Yu, Bagdasaryan and Shmatikov 2020, "Salvaging Federated Learning by
Local Adaptation", arXiv 2002.04758, section 3; Cheng, Chadha and Duchi 2021 call it FTFA). In the last `tune_rounds`
rounds every client trains all that it may train and sends nothing.

Privacy: under example-level DP the local rounds are clipped, noised and charged like the others; under
client-level DP they release nothing to anybody and cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import RoundPlan, plan_round
from securefed.algorithms.work import Training, Worked
from securefed.config import Config
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.training.client import ClientJob


@dataclass(frozen=True)
class FineTune(FedAvg):
    """FedAvg, and local rounds at its end.

    Attributes:
        tune_rounds: rounds at the end in which every client trains alone, from the last global model.
        tune_rate: its learning rate then, over the job's. A model that many have made is worth small steps: at the
            federation's own rate a client with few records unlearns it (docs/uneven-clients.md has figures).
    """

    tune_rounds: int = 1
    tune_rate: float = 0.1
    beside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)
        if self.tune_rounds < 1:
            raise ValueError(f"tune_rounds must be at least 1, found {self.tune_rounds}")
        if not self.tune_rate > 0:
            raise ValueError(f"tune_rate must be above 0, found {self.tune_rate}")

    def check(self, config: Config) -> None:
        FedAvg.check(self, config)
        if self.tune_rounds >= config.rounds:
            raise ConfigError(
                f"algorithm.tune_rounds={self.tune_rounds} leaves none of rounds={config.rounds} for the federation; "
                "lower it"
            )

    def released(self, config: Config) -> int:
        return config.rounds - self.tune_rounds

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        together = self.released(config)
        if round < together:
            return plan_round(config.model.adapter, part_of, round, together, self.head_rounds)
        return RoundPlan(
            "local", self.local_names(config, part_of), (), (round - together) / self.tune_rounds
        )

    def cohort(self, config: Config, clients: int, round: int) -> tuple[int, ...] | None:
        """Everybody, once nothing is sent any more."""
        return tuple(range(clients)) if round >= self.released(config) else None

    def local_names(self, config: Config, part_of: Mapping[str, str]) -> tuple[str, ...]:
        """The tuned model: everything but a head's centre."""
        return tuple(sorted(n for n, part in part_of.items() if part != "centre"))

    def keeps(self, plan: RoundPlan) -> bool:
        """Only what it has tuned alone."""
        return not plan.share

    def work(self, train: Training, job: ClientJob) -> Worked:
        if job.share:
            return Worked(train(job.start, job.train))
        mine = job.start if job.own is None else job.own
        return Worked(train(mine, job.train, rate=self.tune_rate))
