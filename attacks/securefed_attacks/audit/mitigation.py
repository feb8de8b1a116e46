"""The section on mitigation: changes of what is sent, cheapest first, until the findings are gone. Before and after.

A trial here is an experiment on this update. It is no guarantee: only an accountant's epsilon is one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from securefed_attacks.audit.belonging import Belonging, Membership
from securefed_attacks.audit.changes import Change, possible_changes
from securefed_attacks.audit.columns import Column
from securefed_attacks.audit.reconstruction import Reconstruction
from securefed_attacks.audit.report import Trial
from securefed_attacks.audit.sections import Given, rebuild_one
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.membership import CalibratedLoss, Evidence, Loss, MembershipAttack, UpdateCosine
from securefed_attacks.statistics import auc_interval
from securefed_attacks.update_cosine import update_cosine

ASKED: tuple[MembershipAttack, ...] = (Loss(), CalibratedLoss(), UpdateCosine())


def mitigate(given: Given, rebuilt: Sequence[Reconstruction], found: Belonging | None) -> list[Trial]:
    """Changes of the first view that leaks, cheapest first, each kind of leak until one is enough.

    A leak here is a reconstruction called LEAKS, or a membership attack whose AUC is surely above chance.
    """
    captured, made = given.shown
    first = next((c for c in made if c.update is not None and c.shows_update), None)
    if first is None or not isinstance(given.target, Target) or not _leaks(first, rebuilt, found):
        return []
    changes = list(possible_changes(given, captured, first, made))
    return [
        *_against_reconstruction(given, first, rebuilt, changes),
        *_against_membership(given, first, found, changes),
    ]


def _leaks(first: Column, rebuilt: Sequence[Reconstruction], found: Belonging | None) -> bool:
    """Whether there is anything to change: nothing is trained for a trial that is not needed."""
    return any(r.leaks for r in rebuilt if r.view == first.name) or _best(first, found) is not None


def _best(first: Column, found: Belonging | None) -> Membership | None:
    """The best attack without shadows on this view, where it is surely above chance."""
    asked = {a.name for a in ASKED}
    known = [r for r in found.results if r.view == first.name and r.attack in asked] if found else []
    best = max(known, key=lambda r: r.auc.value, default=None)
    return best if best is not None and best.auc.low > 0.5 else None


def _against_reconstruction(
    given: Given, first: Column, rebuilt: Sequence[Reconstruction], changes: Sequence[Change]
) -> Iterator[Trial]:
    here = next((r for r in rebuilt if r.view == first.name and r.leaks), None)
    if here is None:
        return
    assert first.update is not None
    for change in changes:
        if not given.clock.allows(0.0, f"mitigation: {change.name}"):
            return
        given.clock.tell(f"mitigation: {change.name}")
        after = rebuild_one(given, change.update, change.spent)
        hits = 0 if after is None else after.used.ours.hits
        enough = after is None or not after.leaks
        loss = _losses(given, first.update, change)
        yield Trial(
            change.name, first.name, "tokens named", float(here.used.ours.hits), float(hits), *loss, enough
        )
        if enough:
            return


def _against_membership(
    given: Given, first: Column, found: Belonging | None, changes: Sequence[Change]
) -> Iterator[Trial]:
    """The three attacks that need no shadows; whichever is best on the changed update counts."""
    best = _best(first, found)
    if best is None or given.rows is None or given.rows.member is None:
        return
    assert isinstance(given.target, Target)
    before = given.shown[0].before.tensors
    began = time.monotonic()
    reference = given.target.score(before).loss
    each = time.monotonic() - began
    tried = [c for c in changes if given.clock.allows(each, f"mitigation: {c.name}")]
    cosines = _cosines(given, before, [c.update for c in tried], best.attack == UpdateCosine.name)
    assert first.update is not None
    for k, change in enumerate(tried):
        given.clock.tell(f"mitigation: {change.name}")
        loss = given.target.score({**before, **{n: before[n] + u for n, u in change.update.items()}}).loss
        evidence = Evidence(loss=loss, reference=reference, cosine=cosines[k] if cosines else None)
        judged = ~np.isin(np.arange(len(given.rows)), change.spent)
        scores = [a(evidence)[judged] for a in ASKED if not a.missing(evidence)]
        after = max((auc_interval(s, given.rows.member[judged]) for s in scores), key=lambda i: i.value)
        enough = after.low <= 0.5
        cost = _losses(given, first.update, change)
        yield Trial(change.name, first.name, "best AUC", best.auc.value, after.value, *cost, enough)
        if enough:
            return


def _cosines(
    given: Given, before: Tensors, updates: Sequence[Tensors], wanted: bool
) -> list[NDArray[np.float64]] | None:
    """Each update's cosines (1, n), from one pass over the records; None where it was not asked for or does not fit."""
    assert isinstance(given.target, Target)
    names = given.target.trainable(given.shown[0].names)
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


def _losses(given: Given, unchanged: Tensors, change: Change) -> tuple[float | None, float | None]:
    """Non-members' mean loss with either update applied: what a change costs."""
    rows = np.asarray([i for i in given.others if i not in change.spent], np.int64)
    if not given.has_loss or not len(rows) or not isinstance(given.target, Target):
        return None, None
    before = given.shown[0].before.tensors
    one, two = (
        float(given.target.score({**before, **{n: before[n] + x for n, x in u.items()}}, rows).loss.mean())
        for u in (unchanged, change.update)
    )
    return one, two
