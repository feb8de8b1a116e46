"""Federated averaging and its server optimizers: what a round means.

McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, with the server step of Reddi et al. 2021. The
client's half is `securefed.training`; FedProx (Li et al. 2020) is its option `train.proximal_mu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from securefed.algorithms.algorithm import Algorithm
from securefed.algorithms.anchoring import anchored
from securefed.algorithms.plan import RoundPlan, plan_round
from securefed.algorithms.server_optimizer import Moments, rate_at, server_step
from securefed.config import Config, ServerConfig
from securefed.layout import Layout
from securefed.types import Vector


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """The average of the clients' updates, applied by the job's server optimizer.

    Other algorithms of rounds are subclasses that say what differs.

    Attributes:
        head_rounds: rounds at the start in which only the classification head is trained.
    """

    head_rounds: int = 0

    def __post_init__(self) -> None:
        if self.head_rounds < 0:
            raise ValueError(f"head_rounds must be 0 or more, found {self.head_rounds}")

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        """What the cohort trains and sends in this round."""
        return plan_round(config.model.adapter, part_of, round, config.rounds, self.head_rounds)

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
        shared = layout.part(plan.share)
        if plan.phase == "centre":  # a measured mean, not a direction to descend
            mean = np.float32(plan.scale) * aggregate
            return layout.scatter(layout.gather(model, shared) + mean, shared, model), moments
        for is_head in (False, True):
            names = [n for n in shared.names if (part_of[n] == "head") == is_head]
            if not names:
                continue
            part = shared.part(tuple(names))
            own = is_head and config.head_optimizer is not None
            name = config.head_optimizer if is_head and config.head_optimizer else config.optimizer
            rate = rate_at(config, config.head_learning_rate if own else config.learning_rate, plan.progress)
            if is_head and plan.phase != "head":
                rate *= config.head_joint_factor
            carried = moments  # fedavg leaves them alone, and copies of (d,) are most of what a round costs
            if name != "fedavg":
                carried = Moments(layout.gather(moments.first, part), layout.gather(moments.second, part))
            new, changed = server_step(
                name,
                layout.gather(model, part),
                shared.gather(aggregate, part),
                carried,
                learning_rate=rate,
                momentum=config.head_momentum if own else config.momentum,
                beta2=config.beta2,
                tau=config.tau,
            )
            model = layout.scatter(new.astype(np.float32, copy=False), part, model)
            if name != "fedavg":
                moments = Moments(
                    layout.scatter(changed.first, part, moments.first),
                    layout.scatter(changed.second, part, moments.second),
                )
        if plan.anchors:
            return anchored(layout, model), Moments.zeros(model.size)
        return model, moments
