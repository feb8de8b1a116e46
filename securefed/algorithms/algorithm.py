"""What every algorithm of rounds answers, whatever its clients send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from securefed.algorithms.plan import RoundPlan, local_names
from securefed.algorithms.work import Training, Worked
from securefed.config import Config

if TYPE_CHECKING:
    from securefed.training.client import ClientJob


class Algorithm:
    """The common case of every question; a subclass says what differs, and what a round is (`plan`).

    Attributes:
        beside: a client's local part is a model beside the global one, not a part of it.
        whole: the server's model can be used as it is; False where it lacks what stays with the clients.
    """

    beside: ClassVar[bool] = False
    whole: ClassVar[bool] = True

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        """What the cohort trains and sends in this round."""
        raise TypeError(f"{type(self).__name__} has no plan of a round; give it one")

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
