"""FedRep: a private head as in FedPer, but head and body take turns: first the head on a fixed body, then the body.

Collins, Hassani, Mokhtari and Shakkottai 2021, "Exploiting Shared Representations for Personalized Federated
Learning" (arXiv 2102.07078), Algorithm 1: a client makes tau steps of its own head for the representation it was
sent, then updates the representation for that head, and sends the representation.

Privacy: under example-level DP each step of both turns is clipped and noised over what trains in it, and charged:
`head_steps` + `train.steps` a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from securefed.algorithms.fedper import FedPer
from securefed.algorithms.work import Training, Worked
from securefed.config import Config

if TYPE_CHECKING:
    from securefed.training.client import ClientJob


@dataclass(frozen=True)
class FedRep(FedPer):
    """A private head that is trained before the body in every round.

    Attributes:
        head_steps: tau, steps of the head alone; 0: as many as the body's (`train.steps` or epochs).
    """

    head_steps: int = 0

    def __post_init__(self) -> None:
        FedPer.__post_init__(self)
        if self.head_steps < 0:
            raise ValueError(f"head_steps must be 0 (as train.steps) or more, found {self.head_steps}")

    def phases(self, config: Config) -> tuple[int, ...]:
        return (self.head_steps, 0)

    def work(self, train: Training, job: ClientJob) -> Worked:
        """Algorithm 1, the client's loop: h_k for tau steps, then phi."""
        if not job.keep:
            return Worked(train(job.start, job.train))  # a head's centre is measured, not trained
        head = [n for n in job.train if n not in job.share]
        body = list(job.share)
        with_head = train(job.start, head, steps=self.head_steps)
        return Worked(train(with_head, body))
