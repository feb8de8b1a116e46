"""FedPer: the layers below are everybody's, the head is each client's own.

Arivazhagan et al. 2019, "Federated Learning with Personalization Layers" (arXiv 1912.00818), Algorithm 1 and 2:
a client trains base and personalization layers together and sends the base alone. Clients may then disagree about
what a record's label is, and still share how to read it.

Privacy: head and base are one vector while they train, so under example-level DP both are inside its clip and its
noise; the head stays all the same. The head of a client that has never taken part is the initial one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import RoundPlan, local_names
from securefed.config import Config
from securefed.errors import ConfigError


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg over everything but the head.

    Attributes:
        layers: for models without a part called head (`mlp`, `cnn`): how many of the last layers stay.
    """

    layers: int = 1

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, found {self.layers}")
        if self.head_rounds:
            raise ValueError("head_rounds would train what is never sent; leave it out")

    whole: ClassVar[bool] = False

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        plan = FedAvg.plan(self, config, part_of, round)
        at_home = set(self.local_names(config, part_of))
        return replace(plan, share=tuple(n for n in plan.share if n not in at_home))

    def local_names(self, config: Config, part_of: Mapping[str, str]) -> tuple[str, ...]:
        """The head, and what the adapter keeps at home anyway."""
        head = private_head(part_of, self.layers)
        if not {n for n, part in part_of.items() if part != "centre"} - head:
            raise ConfigError(
                f"{config.model.name} is all head: with its last {self.layers} layer(s) at home nothing is sent; use a "
                'deeper model ("mlp"), fewer layers, or algorithm = "ditto"'
            )
        return tuple(sorted({*head, *local_names(config.model.adapter, part_of)}))


def private_head(part_of: Mapping[str, str], layers: int = 1) -> set[str]:
    """Names of the head; where no part is called so, of the last layers in the model's order."""
    head = {n for n, part in part_of.items() if part == "head"}
    if head:
        return head
    modules = list(dict.fromkeys(n.rpartition(".")[0] for n in part_of))
    return {n for n in part_of if n.rpartition(".")[0] in modules[-layers:]}
