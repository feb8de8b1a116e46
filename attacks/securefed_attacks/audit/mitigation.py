"""The section on mitigation: changes of what is sent, cheapest first, until the findings are gone. Before and after.

A trial here is an experiment on this update. It is no guarantee: only an accountant's epsilon is one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from securefed_attacks.audit.belonging import Belonging
from securefed_attacks.audit.columns import Column, with_noise
from securefed_attacks.audit.reconstruction import Reconstruction, judge
from securefed_attacks.audit.report import Trial
from securefed_attacks.audit.sections import Given, rebuild_one
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.membership import CalibratedLoss, Evidence, Loss, MembershipAttack, UpdateCosine
from securefed_attacks.statistics import auc_interval
from securefed_attacks.update_cosine import update_cosine

NOISES = (0.01, 0.1, 1.0)
"""Deviation of each coordinate's noise over the clipping norm (the recipe's, or the update's own), smallest first."""
ASKED: tuple[MembershipAttack, ...] = (Loss(), CalibratedLoss(), UpdateCosine())


def mitigate(given: Given, rebuilt: Sequence[Reconstruction], found: Belonging | None) -> list[Trial]:
    """Changes of the first view that leaks, cheapest first, each kind of leak until one is enough.

    A leak here is a reconstruction called LEAKS, or a membership attack whose AUC is surely above chance.
    """
    captured, made = given.rounds[0]
    first = next((c for c in made if c.update is not None and c.shows_update), None)
    if first is None or not isinstance(given.target, Target):
        return []
    changes = list(_changes(given, captured.before.tensors, first, made))
    return [
        *_against_reconstruction(given, first, rebuilt, changes),
        *_against_membership(given, first, found, changes),
    ]


def _changes(
    given: Given, before: Tensors, first: Column, made: Sequence[Column]
) -> Iterator[tuple[str, Tensors]]:
    """(name, what is sent instead), cheapest first: nothing lost, a layer lost, more and more noise."""
    assert first.update is not None
    assert isinstance(given.target, Target)
    total = next((c for c in made if c.name == "sum" and c.update is not None), None)
    if total is not None and total is not first and total.update is not None:
        yield f"secure sum of {total.clients} clients", total.update
    readers = () if isinstance(given.reader, str) else given.reader.shown(0, first.update)
    rest = {n: u for n, u in first.update.items() if not n.startswith(tuple(f"{r}." for r in readers))}
    if readers and rest:
        yield "leave the first layer's projections out", rest
    norm = min(given.recipe.max_grad_norm or first.norm, first.norm)
    clipped = {n: u * (norm / first.norm) for n, u in first.update.items()}
    for noise in NOISES:
        generator = torch.Generator().manual_seed(given.seed + 7)
        yield (
            f"clip to norm {norm:.3g}, and noise of {noise:g} times that",
            with_noise(clipped, noise * norm, generator),
        )


def _against_reconstruction(
    given: Given, first: Column, rebuilt: Sequence[Reconstruction], changes: Sequence[tuple[str, Tensors]]
) -> Iterator[Trial]:
    here = [r for r in rebuilt if r.view == first.name]
    if not here or all(f.verdict != "LEAKS" for f in judge(here)):
        return
    assert first.update is not None
    for name, update in changes:
        if not given.clock.allows(0.0, f"mitigation: {name}"):
            return
        given.clock.tell(f"mitigation: {name}")
        after = rebuild_one(given, update)
        loss = _losses(given, first.update, update)
        hits = 0 if after is None else _named(after)
        enough = after is None or all(f.verdict != "LEAKS" for f in judge([after]))
        yield Trial(name, first.name, "tokens named", float(_named(here[0])), float(hits), *loss, enough)
        if enough:
            return


def _named(r: Reconstruction) -> int:
    return r.used.ours.hits


def _against_membership(
    given: Given, first: Column, found: Belonging | None, changes: Sequence[tuple[str, Tensors]]
) -> Iterator[Trial]:
    """The three attacks that need no shadows; whichever is best on the changed update counts."""
    asked = {a.name for a in ASKED}
    known = [r for r in found.results if r.view == first.name and r.attack in asked] if found else []
    best = max(known, key=lambda r: r.auc.value, default=None)
    if best is None or best.auc.low <= 0.5 or given.rows is None or given.rows.member is None:
        return
    assert isinstance(given.target, Target)
    before = given.rounds[0][0].before.tensors
    began = time.monotonic()
    reference = given.target.score(before).loss
    each = time.monotonic() - began
    tried = [c for c in changes if given.clock.allows(each, f"mitigation: {c[0]}")]
    cosines = _cosines(given, before, [u for _, u in tried], best.attack == UpdateCosine.name)
    assert first.update is not None
    for k, (name, update) in enumerate(tried):
        given.clock.tell(f"mitigation: {name}")
        loss = given.target.score({**before, **{n: before[n] + u for n, u in update.items()}}).loss
        evidence = Evidence(loss=loss, reference=reference, cosine=cosines[k] if cosines else None)
        scores = [a(evidence) for a in ASKED if not a.missing(evidence)]
        after = max((auc_interval(s, given.rows.member) for s in scores), key=lambda i: i.value)
        enough = after.low <= 0.5
        cost = _losses(given, first.update, update)
        yield Trial(name, first.name, "best AUC", best.auc.value, after.value, *cost, enough)
        if enough:
            return


def _cosines(
    given: Given, before: Tensors, updates: Sequence[Tensors], wanted: bool
) -> list[NDArray[np.float64]] | None:
    """Each update's cosines (1, n), from one pass over the records; None where it was not asked for or does not fit."""
    assert isinstance(given.target, Target)
    names = given.target.trainable(given.rounds[0][0].names)
    if not wanted or not updates or not given.clock.allows(given.clock.spent / 4, "mitigation: gradients"):
        return None
    flat = torch.stack(
        [torch.cat([u.get(n, torch.zeros_like(before[n])).reshape(-1) for n in names]) for u in updates]
    )
    gradients = (
        torch.cat([g[n].reshape(-1) for n in names])
        for g in given.target.gradients(before, names, np.arange(len(given.target)))
    )
    return [row[None] for row in update_cosine(gradients, flat)]


def _losses(given: Given, unchanged: Tensors, changed: Tensors) -> tuple[float | None, float | None]:
    """Non-members' mean loss with either update applied: what a change costs."""
    if not given.has_loss or not given.others or not isinstance(given.target, Target):
        return None, None
    before, rows = given.rounds[0][0].before.tensors, np.asarray(given.others, np.int64)
    one, two = (
        float(given.target.score({**before, **{n: before[n] + x for n, x in u.items()}}, rows).loss.mean())
        for u in (unchanged, changed)
    )
    return one, two
