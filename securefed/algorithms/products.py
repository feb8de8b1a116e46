"""Products of factors instead of factors: what lets a secure sum join adapters of unlike ranks exactly.

The mean of products B A is not the product of mean factors, so a sum of factors cannot give it. A client that sends by
how much its product changed, dense, in the place of the base weights under the adapter, makes it a sum like any other:
masking, CKKS, groups and noise at client level carry it as they carry every update, and every client's row has the same
coordinates whatever its rank, so rules that compare rows apply. It costs out x in numbers for each matrix instead of
r (in + out). A change and not the product itself, so that who is absent pulls nothing to zero and a clip meets what is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from securefed.algorithms.plan import RoundPlan
from securefed.algorithms.ranks import Joined, Matrix, Ranked
from securefed.algorithms.server_optimizer import Moments
from securefed.algorithms.work import Training, Worked
from securefed.config import Config, ServerConfig
from securefed.layout import Layout
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.training.client import ClientJob

BASE, FACTOR_A, FACTOR_B = ".base", ".lora_A", ".lora_B"


@dataclass(frozen=True)
class ByProducts(Ranked):
    """A way to join that reads the mean of products, from single updates or from a sum of them.

    Attributes:
        products: clients send the change of B A and not B and A, so that a sum is enough. `model.merged` gives it the place.
    """

    products: bool = False

    @property
    def needs_updates(self) -> bool:  # type: ignore[override]  # of a class elsewhere, here it follows from a field
        return not self.products

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        plan = super().plan(config, part_of, round)
        if not self.products or plan.phase != "AB":
            return plan
        bases = (n for n in part_of if part_of[n] == "merged")
        return replace(plan, share=(*(n for n in plan.share if part_of[n] not in ("A", "B")), *bases))

    def work(self, train: Training, job: ClientJob) -> Worked:
        """What a client trained, with the change of its products added to the base weights that stand for them."""
        trained = train(job.start, job.train)
        if not products_in(job.share):
            return Worked(trained)
        out = trained.copy()
        for stem in products_in(job.share):
            (b, a), (old_b, old_a) = (factors(v, train.layout, stem) for v in (trained, job.start))
            out[train.layout.slice_of(stem + BASE)] += (b @ a - old_b @ old_a).astype(np.float32).ravel()
        return Worked(out)

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
        """The server's optimizer steps on the rest; products are not directions to descend, and are added as they are."""
        shared = layout.part(plan.share)
        bases = layout.part(tuple(stem + BASE for stem in products_in(plan.share)))
        rest = shared.part(tuple(n for n in shared.names if n not in bases.names))
        mean = layout.gather(model, bases) + shared.gather(aggregate, bases)
        model, moments = super().apply(
            config,
            layout,
            part_of,
            replace(plan, share=rest.names),
            model,
            shared.gather(aggregate, rest),
            moments,
        )
        return layout.scatter(mean, bases, model), moments


def products_in(share: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the adapted matrices whose product is sent; none where factors are."""
    return tuple(n.removesuffix(BASE) for n in share if n.endswith(BASE))


def mean_product(model: Vector, joined: Joined, stem: str) -> Matrix:
    """The mean of the clients' B A after the server's step, (out, in), float64.

    The mean of what they started from, which follows from the global factors and public ranks, and the mean change.
    """
    b, a = factors(joined.before, joined.layout, stem)
    name, shares = stem + BASE, joined.shares()
    found = matrix(model, joined.layout, name) - matrix(joined.before, joined.layout, name)
    for rank in sorted(set(joined.ranks.values())):
        share = sum(shares[k] for k, r in joined.ranks.items() if r == rank)
        found += share * b[:, :rank] @ a[:rank]
    return found


def factors(vector: Vector, layout: Layout, stem: str) -> tuple[Matrix, Matrix]:
    """(B, A) of a model, (out, R) and (R, in), float64."""
    return matrix(vector, layout, stem + FACTOR_B), matrix(vector, layout, stem + FACTOR_A)


def matrix(vector: Vector, layout: Layout, name: str) -> Matrix:
    """A tensor of a model as a matrix, float64."""
    return vector[layout.slice_of(name)].astype(np.float64).reshape(layout.shapes[layout.names.index(name)])
