"""FedProx: each client is drawn back to the model it was sent while it trains.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127), Algorithm 2: client k
approximately minimizes F_k(w) + mu/2 |w - w_t|^2, and the server averages. The proximal term is a function of the
weights alone, so under DP it needs no noise. `train.proximal_mu` adds the same term to any other algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.work import Training, Worked
from securefed.config import Config
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.training.client import ClientJob


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term in every client's objective.

    Attributes:
        mu: its strength; the paper tries 0.001 to 1. 0 is FedAvg.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)
        if self.mu < 0:
            raise ValueError(f"mu must be 0 (FedAvg) or more, found {self.mu}")

    def check(self, config: Config) -> None:
        if config.train.proximal_mu:
            raise ConfigError(
                f"algorithm fedprox has mu = {self.mu:g} and train.proximal_mu = {config.train.proximal_mu:g} besides; "
                "give one of them"
            )
        if config.train.steps == 1:
            raise ConfigError(
                "FedProx with one local step does nothing: the proximal term is zero at the global model; raise "
                "train.steps"
            )

    def work(self, train: Training, job: ClientJob) -> Worked:
        return Worked(train(job.start, job.train, towards=job.start, mu=self.mu))
