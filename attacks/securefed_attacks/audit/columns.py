"""The same update as each party would see it: raw, clipped, noised, in a sum, decrypted, in the final model.

The columns of the report. What cannot be made from what was handed over says why, and is never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from securefed.errors import SecureFedError
from securefed.layout import Layout
from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.states import Tensors

NAMES = ("raw update", "clipped", "noised", "sum", "decrypted", "final model")
SEES = {
    "raw update": "the server, or whoever reads one client's traffic",
    "clipped": "the same, where updates are clipped and nothing is added",
    "noised": "the same, after clipping and noise",
    "sum": "the server behind secure aggregation",
    "decrypted": "the key holder's server behind encryption",
    "final model": "everybody who gets the model, without the update",
}


@dataclass(frozen=True, eq=False)
class Column:
    """One view of one round.

    Attributes:
        name: of `NAMES`. update: what is seen of it; None where it cannot be made, `why_not` says why.
        shows_update: False for the final model, where only the state after is seen.
        clients: how many clients' updates are in it. note: how it was made.
        claimed: whether a claimed epsilon is about it: what is seen before the noise has none.
    """

    name: str
    update: Tensors | None = field(default=None, repr=False)
    why_not: str = ""
    shows_update: bool = True
    clients: int = 1
    note: str = ""
    claimed: bool = True

    @property
    def norm(self) -> float:
        """The update's Euclidean norm; 0 where there is none."""
        return norm(self.update or {})

    def after(self, before: Tensors) -> Tensors:
        """The state that this view leads to."""
        assert self.update is not None
        return {**before, **{n: before[n] + u for n, u in self.update.items()}}


def norm(update: Tensors) -> float:
    """Euclidean norm over all tensors."""
    return math.sqrt(sum(float(u.double().square().sum()) for u in update.values()))


def columns(
    captured: Captured, recipe: Recipe, others: Sequence[Captured], generator: torch.Generator
) -> list[Column]:
    """Every view, in the order of `NAMES`.

    Args:
        others: what other clients sent in the same round, for the sum. generator: of the noise tried.
    """
    return [replace(c, claimed=covered(c.name, recipe)) for c in _made(captured, recipe, others, generator)]


def covered(view: str, recipe: Recipe) -> bool:
    """Whether a claimed epsilon is about this view: what is seen before the noise has none."""
    late = recipe.observed in ("update", "clipped") and bool(recipe.noise_multiplier)
    return view == "noised" if late else True


def control_columns(
    captured: Captured, wrong: Tensors, recipe: Recipe, others: Sequence[Captured], generator: torch.Generator
) -> dict[str, Tensors]:
    """View -> what it would show of another update in this one's place; without an encrypted sum, which shows the sum."""
    names = tuple(sorted(wrong))
    after = {**captured.before.tensors, **{n: captured.before.tensors[n] + u for n, u in wrong.items()}}
    swapped = Captured(captured.before, replace(captured.after, tensors=after), names, wrong)
    made = islice(_made(swapped, recipe, others, generator), NAMES.index("decrypted"))
    return {c.name: c.update for c in made if c.update is not None}


def _made(
    captured: Captured, recipe: Recipe, others: Sequence[Captured], generator: torch.Generator
) -> Iterator[Column]:
    seen, update = recipe.observed, captured.update
    single = seen in ("update", "clipped", "noised")
    late = f"what was captured is {'a sum' if seen == 'sum' else f'the {seen} update' if single else 'the final model'}"
    yield (
        Column("raw update", update, note="as captured")
        if seen == "update"
        else Column("raw update", why_not=late)
    )
    clipped = _clipped(update, recipe) if seen == "update" else update if seen == "clipped" else None
    yield (
        Column("clipped", clipped, note=f"to norm {recipe.max_grad_norm:g}" if recipe.max_grad_norm else "")
        if clipped is not None
        else Column(
            "clipped", why_not=late if seen != "update" else "no clipping norm (recipe.max_grad_norm)"
        )
    )
    yield _noised(update, clipped, recipe, late, generator)
    total = _mean(captured, recipe, others) if single else None
    yield (
        Column("sum", update, clients=recipe.clients or 1, note="as captured")
        if seen == "sum"
        else Column("sum", total, clients=len(others) + 1, note="mean over the clients handed over")
        if total is not None
        else Column(
            "sum",
            why_not=late
            if not single
            else "other clients' updates of the round were not handed over (others=)",
        )
    )
    yield _decrypted([captured, *others], total, late if not single else "")
    reached = total if total is not None else update
    alone = "" if total is not None or not single else "as if this client's update were applied alone"
    yield Column("final model", reached, shows_update=False, clients=len(others) + 1, note=alone)


def _clipped(update: Tensors, recipe: Recipe) -> Tensors | None:
    if recipe.max_grad_norm is None:
        return None
    factor = min(1.0, recipe.max_grad_norm / max(norm(update), 1e-300))
    return {n: u * factor for n, u in update.items()}


def _noised(
    update: Tensors, clipped: Tensors | None, recipe: Recipe, late: str, generator: torch.Generator
) -> Column:
    if recipe.observed == "noised":
        return Column("noised", update, note="as captured")
    if clipped is None:
        lacks = "no clipping norm and noise (recipe.max_grad_norm, recipe.noise_multiplier)"
        return Column("noised", why_not=lacks if recipe.observed == "update" else late)
    if not recipe.noise_multiplier or recipe.max_grad_norm is None:
        return Column("noised", why_not="no noise (recipe.noise_multiplier, recipe.max_grad_norm)")
    scale = recipe.noise_multiplier * recipe.max_grad_norm
    noised = with_noise(clipped, scale, generator)
    return Column("noised", noised, note=f"one draw of noise of deviation {scale:.3g} a coordinate")


def with_noise(update: Tensors, scale: float, generator: torch.Generator) -> Tensors:
    """The update with Gaussian noise of this deviation in every coordinate: an experiment, no release."""
    return {n: u + scale * torch.randn(u.shape, generator=generator) for n, u in update.items()}


def _mean(captured: Captured, recipe: Recipe, others: Sequence[Captured]) -> Tensors | None:
    if not others:
        return None
    names = sorted({n for c in (captured, *others) for n in c.names})
    zero = {n: torch.zeros_like(captured.before.tensors[n]) for n in names}
    total = {n: sum((c.update.get(n, zero[n]) for c in (captured, *others)), zero[n]) for n in names}
    return {n: t / (len(others) + 1) for n, t in total.items()}


def _decrypted(rows: Sequence[Captured], total: Tensors | None, late: str) -> Column:
    """The sum after a real CKKS round: its errors are about 1e-6 of the range and hide nothing."""
    if total is None:
        return Column("decrypted", why_not=late or "it is the decrypted sum: see sum")
    from securefed.sums import secure_sum

    layout = Layout.of(total)
    zero = {n: torch.zeros_like(t) for n, t in total.items()}
    vectors = [layout.flatten({**zero, **c.update}) for c in rows]
    largest = max(float(np.abs(v).max()) for v in vectors)
    try:
        found = secure_sum(vectors, protection="ckks", value_range=largest)
    except (SecureFedError, ImportError) as error:
        return Column("decrypted", why_not=f"no encrypted sum here: {error}")
    mean = layout.unflatten(np.asarray(found.mean, np.float32))
    return Column("decrypted", mean, clients=len(rows), note="through an encrypted sum (CKKS)")
