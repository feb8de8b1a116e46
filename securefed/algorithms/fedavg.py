"""Federated averaging and its server optimizers: what a round means.

McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, with the server step of Reddi et al. 2021. The
client's half is `securefed.training`; FedProx (Li et al. 2020) is its option `train.proximal_mu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from securefed.algorithms.plan import RoundPlan, local_names, plan_round
from securefed.algorithms.server_optimizer import Moments, rate_at, server_step
from securefed.algorithms.work import Training, Worked
from securefed.config import Config, ServerConfig
from securefed.layout import Layout
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.training.client import ClientJob


@dataclass(frozen=True)
class FedAvg:
    """The average of the clients' updates, applied by the job's server optimizer.

    Other algorithms of rounds are subclasses that say what differs.

    Attributes:
        head_rounds: rounds at the start in which only the classification head is trained.
        beside: a client's local part is a model beside the global one, not a part of it.
        whole: the server's model can be used as it is; False where it lacks what stays with the clients.
    """

    head_rounds: int = 0
    beside: ClassVar[bool] = False
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.head_rounds < 0:
            raise ValueError(f"head_rounds must be 0 or more, found {self.head_rounds}")

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        """What the cohort trains and sends in this round."""
        return plan_round(config.model.adapter, part_of, round, config.rounds, self.head_rounds)

    def check(self, config: Config) -> None:
        """Raises ConfigError for a job that this algorithm cannot play; pairs are in `pairings`."""

    def cohort(self, config: Config, clients: int, round: int) -> tuple[int, ...] | None:
        """Who takes part, ascending, where the algorithm says so; None: the job's cohort."""
        return None

    def late(self, config: Config, clients: int, round: int) -> tuple[int, ...]:
        """Clients that trained for a round which ended without them, charged all the same."""
        return ()

    def phases(self, config: Config) -> tuple[int, ...]:
        """Local steps of each of a client's trainings in one round; 0: the job's own steps or epochs."""
        return (0,)

    def steps(self, config: Config) -> int:
        """Local steps of a client in one round, all of which are noised and charged under example-level DP."""
        return sum(steps or config.train.steps for steps in self.phases(config))

    def released(self, config: Config) -> int:
        """Rounds whose aggregate leaves the server."""
        return config.rounds

    def local_names(self, config: Config, part_of: Mapping[str, str]) -> tuple[str, ...]:
        """Names that each client keeps to itself."""
        return local_names(config.model.adapter, part_of)

    def keeps(self, plan: RoundPlan) -> bool:
        """Whether a client keeps new values of its local part in such a round."""
        return plan.phase != "centre"

    def work(self, train: Training, job: ClientJob) -> Worked:
        """A client's round: it trains the model that it was sent."""
        return Worked(train(job.start, job.train))

    def apply(
        self,
        config: ServerConfig,
        layout: Layout,
        part_of: Mapping[str, str],
        plan: RoundPlan,
        model: Vector,
        aggregate: Vector,
        moments: Moments,
    ) -> tuple[Vector, Moments]:
        """The global model (layout's d,) after this round's aggregate (d of `plan.share`).

        Coordinates that were not sent keep their value and their moments. The head may follow its own
        optimizer (`server.head_optimizer`), because it lives on another scale than the factors.
        """
        shared = layout.select(set(plan.share).__contains__)
        if plan.phase == "centre":  # a measured mean, not a direction to descend
            return layout.scatter(layout.gather(model, shared) + aggregate, shared, model), moments
        for is_head in (False, True):
            names = [n for n in shared.names if (part_of[n] == "head") == is_head]
            if not names:
                continue
            part = shared.select(set(names).__contains__)
            own = is_head and config.head_optimizer is not None
            rate = rate_at(config, config.head_learning_rate if own else config.learning_rate, plan.progress)
            if is_head and plan.phase != "head":
                rate *= config.head_joint_factor
            new, changed = server_step(
                config.head_optimizer if is_head and config.head_optimizer else config.optimizer,
                layout.gather(model, part),
                shared.gather(aggregate, part),
                Moments(layout.gather(moments.first, part), layout.gather(moments.second, part)),
                learning_rate=rate,
                momentum=config.head_momentum if own else config.momentum,
                beta2=config.beta2,
                tau=config.tau,
            )
            model = layout.scatter(new.astype(np.float32), part, model)
            moments = Moments(
                layout.scatter(changed.first, part, moments.first),
                layout.scatter(changed.second, part, moments.second),
            )
        return model, moments
