"""FedSGD with differential privacy: one round is one DP-SGD step over the records of all clients.

Each client samples its own records, clips their gradients one by one and sends the sum; the clients' sums,
with one noise for all of them, make the step that the server's optimizer takes. That is central DP-SGD
(Abadi et al. 2016, arXiv 1607.00133, algorithm 1) on the cohort's records together, without a central place: where
each client adds all the noise itself, as under FedAvg, n clients carry n times its variance.

McMahan et al. 2017 (arXiv 1602.05629) call one such step a round of FederatedSGD. The client's half is
`securefed.training.step`, the noise `securefed.privacy.step_noise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import RoundPlan
from securefed.config import Config


@dataclass(frozen=True)
class FedSGD(FedAvg):
    """What is trained in which round, and how the server applies it, are FedAvg's; what a client sends is not.

    Attributes:
        head_rounds: steps at the start that move only the classification head.
    """

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        """What the cohort trains and sends in this round.

        Features have length one, so a clip below one shortens all of them alike in the round of a head's centre;
        the server, which takes the step, undoes it.
        """
        plan = super().plan(config, part_of, round)
        if plan.phase != "centre":
            return plan
        return replace(plan, scale=1 / min(1.0, config.privacy.max_grad_norm))
