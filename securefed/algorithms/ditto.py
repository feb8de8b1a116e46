"""Ditto: beside the global model, each client trains one of its own that is drawn towards the global one.

Li, Hu, Beirami and Smith 2021, "Ditto: Fair and Robust Federated Learning Through Personalization" (arXiv
2012.04221), Algorithm 1. The global model is FedAvg's, untouched by the personal ones. `strength` is the paper's
lambda: 0 is training alone, large values give the global model.

Privacy: the personal model v_k is trained on the shard and never leaves. Under example-level DP its steps are
clipped, noised and charged like the others all the same (the personal model is then private too, and so is
whatever its owner does with it); under client-level DP nothing that stays with the client needs noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.work import Training, Worked
from securefed.config import Config
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.training.client import ClientJob


@dataclass(frozen=True)
class Ditto(FedAvg):
    """The global model by FedAvg, and a personal one for each client.

    Attributes:
        strength: lambda >= 0, of the pull towards the global model.
        personal_steps: s, local steps of the personal model in a round; 0: as many as the global model's.
    """

    strength: float = 0.1
    personal_steps: int = 0

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)
        if self.strength < 0:
            raise ValueError(f"strength must be 0 (alone) or more, found {self.strength}")
        if self.personal_steps < 0:
            raise ValueError(
                f"personal_steps must be 0 (as train.steps) or more, found {self.personal_steps}"
            )

    beside: ClassVar[bool] = True

    def check(self, config: Config) -> None:
        FedAvg.check(self, config)
        if config.train.proximal_mu:
            raise ConfigError(
                "algorithm ditto has a proximal term of its own; set algorithm.strength and leave "
                "train.proximal_mu out"
            )

    def phases(self, config: Config) -> tuple[int, ...]:
        return (0, self.personal_steps)

    def local_names(self, config: Config, part_of: Mapping[str, str]) -> tuple[str, ...]:
        """The personal model: everything that trains; a head's centre is measured once, together."""
        return tuple(sorted(n for n, part in part_of.items() if part != "centre"))

    def work(self, train: Training, job: ClientJob) -> Worked:
        """Algorithm 1, lines 4 to 8, at client k in round t."""
        w = job.start  # w^t, as the server sent it
        w_k = train(w, job.train)  # the global objective's local sub-problem
        v_k = w if job.own is None else job.own  # a client's first round: v_k^0 = w^t
        if not job.keep:
            return Worked(w_k, v_k)
        v_k = train(v_k, job.keep, steps=self.personal_steps, towards=w, mu=self.strength)
        return Worked(w_k, v_k)  # w_k - w is sent, v_k stays
